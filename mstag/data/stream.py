"""Shards -> batches: ordered, exact, resumable.

The order of an epoch is a pure function of (seed, epoch, manifest, window). Global batch g is
slice g of that order, and each rank takes its part of the slice: so every rank has the same
number of steps whatever the sizes of the shards, and the global batches are the same for
every number of ranks and reading processes.

Ownership: a batch belongs to whoever holds it. Its memory goes back into use only when no
tensor made from it is alive any more, and a consumer that keeps many batches gets copies of
its own: keeping costs memory, not truth. ``mel`` and ``tags`` are views of the samples as
they lie in the shards, so rows of ``mel`` are contiguous and the batch as a whole is not.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mstag.data import order
from mstag.data.pipeline import Kit, Pipeline, Waiting, make_kit
from mstag.data.reader import BadClip, Reader
from mstag.data.shelf import Shelf
from mstag.data.store import Store, open_store

if TYPE_CHECKING:
    import torch

log = logging.getLogger("mstag")

Batch = dict[str, Any]
"""{"mel": float16 (B, 1, n_mels, num_frames), "tags": uint8 (B, n_tags), "id": list[str]},
and "mask": uint8 (B, n_tags) where labels are partial; tensors. "number" is a NumPy int64
array (B,): which samples of the split they are, in the order of the shards."""

STATE_VERSION = 2
MAX_NAMED = 10
"""Refused clips that are named in full, each epoch."""


class ShardLoader:
    """Batches of one split, for one rank; behaves as people expect of a DataLoader.

    Args:
        shards: a folder of shards, the address of one, or an open store.
        split: "train", "valid" or "test".
        batch_size: clips per step over all ranks together.
        shuffle: True: the epoch's order, and an incomplete last global batch is dropped.
            False: the order of the shards, and every clip exactly once; the last batch of a
            rank may be smaller or empty.
        seed: seed of the epoch order.
        window: shards that are shuffled together; 0: all.
        rank, world_size: which part of each global batch to read.
        num_workers: reading processes; 0 reads when a batch is asked for.
        device: where batches go; on a CUDA device each is one asynchronous copy out of
            pinned memory, on a stream of its own.
        on_bad_clip: "fail", or "skip": batches go without damaged clips and are smaller.
        max_bad_clips: the share of the split that may be skipped before it fails after all.

    Raises:
        ValueError: shards that are missing, cut, stale or foreign (named, with the remedy),
            here or when a damaged clip is met.
    """

    def __init__(
        self,
        shards: Path | str | Store,
        split: str,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        window: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 2,
        device: torch.device | str | None = None,
        on_bad_clip: str = "fail",
        max_bad_clips: float = 0.01,
    ) -> None:
        self.store = open_store(shards)
        self.manifest = self.store.manifest
        if split not in self.manifest.splits:
            raise ValueError(
                f"shards {self.store.name}: no split {split!r}; "
                f"there are {', '.join(self.manifest.splits)}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: must be at least 1")
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        assert on_bad_clip in ("fail", "skip"), on_bad_clip
        self.split = split
        self.batch_size, self.shuffle, self.seed, self.window = batch_size, shuffle, seed, window
        self.rank, self.world_size = rank, world_size
        self.num_workers = num_workers
        self.device = device
        self.on_bad_clip, self.max_bad_clips = on_bad_clip, max_bad_clips
        self.epoch = 0
        self.num_refused = 0
        """Damaged clips of this epoch that this rank left out."""
        self.waiting = Waiting()
        """How long the consumer has been kept waiting, for as long as there is this loader: for
        shards to be fetched, and samples to be read. What handing out takes does not count."""
        self._reader = Reader(self.store, split)
        self._position = 0
        self._resume_at = 0
        self._kit: Kit | None = None

    def close(self) -> None:
        """Ends the reading processes; they start again when the loader is used again."""
        if self._kit:
            self._kit.close()
        self._kit = None

    @property
    def num_clips(self) -> int:
        """Samples in the split."""
        return self.manifest.splits[self.split].clips

    @property
    def num_dropped(self) -> int:
        """Samples that an epoch leaves out: less than one global batch, never in evaluation."""
        return self.num_clips - len(self) * self.batch_size if self.shuffle else 0

    def __len__(self) -> int:
        """Steps of an epoch, the same on every rank."""
        return order.num_steps(self.num_clips, self.batch_size, drop_last=self.shuffle)

    def plan(self) -> order.Plan:
        """The order of the current epoch."""
        sizes = [entry.clips for entry in self.manifest.splits[self.split].shards]
        if self.shuffle:
            return order.shuffled(sizes, self.seed, self.epoch, self.window)
        return order.sequential(sizes)

    def ledger(self, num_refused: int) -> dict[str, int]:
        """What became of the clips of an epoch that is done, for metrics.

        Args:
            num_refused: ``num_refused`` of all ranks together.

        Raises:
            ValueError: the ranks together have refused more than ``max_bad_clips``.
        """
        if num_refused > self.max_bad_clips * self.num_clips:
            raise ValueError(f"{self._too_many(num_refused)} (all ranks together)")
        num_read = self.num_clips - self.num_dropped
        return {
            "data/seen": num_read - num_refused,
            "data/dropped": self.num_dropped,
            "data/refused": num_refused,
        }

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next iteration follows."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._position = self._resume_at = 0
            self.num_refused = 0

    def state_dict(self) -> dict[str, Any]:
        """How far the consumer is: every batch handed out so far counts as consumed.

        Call it after the optimiser step on the batch; read-ahead does not show in it. It is
        the same on every rank but for ``refused``, which counts this rank's.
        """
        return {
            "version": STATE_VERSION,
            "dataset": self.manifest.digest,
            "split": self.split,
            "seed": self.seed,
            "window": self.window,
            "batch_size": self.batch_size,
            "epoch": self.epoch,
            "clips": self._position * self.batch_size,
            "refused": self.num_refused,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where ``state`` stopped, at any number of ranks, without replaying.

        Raises:
            ValueError: the state is of another format, dataset, split, seed, window or
                batch size.
        """
        own = self.state_dict()
        for name in ("version", "dataset", "split", "seed", "window", "batch_size"):
            if state.get(name) != own[name]:
                raise ValueError(
                    f"loader state: {name} is {state.get(name)!r}, this loader has {own[name]!r}: "
                    "it belongs to another run; start a new one or restore what changed"
                )
        self.epoch = int(state["epoch"])
        self._position = self._resume_at = int(state["clips"]) // self.batch_size
        self.num_refused = int(state["refused"]) if self.rank == 0 else 0

    def __iter__(self) -> Generator[Batch, None, None]:
        start, self._resume_at = self._resume_at, 0
        if not start:
            self.num_refused = 0
        self._position = start
        for batch in self._batches(start):
            self._position += 1
            yield batch

    def _batches(self, start: int) -> Iterator[Batch]:
        if start >= len(self):
            return
        plan = self.plan()
        num_clips, batch_size, ends = self.num_clips, self.batch_size, np.array(plan.ends)

        def window_at(position: int) -> int:
            return int(np.searchsorted(ends, position, side="right"))

        kit = self._take_kit()
        first_window = window_at(start * batch_size)
        shelf = Shelf(self.store, self.split, plan, first_window, kit.readers)
        skip = self.on_bad_clip == "skip"
        pipeline = Pipeline(self._reader, shelf, kit, self.device, skip=skip, waiting=self.waiting)
        num_done = start

        def hand_out() -> Batch:
            nonlocal num_done
            taken = pipeline.take()
            num_done += 1
            shelf.leave(window_at(num_done * batch_size))
            self._count(taken.bad)
            parts = taken.parts(self._reader.layout)
            return {**parts, "id": taken.ids, "number": taken.numbers}

        try:
            for step in range(start, len(self)):
                window = window_at(min((step + 1) * batch_size, num_clips) - 1)
                while pipeline.is_full() or (len(pipeline) and not shelf.is_at_hand(window)):
                    yield hand_out()
                with self.waiting:
                    shelf.reach(window)
                pipeline.start(
                    order.rank_part(plan.order, step, batch_size, self.rank, self.world_size)
                )
            while len(pipeline):
                yield hand_out()
        finally:
            is_sound = pipeline.drain()  # whoever stops early leaves batches on their way
            shelf.close()
            self.close()  # what another iteration over this loader has left
            if is_sound:
                self._kit = kit
            else:
                kit.close()

    def _take_kit(self) -> Kit:
        """The kit of the last epoch, unless its consumer still holds most of the memory."""
        kit, self._kit = self._kit, None
        if kit and kit.ring.num_free() > kit.num_ahead:
            return kit
        if kit:
            kit.close()
        num_rows = -(-self.batch_size // self.world_size)
        return make_kit(self._reader, num_rows, self.num_workers, self.device)

    def _count(self, bad: list[BadClip]) -> None:
        for clip in bad:
            self.num_refused += 1
            if self.num_refused <= MAX_NAMED:
                log.warning(f"refused: {self._reader.describe(clip)}")
            if self.num_refused > self.max_bad_clips * self.num_clips:
                raise ValueError(
                    f"{self._too_many(self.num_refused)}; the last: {self._reader.describe(clip)}"
                )

    def _too_many(self, num_refused: int) -> str:
        return (
            f"{num_refused} damaged clips in epoch {self.epoch} of split {self.split}, more than "
            f"train.max_bad_clips = {self.max_bad_clips:g} of {self.num_clips} allows"
        )
