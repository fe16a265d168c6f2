"""What lies behind an AUC, for people to look at: curves, calibration, histograms, confusions.

Conventions:
    labels: 0/1, 1 = the clip has the tag; scores: probabilities in [0, 1] of the same shape.
    Labels that are not known count nowhere: callers pass known cells only, except where a mask
    is taken (1 = known; None: all are).
    What is undefined is None or NaN, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """How often a tag is there where the model gives a certain score; empty bins are left out."""

    mean_score: Floats
    """Of the cells in each bin, (b,), rising."""
    share_positive: Floats
    """Of the cells in each bin, (b,); on a calibrated model it equals ``mean_score``."""
    counts: Counts
    """Cells in each bin, (b,)."""
    expected_error: float
    """Mean distance of the two over all cells: the expected calibration error of Naeini et al.
    (2015), as a binary one; NaN without cells."""


def roc_curve(labels: Array, scores: Array, max_points: int = 200) -> tuple[Floats, Floats] | None:
    """The ROC curve of one tag.

    Args:
        labels: 0/1, (n,).
        scores: (n,), higher = more likely.
        max_points: more are thinned to so many (>= 2), evenly along the curve.

    Returns:
        False positive rate and true positive rate, (p,) each, from (0, 0) to (1, 1), neither
        falling; None without positives or without negatives.
    """
    hits, misses = _taken(labels, scores)
    if not hits[-1] or not misses[-1]:
        return None
    return _thinned(misses / misses[-1], hits / hits[-1], max_points)


def pr_curve(labels: Array, scores: Array, max_points: int = 200) -> tuple[Floats, Floats] | None:
    """The precision-recall curve of one tag.

    Args:
        labels: 0/1, (n,).
        scores: (n,), higher = more likely.
        max_points: more are thinned to so many (>= 2), evenly along the curve.

    Returns:
        Recall, never falling, and precision, (p,) each: from (0, 1), where nothing is accepted
        (as scikit-learn has it), to (1, share of positives), where everything is; None without
        positives or without negatives.
    """
    hits, misses = _taken(labels, scores)
    if not hits[-1] or not misses[-1]:
        return None
    precision = np.r_[1.0, hits[1:] / (hits[1:] + misses[1:])]
    return _thinned(hits / hits[-1], precision, max_points)


def calibration(labels: Array, scores: Array, num_bins: int = 10) -> Calibration:
    """Compares scores with what is true, in bins of equal width, all cells pooled.

    Args:
        labels: 0/1, of any shape: of all tags together, or of one.
        scores: probabilities, of the same shape.
        num_bins: over [0, 1]; a score on an edge belongs to the bin above it.
    """
    flat_scores = np.asarray(scores, np.float64).ravel()
    bins = np.minimum((flat_scores * num_bins).astype(np.int64), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    kept = counts > 0
    counts = counts[kept]
    scored = np.bincount(bins, flat_scores, num_bins)[kept] / counts
    shares = np.bincount(bins, np.asarray(labels, np.float64).ravel(), num_bins)[kept] / counts
    total = int(counts.sum())
    error = float((counts * np.abs(shares - scored)).sum() / total) if total else float("nan")
    return Calibration(scored, shares, counts, error)


def score_histogram(
    labels: Array, scores: Array, num_bins: int = 20
) -> tuple[Floats, Counts, Counts]:
    """How the scores of clips with and without a tag are spread.

    Args:
        labels: 0/1, of any shape.
        scores: probabilities, of the same shape.
        num_bins: of equal width over [0, 1]; the last one holds its upper edge.

    Returns:
        Edges (num_bins + 1,), and the number of positive and negative cells per bin,
        (num_bins,) each.
    """
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    is_positive = np.asarray(labels).astype(bool)
    positives = np.histogram(scores[is_positive], edges)[0]
    negatives = np.histogram(scores[~is_positive], edges)[0]
    return edges, positives, negatives


def confusions(
    labels: Array, scores: Array, thresholds: Array, mask: Array | None = None
) -> Floats:
    """Which tags the model gives to clips that bear another one.

    Args:
        labels: 0/1, (n, t).
        scores: (n, t).
        thresholds: (t,): a score at or above it says yes.
        mask: 1 = known, (n, t), or None.

    Returns:
        (t, t): row i, column j: of the clips with tag i and without tag j (both known), the
        share to which the model gives j; NaN where there are none. On the diagonal: of the
        clips with tag i, the share to which it gives i, which is the recall.
    """
    given = (scores >= thresholds).astype(np.float64)
    known = np.ones(labels.shape, bool) if mask is None else mask.astype(bool)
    bears = (known & (labels == 1)).astype(np.float64)
    lacks = (known & (labels == 0)).astype(np.float64)
    wrongly, possible = bears.T @ (lacks * given), bears.T @ lacks
    np.fill_diagonal(wrongly, (bears * given).sum(axis=0))
    np.fill_diagonal(possible, bears.sum(axis=0))
    shares: Floats = np.full(possible.shape, np.nan)
    np.divide(wrongly, possible, out=shares, where=possible > 0)
    return shares


def _taken(labels: Array, scores: Array) -> tuple[Floats, Floats]:
    """True and false positives when none, and then ever more of the distinct scores, are accepted.

    Both start at 0: (1 + number of distinct scores,).
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True][: len(ranked)])
    hits = np.cumsum(labels[order].astype(np.float64))[ends]
    return np.r_[0.0, hits], np.r_[0.0, ends + 1 - hits]


def _thinned(x: Floats, y: Floats, max_points: int) -> tuple[Floats, Floats]:
    """At most ``max_points`` points of a curve, its ends among them."""
    assert max_points >= 2, "a curve has two ends"
    if len(x) <= max_points:
        return x, y
    along = np.r_[0.0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))]
    wanted = np.linspace(0.0, along[-1], max_points - 1)
    # Rounding may put the last wanted place behind the last point; the end is named anyway.
    places = np.minimum(np.searchsorted(along, wanted), len(x) - 1)
    kept = np.unique(np.r_[0, places, len(x) - 1])
    return x[kept], y[kept]
