"""The rooms of the report: pure functions on small inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import make_data, make_run

from mstag import metrics
from mstag.data.store import Folder
from mstag.show.page import Audio
from mstag.training.report_clips import MOST_CLIPS, NUM_WORST, audio_of, choose, find
from mstag.training.report_curves import MOST_POINTS, is_speed, legend, thinned
from mstag.training.report_listen import excerpt_scores
from mstag.training.report_read import Run, Scores, number, read_run, read_runs
from mstag.training.report_score import paired_differences, with_interval
from mstag.training.report_tags import best_median_worst


def make_scores(n: int, t: int, seed: int = 0, *, noise: float = 1.0) -> Scores:
    labels = (np.random.default_rng(0).random((n, t)) < 0.4).astype(np.uint8)
    logits = labels + noise * np.random.default_rng(seed).standard_normal((n, t))
    values = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return Scores("test", [f"clip {i}" for i in range(n)], values, labels, None)


def test_paired_differences_are_narrower_than_the_runs_own_intervals() -> None:
    one = make_scores(120, 4)
    slightly = Scores("test", one.ids, one.scores**2, one.labels, None)
    assert paired_differences(one, slightly)["roc_auc"] == (0.0, 0.0), "the same order"
    worse = make_scores(120, 4, seed=1, noise=4.0)
    low, high = paired_differences(one, worse)["roc_auc"]
    aucs = [metrics.macro(metrics.roc_auc_per_tag(s.labels, s.scores)) for s in (one, worse)]
    assert low < aucs[1] - aucs[0] < high < 0
    other_clips = Scores("test", one.ids[::-1], one.scores, one.labels, None)
    assert paired_differences(one, other_clips) == {}


@given(st.integers(0, 40), st.integers(0, 4), st.integers(0, 9), st.booleans())
def test_clips_are_chosen_once_and_the_worst_first(n: int, t: int, seed: int, masked: bool) -> None:
    scores = make_scores(n, t, seed)
    if masked:
        mask = (np.random.default_rng(seed).random((n, t)) < 0.5).astype(np.uint8)
        scores = Scores("test", scores.ids, scores.scores, scores.labels, mask)
    clips = choose(scores)
    rows = [clip.row for clip in clips]
    assert len(set(rows)) == len(rows) <= MOST_CLIPS
    losses = [clip.loss for clip in clips]
    assert losses == sorted(losses, reverse=True)
    if n and t and not masked:
        every = [metrics.binary_cross_entropy(scores.labels[i], scores.scores[i]) for i in range(n)]
        assert losses[0] == pytest.approx(max(every))
        kinds = {scores.labels[row].tobytes() for row in rows[:NUM_WORST]}
        assert len(kinds) == min(NUM_WORST, len({row.tobytes() for row in scores.labels}))


def test_clips_are_found_in_the_shards_and_others_of_their_name_are_not(tmp_path: Path) -> None:
    store = Folder(make_data(tmp_path))
    run = read_run(make_run(tmp_path / "one", tmp_path / "shards"), "one")
    assert run.scores is not None
    clips = choose(run.scores)
    assert find(clips, run, store) == []
    for clip in clips:
        assert clip.mel is not None and clip.meta["id"] == run.scores.ids[clip.row]
    run.scores.labels[clips[0].row] ^= 1
    again = choose(run.scores)
    (words,) = find(again, run, store)
    assert "other labels" in words
    (tmp_path / "shards" / "test-000000.tar").write_bytes(b"")
    (words,) = find(choose(run.scores), run, store)
    assert "could not be read" in words


def test_audio_is_embedded_unless_it_is_large_missing_or_elsewhere(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.MP3").write_bytes(b"x" * 100)
    (tmp_path / "secret.mp3").write_bytes(b"secret")
    (data / "link.mp3").symlink_to(tmp_path / "secret.mp3")
    assert audio_of({"path": "a.MP3"}, data, 1000) == Audio(b"x" * 100, "audio/mpeg", "Play a.MP3")
    for path, words in (
        ("a.MP3", "too large"),
        ("b.mp3", "No such file"),
        ("../secret.mp3", "outside"),
        (str(tmp_path / "secret.mp3"), "outside"),
        ("link.mp3", "outside"),
        ("a.txt", "do not play"),
        ("nul\0.mp3", "unreadable"),
    ):
        found = audio_of({"path": path}, data, 50)
        assert isinstance(found, str) and words in found, path
    assert audio_of({}, data, 1000) is None and audio_of({"path": 3}, data, 1000) is None


def test_a_part_that_fills_the_window_is_scored_as_the_window(tmp_path: Path) -> None:
    import torch
    from tiny_tagger import FEATURES, TAGS, make_bundle

    from mstag.models.bundle import load_bundle

    model = load_bundle(make_bundle(tmp_path / "b")).model
    mel = np.random.default_rng(0).standard_normal((FEATURES.n_mels, 64)).astype(np.float16)
    whole = excerpt_scores(model, mel, 1)
    with torch.no_grad():
        expected = torch.sigmoid(model(torch.from_numpy(mel).float()[None, None]))
    np.testing.assert_allclose(whole, expected.numpy(), atol=1e-5)
    parts = excerpt_scores(model, mel, 5)
    assert parts.shape == (5, len(TAGS)) and not np.allclose(parts[0], parts[1])


def test_thresholds_are_taken_of_the_same_tags_only(tmp_path: Path) -> None:
    make_data(tmp_path)
    run = read_run(make_run(tmp_path / "one", tmp_path / "shards"), "one")
    assert run.thresholds is not None and len(run.thresholds) == len(run.tag_names)
    assert run.tagger is not None
    for change in ({"tags": ["a"]}, {"thresholds": [0.5]}, {"thresholds": "x"}):
        other = Run("x", run.folder, [], run.evals, tagger=run.tagger | change)
        assert other.thresholds is None


def test_small_helpers() -> None:
    assert (
        with_interval(-0.0001, (-0.2, 0.0002), "+").replace("\xa0", " ")
        == "0.000 (-0.200 to 0.000)"
    )
    assert with_interval(0.5, None) == "0.500" and with_interval(None, None) == "none"
    line = [float(n) for n in range(10_000)]
    kept, _ = thinned((line, line))
    assert len(kept) == MOST_POINTS and (kept[0], kept[-1]) == (0.0, 9999.0)
    assert legend(["a", "b"]) == (["a", "b"], "")
    assert legend(["a" * 30, "b" * 30])[0] == ["1", "2"]
    assert is_speed("train/device_memory_gb") and not is_speed("train/weight_norm")
    assert [number(v) for v in (1, True, None, "1", float("nan"), 10**400)] == [1.0] + [None] * 5
    per_tag = [{"roc_auc": value} for value in (0.6, None, 0.9, 0.7)]
    assert best_median_worst(per_tag) == {"best": 2, "median": 3, "worst": 0}
    assert best_median_worst([{"roc_auc": 0.6}]) == {"best": 0}
    with pytest.raises(ValueError, match="not a run"):
        read_runs([Path("nowhere")])
