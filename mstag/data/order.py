"""The order of an epoch: pure functions of (shard sizes, seed, epoch, window).

A window is a group of shards whose clips are shuffled together; one window over all shards is
a full shuffle. Windows are for data that is dear to reach at random (a disk with a cold page
cache, a remote address): only the shards of a window or two need to be at hand at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SEQUENTIAL_WINDOW = 4
"""Shards at hand at a time when clips are read in the order of the shards."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An epoch: which clip comes when, and which shards are needed when."""

    order: NDArray[np.int64]
    """Numbers of the split's clips (0 .. n - 1), in the order in which they are read."""
    windows: list[list[int]]
    """Shards of each window; windows follow each other and share no shard."""
    ends: list[int]
    """How many clips have been read when each window is done."""


def sequential(shard_sizes: Sequence[int]) -> Plan:
    """The clips as they are stored."""
    numbers = range(len(shard_sizes))
    windows = [
        list(numbers[i : i + SEQUENTIAL_WINDOW]) for i in range(0, len(numbers), SEQUENTIAL_WINDOW)
    ]
    return Plan(np.arange(sum(shard_sizes)), windows, _ends(windows, shard_sizes))


def shuffled(shard_sizes: Sequence[int], seed: int, epoch: int, window: int = 0) -> Plan:
    """A random order, a new one for every (seed, epoch).

    Shards are put in a random order and cut into windows; within a window, clips are sorted
    by a 64-bit hash (splitmix64) of (seed, epoch, clip). Written out instead of numpy's
    shuffle, whose stream may change between numpy versions (NEP 19).

    Args:
        shard_sizes: clips per shard.
        seed: of the run, 0 <= seed < 2**64.
        epoch: from 0.
        window: shards that are shuffled together; 0: all of them (the best shuffle).
    """
    num_shards = len(shard_sizes)
    key = _splitmix64(_splitmix64(np.array([seed], np.uint64)) ^ np.uint64(epoch))
    order = np.argsort(_hashes(key, sum(shard_sizes)), kind="stable")
    if not 0 < window < num_shards:
        windows = [list(range(num_shards))]
        return Plan(order, windows, _ends(windows, shard_sizes))
    shards = np.argsort(_hashes(_splitmix64(key), num_shards), kind="stable")
    windows = [shards[i : i + window].tolist() for i in range(0, num_shards, window)]
    window_of_shard = np.empty(num_shards, np.int32)
    window_of_shard[shards] = np.arange(num_shards) // window
    window_of_clip = np.repeat(window_of_shard, shard_sizes)
    order = order[np.argsort(window_of_clip[order], kind="stable")]
    return Plan(order, windows, _ends(windows, shard_sizes))


def num_steps(num_clips: int, batch_size: int, *, drop_last: bool) -> int:
    """Global batches in an epoch."""
    return num_clips // batch_size if drop_last else -(-num_clips // batch_size)


def rank_part(
    order: NDArray[np.int64], step: int, batch_size: int, rank: int, world_size: int
) -> NDArray[np.int64]:
    """The clips of global batch ``step`` that ``rank`` reads; sizes differ by one at most."""
    batch = order[step * batch_size : (step + 1) * batch_size]
    start, stop = (len(batch) * r // world_size for r in (rank, rank + 1))
    return batch[start:stop]


def shuffle_quality(plan: Plan, shard_sizes: Sequence[int], batch_size: int) -> dict[str, float]:
    """How well a plan mixes, and what a full shuffle would reach on average.

    Returns:
        ``displacement``: mean distance between where a clip is stored and when it is read, as
        a share of the split (a uniformly random order has 1/3); ``shards_per_batch``: mean
        number of shards in a full batch; ``shards_per_batch_full``: its expectation for
        batches drawn at random, ``sum(1 - (1 - size/n)**batch_size)``.
    """
    n = len(plan.order)
    displacement = float(np.abs(plan.order - np.arange(n)).mean()) / n
    shard_of_clip = np.repeat(np.arange(len(shard_sizes)), shard_sizes)[plan.order]
    whole = shard_of_clip[: n - n % batch_size].reshape(-1, batch_size)
    in_order = np.sort(whole, axis=1)
    per_batch = 1 + (np.diff(in_order, axis=1) > 0).sum(axis=1)
    shares = np.asarray(shard_sizes) / n
    return {
        "displacement": displacement,
        "shards_per_batch": float(per_batch.mean()) if len(per_batch) else float("nan"),
        "shards_per_batch_full": float((1 - (1 - shares) ** batch_size).sum()),
    }


def _ends(windows: list[list[int]], shard_sizes: Sequence[int]) -> list[int]:
    return list(itertools.accumulate(sum(shard_sizes[s] for s in window) for window in windows))


def _hashes(key: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    return _splitmix64(key ^ _splitmix64(np.arange(count, dtype=np.uint64)))


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One round of splitmix64 (Steele, Lea and Flood, 2014); wraps around by design."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
