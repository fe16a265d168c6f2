"""Groups of clips -> splits, so that every tag is spread over them: the arithmetic of it.

Greedy multi-label stratification in whole numbers; ``splits.by_artist`` says what it is for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NUM_SPLITS = 3

# Fixed point of the stratification: a group's share of a tag, in units of 2**-20. Integers,
# because a float sum may differ in its last bit between machines, and with it a tie.
_UNIT = 1 << 20

# What a split without a single clip of a tag costs, next to squared errors of at most 1 over
# the split's size: enough for a tag of three groups to reach all splits.
_UNCOVERED = 4

# A second look at every group is enough where there are so many of them.
_MANY_GROUPS = 10_000


def stratify(
    counts: NDArray[np.int64], order: list[int], sizes: tuple[float, float, float]
) -> NDArray[np.int64]:
    """Place groups one by one where the squared error of the shares grows least.

    Args:
        counts: (n_groups, n_tags + 1) clips per tag; the last column is the group's size.
        order: the groups in the order in which they are placed.
        sizes: wanted shares of the three splits.

    Returns:
        (n_groups,) number of the split of each group.
    """
    shares = counts * _UNIT // np.maximum(counts.sum(axis=0), 1)
    size = np.array([round(share * _UNIT) for share in sizes], dtype=np.int64)
    # From the rounded shares, so that what rounding cuts off is missing nowhere.
    wanted = size[:, None] * shares.sum(axis=0) // _UNIT
    # The number of clips weighs as much as all tags together.
    importance = np.ones(counts.shape[1], dtype=np.int64)
    importance[-1] = max(1, counts.shape[1] - 1)
    closed = np.where(size > 0, np.iinfo(np.int64).min, np.iinfo(np.int64).max)
    filled = np.zeros_like(wanted)
    placed = np.full(len(counts), -1, dtype=np.int64)
    for second_look in range(2 if len(counts) > _MANY_GROUPS else 4):
        before = placed.copy()
        for group in order:
            share = shares[group]
            if second_look:
                filled[placed[group]] -= share
            # (filled + share - wanted)^2 - (filled - wanted)^2, in units of 2**-20.
            growth = (share * (share + 2 * (filled - wanted)) // _UNIT * importance).sum(axis=1)
            # The same error weighs more in a smaller split.
            cost = growth * _UNIT // np.maximum(size, 1)
            if second_look:
                cost -= _UNCOVERED * _UNIT * ((filled == 0) & (share > 0)).sum(axis=1)
            placed[group] = split = int(np.argmin(np.maximum(cost, closed)))
            filled[split] += share
        if np.array_equal(placed, before):
            break
    return placed


def fill_empty(
    placed: NDArray[np.int64], num_clips: NDArray[np.int64], sizes: tuple[float, float, float]
) -> None:
    """Give the smallest spare group to each split that is wanted and got none (in place)."""
    for split in (2, 1, 0):
        if sizes[split] > 0 and len(placed) >= NUM_SPLITS and not (placed == split).any():
            spare = np.bincount(placed, minlength=NUM_SPLITS)[placed] > 1
            placed[np.flatnonzero(spare)[np.argmin(num_clips[spare])]] = split
