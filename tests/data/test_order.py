"""The order of an epoch, and how well it mixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstag.data.order import num_steps, rank_part, sequential, shuffle_quality, shuffled

SIZES = st.lists(st.integers(0, 40), max_size=30)


@given(
    sizes=SIZES,
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 10**6),
    window=st.integers(0, 40),
)
def test_an_epochs_order_is_a_permutation_window_by_window(
    sizes: list[int], seed: int, epoch: int, window: int
) -> None:
    plan = shuffled(sizes, seed, epoch, window)
    assert sorted(plan.order.tolist()) == list(range(sum(sizes)))
    assert sorted(sum(plan.windows, [])) == list(range(len(sizes)))
    assert all(len(w) == window for w in plan.windows[:-1]) or len(plan.windows) == 1
    shard_of_clip = np.repeat(np.arange(len(sizes)), sizes)
    start = 0
    for shards, end in zip(plan.windows, plan.ends, strict=True):
        assert set(shard_of_clip[plan.order[start:end]]) <= set(shards)
        assert end - start == sum(sizes[shard] for shard in shards)
        start = end
    again = shuffled(sizes, seed, epoch, window)
    assert np.array_equal(plan.order, again.order) and plan.windows == again.windows


@given(sizes=SIZES)
def test_the_sequential_order_is_the_stored_one(sizes: list[int]) -> None:
    plan = sequential(sizes)
    assert plan.order.tolist() == list(range(sum(sizes)))
    assert sum(plan.windows, []) == list(range(len(sizes)))
    assert not sizes or plan.ends[-1] == sum(sizes)


@pytest.mark.parametrize("window", [0, 1, 5])
def test_orders_differ_between_epochs_and_seeds(window: int) -> None:
    plans = [shuffled([100] * 50, seed, epoch, window) for seed in range(4) for epoch in range(4)]
    assert len({plan.order.tobytes() for plan in plans}) == 16
    assert window == 0 or len({tuple(map(tuple, plan.windows)) for plan in plans}) == 16


@pytest.mark.parametrize("seed", range(4))
def test_a_full_shuffle_mixes_like_drawing_lots(seed: int) -> None:
    sizes = [100] * 50
    quality = shuffle_quality(shuffled(sizes, seed, 0), sizes, batch_size=20)
    # A uniformly random permutation of n has mean displacement n/3, here with a standard
    # deviation of about 0.003; 20 draws out of 50 shards meet 50 (1 - 0.98**20) = 16.6.
    assert quality["displacement"] == pytest.approx(1 / 3, abs=0.015)
    assert quality["shards_per_batch_full"] == pytest.approx(50 * (1 - 0.98**20))
    assert quality["shards_per_batch"] == pytest.approx(16.6, abs=0.5)


def test_windows_mix_the_better_the_larger_they_are() -> None:
    sizes = [100] * 50
    met = [
        shuffle_quality(shuffled(sizes, 0, 0, window), sizes, batch_size=20)["shards_per_batch"]
        for window in (1, 2, 5, 25, 0)
    ]
    assert met == sorted(met) and met[0] == 1 and met[1] < 2.2
    stored = shuffle_quality(sequential(sizes), sizes, batch_size=20)
    assert stored["displacement"] == 0 and stored["shards_per_batch"] == 1


def splitmix(x: int) -> int:
    """splitmix64 as its authors define it, in Python's integers."""
    mask = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_the_order_is_the_same_for_ever() -> None:
    assert splitmix(0) == 0xE220A8397B1DCDAF  # the reference implementation's first output
    key = splitmix(splitmix(7) ^ 3)
    clips = sorted(range(50), key=lambda i: splitmix(key ^ splitmix(i)))
    assert shuffled([50], seed=7, epoch=3).order.tolist() == clips
    shards = sorted(range(5), key=lambda i: splitmix(splitmix(key) ^ splitmix(i)))
    windows = [shards[:2], shards[2:4], shards[4:]]
    plan = shuffled([10] * 5, seed=7, epoch=3, window=2)
    assert plan.windows == windows
    assert plan.order.tolist() == [c for w in windows for c in clips if c // 10 in w]


@given(
    num_clips=st.integers(0, 200),
    batch_size=st.integers(1, 30),
    world_size=st.sampled_from([1, 2, 3, 4, 8]),
)
def test_ranks_share_each_global_batch(num_clips: int, batch_size: int, world_size: int) -> None:
    order = np.arange(num_clips)
    for step in range(num_steps(num_clips, batch_size, drop_last=False)):
        parts = [rank_part(order, step, batch_size, r, world_size) for r in range(world_size)]
        whole = order[step * batch_size : (step + 1) * batch_size]
        assert np.concatenate(parts).tolist() == whole.tolist()
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
