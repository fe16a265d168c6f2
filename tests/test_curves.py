"""Curves against scikit-learn and against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from mstag import curves


@st.composite
def one_tag(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of 1 to 400 clips, from many ties to none."""
    n = draw(st.integers(1, 400))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.sampled_from([1, 3, 20, 10**6]))
    scores = np.round(rng.random(n) * steps) / steps
    labels = (rng.random(n) < draw(st.sampled_from([0.02, 0.5, 0.98]))).astype(np.uint8)
    return labels, scores.astype(draw(st.sampled_from([np.float32, np.float64])))


@given(one_tag())
@settings(max_examples=80)
def test_whole_curves_equal_scikit_learn(tag: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = tag
    roc, pr = curves.roc_curve(labels, scores, 1000), curves.pr_curve(labels, scores, 1000)
    if labels.min() == labels.max():
        assert roc is None and pr is None
        return
    assert roc is not None and pr is not None
    expected = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)[:2]
    np.testing.assert_allclose(np.array(roc), np.array(expected), atol=1e-12)
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores)
    np.testing.assert_allclose(pr[0], recall[::-1], atol=1e-12)
    np.testing.assert_allclose(pr[1], precision[::-1], atol=1e-12)


@given(one_tag(), st.integers(2, 50))
@settings(max_examples=80)
def test_thinned_curves_keep_their_ends_and_points(
    tag: tuple[np.ndarray, np.ndarray], max_points: int
) -> None:
    labels, scores = tag
    for draw in (curves.roc_curve, curves.pr_curve):
        whole, thin = draw(labels, scores, 10**6), draw(labels, scores, max_points)
        assert (whole is None) == (thin is None)
        if whole is None or thin is None:
            continue
        assert 2 <= len(thin[0]) == len(thin[1]) <= max_points
        points = list(zip(*(axis.tolist() for axis in whole), strict=True))
        kept = list(zip(*(axis.tolist() for axis in thin), strict=True))
        assert set(kept) <= set(points) and kept[0] == points[0] and kept[-1] == points[-1]
        assert (np.diff(thin[0]) >= 0).all()
        if draw is curves.roc_curve:
            assert (np.diff(thin[1]) >= 0).all() and kept[0] == (0, 0) and kept[-1] == (1, 1)
        else:
            assert kept[0] == (0, 1) and kept[-1] == (1, pytest.approx(labels.mean()))


def test_a_thinned_curve_stays_near_the_whole_one() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(20_000) < 0.1).astype(np.uint8)
    scores = rng.normal(size=20_000) + labels
    thin = curves.roc_curve(labels, scores)
    assert thin is not None and 150 < len(thin[0]) <= 200
    area = np.trapezoid(thin[1], thin[0])
    assert area == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-3)


@given(one_tag(), st.integers(1, 20))
@settings(max_examples=80)
def test_calibration_and_histogram_count_every_cell_once(
    tag: tuple[np.ndarray, np.ndarray], num_bins: int
) -> None:
    labels, scores = tag
    found = curves.calibration(labels, scores, num_bins)
    assert found.counts.sum() == len(labels) and (found.counts > 0).all()
    assert (found.share_positive * found.counts).sum() == pytest.approx(labels.sum())
    assert (found.mean_score * found.counts).sum() == pytest.approx(scores.sum(), rel=1e-5)
    assert (np.diff(found.mean_score) > 0).all() and 0 <= found.expected_error <= 1
    edges, positives, negatives = curves.score_histogram(labels, scores, num_bins)
    assert len(edges) == num_bins + 1 and edges[0] == 0 and edges[-1] == 1
    assert positives.sum() == labels.sum() and (positives + negatives).sum() == len(labels)


@given(one_tag())
def test_calibration_equals_scikit_learn(tag: tuple[np.ndarray, np.ndarray]) -> None:
    from sklearn.calibration import calibration_curve

    labels, scores = tag
    scores = np.minimum(scores, 0.999) + 1e-4  # off the edges, which scikit-learn puts below
    if (labels.min() == labels.max()) or (scores > 1).any():
        return
    shares, means = calibration_curve(labels, scores, n_bins=8)
    found = curves.calibration(labels, scores, 8)
    np.testing.assert_allclose(found.share_positive, shares, atol=1e-6)
    np.testing.assert_allclose(found.mean_score, means, atol=1e-6)


def test_calibration_by_hand_and_of_nothing() -> None:
    labels = np.array([[0, 1], [0, 1]])
    found = curves.calibration(labels, np.array([[0.1, 0.9], [0.3, 1.0]]), 2)
    np.testing.assert_allclose(found.mean_score, [0.2, 0.95])
    np.testing.assert_allclose(found.share_positive, [0, 1])
    assert found.counts.tolist() == [2, 2] and found.expected_error == pytest.approx(0.125)
    nothing = curves.calibration(np.empty(0), np.empty(0))
    assert np.isnan(nothing.expected_error) and not len(nothing.counts)


@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(1, 5), st.booleans())
def test_confusions_equal_counting_by_hand(seed: int, n: int, t: int, has_mask: bool) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, t)) < 0.4).astype(np.uint8)
    scores, thresholds = np.round(rng.random((n, t)), 1), np.round(rng.random(t), 1)
    mask = (rng.random((n, t)) < 0.7).astype(np.uint8) if has_mask else None
    found = curves.confusions(labels, scores, thresholds, mask)
    assert found.shape == (t, t)
    known = np.ones((n, t)) if mask is None else mask
    for i in range(t):
        for j in range(t):
            rows = [
                k
                for k in range(n)
                if known[k, i] and known[k, j] and labels[k, i] and (i == j or not labels[k, j])
            ]
            yes = [bool(scores[k, j] >= thresholds[j]) for k in rows]
            assert found[i, j] == pytest.approx(np.mean(yes) if yes else np.nan, nan_ok=True)
