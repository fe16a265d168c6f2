"""ROC-AUC, PR-AUC and their intervals: arrays in, dict out, per tag first and averaged last.

Conventions:
    labels: uint8 or bool (n, t), 1 = the clip has the tag.
    scores: float (n, t), higher = more likely; probabilities in [0, 1] where a loss is taken.
    mask: uint8 or bool (n, t), 1 = the label is known; None: all are. Unknown cells count nowhere.
    A tag without known positives or without known negatives has no AUC: NaN in arrays,
    null in dicts, left out of every mean. It is never 0, and never passed over in silence.

ROC-AUC and PR-AUC (average precision, a step function and not a trapezoid) equal
scikit-learn's roc_auc_score and average_precision_score, ties included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

# Float64 cells of the resampling weights held at once: 2 MB stay in the cache of a core.
CELLS_AT_ONCE = 2**18
SMALLEST_PROBABILITY = 1e-7


@dataclass(frozen=True, slots=True)
class Ranking:
    """The known clips of one tag, best score first; clips of equal score form a group.

    Only groups with a positive are kept: neither sum of :func:`weighted_aucs` needs others.
    """

    order: npt.NDArray[np.intp]
    """Row numbers of the known clips, (k,)."""
    positives: npt.NDArray[np.intp]
    """Row numbers of the positive clips in the same order, (p,)."""
    first_positive: npt.NDArray[np.intp]
    """Where each group starts in ``positives``, (g,)."""
    group_start: npt.NDArray[np.intp]
    """Where each group starts in ``order``, (g,)."""
    group_end: npt.NDArray[np.intp]
    """One past its last place in ``order``, (g,)."""

    @property
    def defined(self) -> bool:
        """Whether there are both positives and negatives."""
        return 0 < len(self.positives) < len(self.order)


def validate(labels: Array, scores: Array, mask: Array | None = None) -> None:
    """Refuses arrays that the metrics cannot mean anything for.

    Raises:
        ValueError: shapes differ, labels or mask are not 0/1, scores are not finite.
    """
    if labels.ndim != 2 or labels.shape != scores.shape:
        raise ValueError(
            f"labels {labels.shape} and scores {scores.shape}: must both be (clips, tags)"
        )
    if not np.issubdtype(scores.dtype, np.floating):
        raise ValueError(f"scores of type {scores.dtype}: must be floats")
    if not np.isfinite(scores).all():
        raise ValueError("scores: NaN or infinite values cannot be ranked; the model has diverged")
    if mask is not None and mask.shape != labels.shape:
        raise ValueError(f"mask {mask.shape}: must have the shape of the labels, {labels.shape}")
    for name, values in (("labels", labels), ("mask", mask)):
        if values is not None and not np.isin(values, (0, 1)).all():
            raise ValueError(f"{name}: must be 0 or 1 everywhere")


def rank(labels: Array, scores: Array, mask: Array | None = None) -> Ranking:
    """Sorts the known clips of one tag: all arrays (n,)."""
    known = np.arange(len(labels)) if mask is None else np.flatnonzero(mask)
    order = known[np.argsort(-scores[known], kind="stable")]
    is_positive = labels[order].astype(bool)
    sorted_scores = scores[order]
    starts = np.flatnonzero(np.r_[True, sorted_scores[1:] != sorted_scores[:-1]][: len(order)])
    ends = np.r_[starts[1:], len(order)][: len(starts)]
    positives_before = np.r_[0, np.cumsum(is_positive)]
    kept = positives_before[ends] > positives_before[starts]
    return Ranking(
        order=order,
        positives=order[is_positive],
        first_positive=positives_before[starts[kept]],
        group_start=starts[kept],
        group_end=ends[kept],
    )


def weighted_aucs(ranking: Ranking, weights: Floats) -> tuple[Floats, Floats]:
    """ROC-AUC and average precision of one tag under several weightings of the clips.

    Args:
        ranking: the tag's clips in order.
        weights: whole numbers >= 0, (n, r): how often each clip is in resample r.

    Returns:
        (r,) and (r,); NaN where a resample has no positives or no negatives.
    """
    num_resamples = weights.shape[1]
    if not ranking.defined:
        undefined = np.full(num_resamples, np.nan)
        return undefined, undefined.copy()
    ahead = np.zeros((len(ranking.order) + 1, num_resamples))
    np.cumsum(weights[ranking.order], axis=0, out=ahead[1:])
    hits = np.add.reduceat(weights[ranking.positives], ranking.first_positive, axis=0)
    hits_to_end = np.cumsum(hits, axis=0)
    taken_to_end = ahead[ranking.group_end]
    misses_to_end = taken_to_end - hits_to_end
    misses_to_start = ahead[ranking.group_start] - (hits_to_end - hits)
    num_positives = hits_to_end[-1]
    num_negatives = ahead[-1] - num_positives
    # A positive beats the negatives behind its group and ties with half of those within it.
    beaten = num_negatives - 0.5 * (misses_to_end + misses_to_start)
    precision = hits_to_end / np.maximum(taken_to_end, 1.0)
    pairs = num_positives * num_negatives
    with np.errstate(invalid="ignore", divide="ignore"):
        roc_auc = np.where(pairs > 0, (hits * beaten).sum(axis=0) / pairs, np.nan)
        pr_auc = np.where(pairs > 0, (hits * precision).sum(axis=0) / num_positives, np.nan)
    return roc_auc, pr_auc


def roc_auc_per_tag(labels: Array, scores: Array, mask: Array | None = None) -> Floats:
    """Area under the ROC curve of each tag, float64 (t,), NaN where undefined."""
    return _aucs_per_tag(_rankings(labels, scores, mask), len(labels))[0]


def pr_auc_per_tag(labels: Array, scores: Array, mask: Array | None = None) -> Floats:
    """Average precision of each tag, float64 (t,), NaN where undefined."""
    return _aucs_per_tag(_rankings(labels, scores, mask), len(labels))[1]


def macro(values: Array) -> float:
    """Mean over the tags for which the metric is defined; NaN when there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def binary_cross_entropy(labels: Array, scores: Array, mask: Array | None = None) -> float:
    """Mean over the known cells, scores clipped to [1e-7, 1 - 1e-7]; NaN when none is known."""
    p = np.clip(scores.astype(np.float64), SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    losses = -np.where(labels.astype(bool), np.log(p), np.log1p(-p))
    known = losses if mask is None else losses[mask.astype(bool)]
    return float(known.mean()) if known.size else float("nan")


def resampling_weights(num_clips: int, num_resamples: int, seed: int) -> npt.NDArray[np.uint16]:
    """How often each clip is drawn in each bootstrap resample, (num_clips, num_resamples)."""
    rng = np.random.default_rng(seed)
    weights = np.empty((num_clips, num_resamples), dtype=np.uint16)
    for r in range(num_resamples):
        drawn = rng.integers(num_clips, size=num_clips)
        weights[:, r] = np.bincount(drawn, minlength=num_clips)
    return weights


def evaluate(
    labels: Array,
    scores: Array,
    tag_names: list[str],
    mask: Array | None = None,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that an eval report says about scores, ready for JSON.

    Intervals are 95% percentile bootstrap intervals over clips. All tags share the resamples;
    a tag that is undefined in a resample is left out of that resample's mean.

    Args:
        labels: 0/1, (n, t).
        scores: probabilities, (n, t).
        tag_names: t names, in vector order.
        mask: 1 = known, (n, t), or None.
        num_resamples: bootstrap resamples; 0: no intervals (null).
        seed: seed of the resamples.

    Returns:
        clips, roc_auc, roc_auc_ci, pr_auc, pr_auc_ci, loss, skipped_tags, per_tag.

    Raises:
        ValueError: what :func:`validate` refuses, scores outside [0, 1], a wrong number of names.
    """
    rankings = _rankings(labels, scores, mask)
    if len(tag_names) != len(rankings):
        raise ValueError(f"{len(tag_names)} tag names for {len(rankings)} columns of scores")
    if scores.size and not 0 <= scores.min() <= scores.max() <= 1:
        raise ValueError("scores: must be probabilities in [0, 1] (sigmoids, not logits)")
    roc_auc, pr_auc = _aucs_per_tag(rankings, len(labels))
    roc_samples, pr_samples = _bootstrap(rankings, len(labels), num_resamples, seed)
    return {
        "clips": len(labels),
        "roc_auc": _number(macro(roc_auc)),
        "roc_auc_ci": _interval(_macro_per_resample(roc_samples)),
        "pr_auc": _number(macro(pr_auc)),
        "pr_auc_ci": _interval(_macro_per_resample(pr_samples)),
        "loss": _number(binary_cross_entropy(labels, scores, mask)),
        "skipped_tags": [
            {"tag": tag, "positives": len(ranking.positives), "reason": _why_undefined(ranking)}
            for tag, ranking in zip(tag_names, rankings, strict=True)
            if not ranking.defined
        ],
        "per_tag": [
            {
                "tag": tag,
                "positives": len(rankings[i].positives),
                "roc_auc": _number(roc_auc[i]),
                "roc_auc_ci": _interval(roc_samples[i]),
                "pr_auc": _number(pr_auc[i]),
                "pr_auc_ci": _interval(pr_samples[i]),
            }
            for i, tag in enumerate(tag_names)
        ],
    }


def best_thresholds(labels: Array, scores: Array, mask: Array | None = None) -> Floats:
    """Per tag the threshold with the highest F1 when ``score >= threshold`` says yes, (t,).

    It lies half-way between the lowest score that is accepted and the highest that is not, so
    that rounding moves no clip across it; 0.5 where a tag has no positives or no negatives.
    None below the tag's share of positives is considered, as a score below that says that the
    tag is less likely here than anywhere: a handful of positives that the model hardly knows
    would otherwise set thresholds near zero.
    """
    thresholds = np.full(labels.shape[1], 0.5)
    for i, ranking in enumerate(_rankings(labels, scores, mask)):
        if not ranking.defined:
            continue
        share = len(ranking.positives) / len(ranking.order)
        # F1 rises only where positives are taken in: the ends of the kept groups suffice.
        hits = np.r_[ranking.first_positive[1:], len(ranking.positives)]
        f1 = 2 * hits / (ranking.group_end + len(ranking.positives))
        accepted = scores[ranking.order[ranking.group_end - 1], i].astype(np.float64)
        f1[accepted < share] = -1
        best = int(np.argmax(f1))
        thresholds[i] = share
        if f1[best] < 0:
            continue
        lowest, end = float(accepted[best]), ranking.group_end[best]
        refused = float(scores[ranking.order[end], i]) if end < len(ranking.order) else lowest
        half_way = refused + (lowest - refused) / 2
        thresholds[i] = max(share, half_way if half_way > refused else lowest)
    return thresholds


def _rankings(labels: Array, scores: Array, mask: Array | None) -> list[Ranking]:
    validate(labels, scores, mask)
    return [
        rank(labels[:, i], scores[:, i], None if mask is None else mask[:, i])
        for i in range(labels.shape[1])
    ]


def _aucs_per_tag(rankings: list[Ranking], num_clips: int) -> tuple[Floats, Floats]:
    once_each = np.ones((num_clips, 1))
    pairs = [weighted_aucs(ranking, once_each) for ranking in rankings]
    roc_auc = np.array([roc[0] for roc, _ in pairs], dtype=np.float64)
    return roc_auc, np.array([pr[0] for _, pr in pairs], dtype=np.float64)


def _bootstrap(
    rankings: list[Ranking], num_clips: int, num_resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """ROC-AUC and PR-AUC of every tag in every resample, (t, num_resamples) each."""
    roc_auc = np.empty((len(rankings), num_resamples))
    pr_auc = np.empty((len(rankings), num_resamples))
    weights = resampling_weights(num_clips, num_resamples, seed)
    step = max(1, CELLS_AT_ONCE // max(1, num_clips))
    for start in range(0, num_resamples, step):
        part = slice(start, start + step)
        part_weights = np.ascontiguousarray(weights[:, part], dtype=np.float64)
        for i, ranking in enumerate(rankings):
            roc_auc[i, part], pr_auc[i, part] = weighted_aucs(ranking, part_weights)
    return roc_auc, pr_auc


def _macro_per_resample(samples: Floats) -> Floats:
    """Mean over the defined tags of each resample: (t, r) -> (r,)."""
    defined = ~np.isnan(samples)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(defined, samples, 0.0).sum(axis=0) / defined.sum(axis=0)
    return mean


def _interval(samples: Floats) -> list[float] | None:
    """[2.5%, 97.5%] percentiles of the defined resamples, or None."""
    defined = samples[~np.isnan(samples)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return [float(low), float(high)]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _why_undefined(ranking: Ranking) -> str:
    if not len(ranking.order):
        return "no clip with a known label"
    if not len(ranking.positives):
        return "no positive clip"
    return "no negative clip"
