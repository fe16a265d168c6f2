"""Metrics against scikit-learn, against counting by hand, and where they are undefined."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, log_loss, roc_auc_score

from mstag import metrics


@st.composite
def tagged_clips(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores (few distinct values: many ties) and a mask."""
    n, t = draw(st.integers(1, 60)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = (rng.random((n, t)) < rng.random(t)).astype(np.uint8)
    scores = rng.random((n, t)).astype(draw(st.sampled_from([np.float32, np.float64])))
    steps = draw(st.sampled_from([1, 2, 5, 1000]))
    scores = (np.round(scores * steps) / steps).astype(scores.dtype)
    return labels, scores, (rng.random((n, t)) < 0.8).astype(np.uint8)


@given(tagged_clips())
@settings(max_examples=80)
def test_equals_scikit_learn_on_known_cells(clips) -> None:
    labels, scores, mask = clips
    roc_auc = metrics.roc_auc_per_tag(labels, scores, mask)
    pr_auc = metrics.pr_auc_per_tag(labels, scores, mask)
    for i in range(labels.shape[1]):
        known = mask[:, i].astype(bool)
        y, s = labels[known, i], scores[known, i]
        if len(np.unique(y)) < 2:
            assert math.isnan(roc_auc[i]) and math.isnan(pr_auc[i])
            continue
        assert roc_auc[i] == pytest.approx(roc_auc_score(y, s), abs=1e-12)
        assert pr_auc[i] == pytest.approx(average_precision_score(y, s), abs=1e-12)


@given(tagged_clips(), st.integers(0, 1000))
@settings(max_examples=50)
def test_weights_equal_repeated_clips(clips, seed: int) -> None:
    labels, scores, mask = clips
    weights = metrics.resampling_weights(len(labels), 3, seed)
    assert (weights.sum(axis=0) == len(labels)).all()
    for i in range(labels.shape[1]):
        ranking = metrics.rank(labels[:, i], scores[:, i], mask[:, i])
        roc_auc, pr_auc = metrics.weighted_aucs(ranking, weights.astype(np.float64))
        for r in range(3):
            rows = np.repeat(np.arange(len(labels)), weights[:, r])
            repeated = labels[rows, i : i + 1], scores[rows, i : i + 1], mask[rows, i : i + 1]
            for ours, theirs in (
                (roc_auc[r], metrics.roc_auc_per_tag(*repeated)[0]),
                (pr_auc[r], metrics.pr_auc_per_tag(*repeated)[0]),
            ):
                assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)


def test_golden_values_counted_by_hand() -> None:
    # Best first: +, -, {+ -} tied, -. Pairs won: 3 + 1.5 of 2 x 3.
    # Average precision: 1/2 at 1/1, then 1/2 at 2/4.
    labels = np.array([[1], [0], [1], [0], [0]])
    scores = np.array([[0.9], [0.8], [0.5], [0.5], [0.1]])
    assert metrics.roc_auc_per_tag(labels, scores)[0] == pytest.approx(4.5 / 6, abs=1e-15)
    assert metrics.pr_auc_per_tag(labels, scores)[0] == pytest.approx(0.75, abs=1e-15)


def random_clips(n: int, t: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, t)) < 0.3).astype(np.uint8)
    scores = 1 / (1 + np.exp(-(rng.normal(size=(n, t)) + labels)))
    return labels, scores.astype(np.float32), [f"tag {i}" for i in range(t)]


def test_report_skips_undefined_tags_and_is_strict_json() -> None:
    labels, scores, names = random_clips(40, 4)
    labels[:, 1], labels[:, 2] = 0, 1
    mask = np.ones_like(labels)
    mask[:, 3] = 0
    report = metrics.evaluate(labels, scores, names, mask, num_resamples=50)
    json.dumps(report, allow_nan=False)
    assert report["skipped_tags"] == [
        {"tag": "tag 1", "positives": 0, "reason": "no positive clip"},
        {"tag": "tag 2", "positives": 40, "reason": "no negative clip"},
        {"tag": "tag 3", "positives": 0, "reason": "no clip with a known label"},
    ]
    assert report["per_tag"][1]["roc_auc"] is None
    assert report["per_tag"][1]["pr_auc_ci"] is None
    only = report["per_tag"][0]["roc_auc"]
    assert (
        report["roc_auc"]
        == pytest.approx(only)
        == pytest.approx(roc_auc_score(labels[:, 0], scores[:, 0]))
    )
    expected = log_loss(labels[:, :3].ravel(), scores[:, :3].ravel().astype(np.float64))
    assert report["loss"] == pytest.approx(expected)


def test_intervals_are_seeded_and_hold_the_value() -> None:
    labels, scores, names = random_clips(300, 5)
    report = metrics.evaluate(labels, scores, names, seed=1)
    assert report == metrics.evaluate(labels, scores, names, seed=1)
    assert report != metrics.evaluate(labels, scores, names, seed=2)
    for entry in (report, *report["per_tag"]):
        for key in ("roc_auc", "pr_auc"):
            low, high = entry[f"{key}_ci"]
            assert low < entry[key] < high
    # Binormal scores one standard deviation apart: AUC = Phi(1 / sqrt 2).
    low, high = report["roc_auc_ci"]
    assert low < 0.7602 < high
    # As wide as DeLong's variance of one AUC says, within a twentieth.
    positive, negative = (scores[labels[:, 0] == label, 0].astype(float) for label in (1, 0))
    won = positive[:, None] > negative[None, :]
    variance = won.mean(1).var(ddof=1) / len(positive) + won.mean(0).var(ddof=1) / len(negative)
    low, high = report["per_tag"][0]["roc_auc_ci"]
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.05)


def test_rare_tag_is_left_out_of_resamples_that_miss_it() -> None:
    labels, scores, names = random_clips(30, 2)
    labels[:, 1] = 0
    labels[3, 1] = 1
    report = metrics.evaluate(labels, scores, names, num_resamples=200)
    roc_auc = []
    for drawn in metrics.resampling_weights(30, 200, seed=0).T:
        rows = np.repeat(np.arange(30), drawn)
        roc_auc.append(metrics.roc_auc_per_tag(labels[rows], scores[rows]))
    # Drawing 30 of 30 clips misses one of them in 36% of the resamples.
    assert 0.2 < np.isnan(roc_auc).any(axis=1).mean() < 0.5
    per_resample = [metrics.macro(values) for values in roc_auc]
    assert report["roc_auc_ci"] == pytest.approx(list(np.percentile(per_resample, [2.5, 97.5])))


@pytest.mark.parametrize("num_clips", [0, 20])
def test_without_resamples_or_clips_there_are_no_intervals(num_clips: int) -> None:
    labels, scores, names = random_clips(num_clips, 3)
    report = metrics.evaluate(labels, scores, names, num_resamples=0)
    assert report["roc_auc_ci"] is report["per_tag"][0]["pr_auc_ci"] is None
    assert (report["roc_auc"] is None) == (num_clips == 0)
    assert metrics.evaluate(labels, scores, names)["clips"] == num_clips


def test_sure_and_wrong_scores_give_a_finite_loss() -> None:
    labels = np.array([[1, 0]])
    wrong = np.array([[0.0, 1.0]], dtype=np.float32)
    assert metrics.binary_cross_entropy(labels, wrong) == pytest.approx(-math.log(1e-7))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y, s: (y, s[:, :1]), r"\(clips, tags\)"),
        (lambda y, s: (y + 2, s), "0 or 1"),
        (lambda y, s: (y, s * np.nan), "NaN"),
        (lambda y, s: (y, s.astype(int)), "floats"),
        (lambda y, s: (y, s * 7), "sigmoids"),
        (lambda y, s: (y[:, :1], s[:, :1]), "tag names"),
        (lambda y, s: (y, s, y[:1]), "mask"),
        (lambda y, s: (y, s, y * 3), "mask"),
    ],
)
def test_meaningless_input_is_refused(change, words: str) -> None:
    labels, scores, names = random_clips(10, 2)
    labels[0] = 1
    changed = change(labels, scores)
    with pytest.raises(ValueError, match=words):
        metrics.evaluate(changed[0], changed[1], names, *changed[2:])


@given(tagged_clips())
@settings(max_examples=30)
def test_no_threshold_has_a_higher_f1_than_the_best(clips) -> None:
    labels, scores, _ = clips
    for i, threshold in enumerate(metrics.best_thresholds(labels, scores)):
        y, s = labels[:, i], scores[:, i]
        if len(np.unique(y)) < 2:
            assert threshold == 0.5
            continue
        assert threshold >= y.mean(), "a score below says: less likely than anywhere"
        rivals = [f1_score(y, s >= r, zero_division=0.0) for r in np.unique(s) if r >= y.mean()]
        found = f1_score(y, s >= threshold, zero_division=0.0)
        assert found == pytest.approx(max(rivals, default=0.0), abs=1e-12)
