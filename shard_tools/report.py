"""What a collection looks like, in numbers: arrays in, dicts out; nothing is read or drawn here.

Conventions:
    tags, mask: uint8 (n, t), a row per clip; mask 1 = the label is known; None: all are.
    Splits are numbers in the order of their names.
    Levels are mean powers in dB, or, where nobody told how spectrograms were made, means of
    whatever they hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstag.data.features import POWER_FLOOR

MIN_SCORED = 10
"""Positives of a tag in a split below which its score says little (a 95% interval of ROC-AUC is
then some +-0.15 wide)."""
MIN_TOGETHER = 5
"""Clips that a pair of tags needs to be named."""
QUIET_DB = 50.0
"""Below the median level: a clip nearly silent. Piano pieces lie some 30 dB below dance music."""
SILENT_DB = -150.0
"""Below this there is no audio, whatever the other clips are like."""


def to_db(power: Any) -> NDArray[np.float64]:
    """Power -> dB, at least that of the silence floor (-200 dB)."""
    return np.asarray(10 * np.log10(np.maximum(power, POWER_FLOOR)), np.float64)


def tag_counts(
    names: Sequence[str],
    positives: Mapping[str, Sequence[int]],
    sizes: Mapping[str, int],
    known: Mapping[str, Sequence[float]] | None = None,
) -> list[dict[str, Any]]:
    """How often each tag is there, per split, and what that means for its score.

    Args:
        names: of the tags.
        positives: split -> (t,) samples that bear the tag.
        sizes: split -> samples.
        known: split -> (t,) samples whose label is known; None: all are.

    Returns:
        Per tag: tag, splits: {split: {positives, known, share, note}}; ``share`` is of the
        known ones (None where there are none), ``note`` says what that means for its score
        ("" if nothing).
    """
    entries = []
    for number, name in enumerate(names):
        splits = {}
        for split, size in sizes.items():
            count = int(positives[split][number])
            num_known = max(round(known[split][number]) if known else size, count)
            splits[split] = {
                "positives": count,
                "known": num_known,
                "share": count / num_known if num_known else None,
                "note": _note(split, count, num_known) if size else "",
            }
        entries.append({"tag": name, "splits": splits})
    return entries


def _note(split: str, count: int, num_known: int) -> str:
    if count == 0:
        return "cannot be learnt" if split == "train" else "no score"
    if count == num_known and split != "train":
        return "no score (no clip without it)"
    if count < MIN_SCORED:
        return "too rare to learn" if split == "train" else "vague score"
    return ""


def co_occurrence(tags: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> dict[str, Any]:
    """How tags go together; of clips where both labels are known.

    Returns:
        (t, t) arrays, row i and column j: ``both``, clips that bear both; ``given``, the share
        with j among those with i; ``lift``, that over the share with j among all; ``phi``, the
        correlation of the two, -1 to 1 (the mean square contingency of Yule, 1912). NaN where
        undefined.
    """
    known = np.ones(tags.shape) if mask is None else mask.astype(float)
    positive = tags * known
    both, size = positive.T @ positive, known.T @ known
    of_row = positive.T @ known
    of_column = of_row.T
    with np.errstate(divide="ignore", invalid="ignore"):
        given = both / of_row
        lift = given / (of_column / size)
        spread = of_row * (size - of_row) * of_column * (size - of_column)
        phi = (size * both - of_row * of_column) / np.sqrt(spread)
    return {
        "both": both.astype(np.int64),
        "given": given,
        "lift": np.where(np.isfinite(lift), lift, np.nan),
        "phi": np.where(spread > 0, phi, np.nan),
    }


def pairs(found: Mapping[str, Any], names: Sequence[str], most: int = 15) -> dict[str, Any]:
    """The pairs of tags that stand out.

    Args:
        found: of :func:`co_occurrence`.
        names: of the tags.
        most: of each list.

    Returns:
        ``together``, the pairs of the highest phi that MIN_TOGETHER clips bear; ``apart``, those
        of the lowest phi below 0; each {a, b, both, b_given_a, a_given_b, lift, phi};
        ``twins``, pairs of which nine in ten clips with one bear the other, both ways.
    """
    row, column = np.triu_indices(len(names), 1)
    phi = found["phi"][row, column]
    together = (phi > 0) & (found["both"][row, column] >= MIN_TOGETHER)
    apart = phi < 0

    def entries(chosen: NDArray[np.intp]) -> list[dict[str, Any]]:
        return [
            {
                "a": names[i],
                "b": names[j],
                "both": int(found["both"][i, j]),
                "b_given_a": float(found["given"][i, j]),
                "a_given_b": float(found["given"][j, i]),
                "lift": float(found["lift"][i, j]),
                "phi": float(found["phi"][i, j]),
            }
            for i, j in zip(row[chosen].tolist(), column[chosen].tolist(), strict=True)
        ]

    by_phi = np.argsort(phi, kind="stable")
    strongest = by_phi[::-1][together[by_phi[::-1]]]
    alike = np.minimum(found["given"][row, column], found["given"][column, row]) >= 0.9
    return {
        "together": entries(strongest[:most]),
        "apart": entries(by_phi[apart[by_phi]][:most]),
        "twins": entries(strongest[alike[strongest]]),
    }


def neighbours(phi: NDArray[np.float64]) -> list[int]:
    """An order of the tags in which those that go together stand side by side.

    The two groups of tags of the highest mean phi are joined until one is left (average
    linkage; Sokal and Michener, 1958), each turned so that the nearest ends meet.
    """
    near = np.nan_to_num(phi, nan=0.0)
    groups = [[tag] for tag in range(len(near))]
    sums, sizes = near.copy(), np.ones(len(near))
    while len(groups) > 1:
        mean = sums / np.outer(sizes, sizes)
        np.fill_diagonal(mean, -np.inf)
        i, j = sorted(int(place) for place in divmod(int(np.argmax(mean)), len(mean)))
        turns = [(a, b) for a in (groups[i], groups[i][::-1]) for b in (groups[j], groups[j][::-1])]
        a, b = max(turns, key=lambda turn: near[turn[0][-1], turn[1][0]])
        groups[i] = a + b
        del groups[j]
        sums[i] += sums[j]
        sums[:, i] += sums[:, j]
        sizes[i] += sizes[j]
        sums, sizes = np.delete(np.delete(sums, j, 0), j, 1), np.delete(sizes, j)
    return groups[0] if groups else []


def histogram(values: NDArray[np.float64], most: int = 30) -> list[float]:
    """Edges of at most ``most`` bins of round width that hold all values (finite)."""
    if not values.size:
        return [0.0, 1.0]
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-6 * max(abs(high), 1.0):
        middle = float(np.floor(low))
        # All alike: a bar with air around it.
        return [
            edge for edge in (middle - 1, middle, middle + 1, middle + 2) if edge >= 0 or low < 0
        ]
    width = (high - low) / (most - 1)
    power = 10.0 ** np.floor(np.log10(width))
    step = float(next(power * n for n in (1, 2, 5, 10) if power * n >= width * (1 - 1e-9)))
    first, last = int(np.floor(low / step)), int(np.floor(high / step)) + 1
    return [step * number for number in range(first, last + 1)]


def shares(values: NDArray[np.float64], edges: Sequence[float]) -> list[float]:
    """Per bin, the percentage of the values in it."""
    counts = np.histogram(values, edges)[0]
    return [float(share) for share in 100 * counts / max(len(values), 1)]


def summary(values: NDArray[np.float64]) -> dict[str, float] | None:
    """Least, median, mean and greatest value, and the sum; None without values."""
    if not values.size:
        return None
    return {
        "least": float(values.min()),
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "greatest": float(values.max()),
        "sum": float(values.sum()),
    }


def quiet_clips(levels: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows of the clips that are nearly silent, the quietest first; NaN is none of them."""
    heard = levels[np.isfinite(levels)]
    limit = max(float(np.median(heard)) - QUIET_DB, SILENT_DB) if heard.size else SILENT_DB
    rows = np.flatnonzero(levels <= limit)
    return rows[np.argsort(levels[rows], kind="stable")]


def spectra(bands: NDArray[np.float64], split: NDArray[np.int64], num: int) -> list[Any]:
    """Per split, the median over its clips of each band's level, (n_mels,); None: no clips."""
    usable = np.isfinite(bands).all(axis=1)
    chosen = [bands[usable & (split == number)] for number in range(num)]
    return [np.median(rows, axis=0) if len(rows) else None for rows in chosen]


def shift(one: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, float]:
    """How far two spectra lie apart, in their unit.

    Returns:
        ``level``: the mean difference, other - one; ``shape``: the mean absolute difference
        that is left when both have the same level.
    """
    difference = other - one
    level = float(difference.mean())
    return {"level": level, "shape": float(np.abs(difference - level).mean())}


def group_reasons(skipped: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Skipped clips by reason, the most frequent first.

    Reasons that differ only in the clip's own names and in numbers are one.

    Returns:
        Per reason: reason, count, example (the name of one clip).
    """
    groups: dict[str, dict[str, Any]] = {}
    for clip in skipped:
        reason = clip["reason"]
        for name in (clip.get("path", ""), clip.get("id", "")):
            # An id such as "3" is no name that a reason would repeat as a word of its own.
            if len(name) > 3:
                reason = reason.replace(name, "...")
        reason = re.sub(r"(?:\S*/)?\.\.\.:\s*", "", reason)
        key = re.sub(r"\d+(?:[.,]\d+)*", "N", reason)
        group = groups.setdefault(
            key, {"reason": reason, "count": 0, "example": clip.get("path") or clip.get("id", "")}
        )
        group["count"] += 1
        if group["count"] > 1:
            group["reason"] = key
    return sorted(groups.values(), key=lambda group: -group["count"])


def examples(
    tags: NDArray[np.uint8],
    is_train: NDArray[np.bool_],
    makers: Sequence[str],
    num: int = 3,
    *,
    seed: int = 0,
) -> list[list[int]]:
    """Per tag, rows of up to ``num`` clips to look at.

    Clips of train that bear few other tags come first, by different makers where there are
    such; among equals the seed decides.
    """
    lots = np.random.default_rng(seed).random(len(tags))
    order = np.lexsort((lots, tags.sum(axis=1), ~is_train))
    chosen = []
    for column in tags.T:
        rows = order[column[order] > 0].tolist()
        firsts: list[int] = []
        seen: set[str] = set()
        for row in rows:
            if len(firsts) == num:
                break
            if makers[row] not in seen:
                seen.add(makers[row])
                firsts.append(row)
        taken = set(firsts)
        others = (row for row in rows if row not in taken)
        firsts += [row for row, _ in zip(others, range(num - len(firsts)), strict=False)]
        chosen.append(firsts)
    return chosen
