"""Tagging: any length, the same scores as in evaluation, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_tagger import (
    FEATURES,
    LONGER,
    TAGS,
    THRESHOLDS,
    WINDOW_SAMPLES,
    make_bundle,
    make_wav,
    music,
)

import mstag
from mstag.data.features import LogMel, windows
from mstag.models.predict import average_per_clip, predict
from mstag.tagging.tagger import WINDOWS_PER_BATCH, Tagger

RATE_HZ = FEATURES.sample_rate_hz


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    return Tagger.load(make_bundle(tmp_path_factory.mktemp("bundle")), "cpu")


def test_tags_are_ranked_and_carry_the_bundles_names(tagger: Tagger, tmp_path: Path) -> None:
    path = make_wav(tmp_path / "a.wav")
    tags = tagger.tag(path)
    assert {tag for tag, _ in tags} == set(TAGS)
    scores = [score for _, score in tags]
    assert scores == sorted(scores, reverse=True)
    by_name = dict(zip(TAGS, tagger.scores(music(WINDOW_SAMPLES), RATE_HZ).tolist(), strict=True))
    assert dict(tags) == by_name
    assert tagger.tag(str(path)) == tags == tagger.tag(path.read_bytes())
    assert tagger.thresholds == dict(zip(TAGS, THRESHOLDS, strict=True))
    assert tagger.window_s == tagger.step_s == pytest.approx(64 * 128 / 8000)


def test_equal_scores_keep_the_order_of_the_vector(tagger: Tagger) -> None:
    ranked = tagger.ranked(np.array([0.5, 0.7, 0.5, 0.7, 0.1], np.float32))
    assert [tag for tag, _ in ranked] == [TAGS[i] for i in (1, 3, 0, 2, 4)]


@pytest.mark.parametrize(
    ("num_windows", "expected"),
    [(0.01, 1), (0.4, 1), (1.0, 1), (1.4, 1), (1.6, 2), (2.45, 2), (WINDOWS_PER_BATCH + 2.6, 11)],
)
def test_last_window_counts_when_half_of_it_is_audio(
    tagger: Tagger, num_windows: float, expected: int
) -> None:
    waveform = music(round(num_windows * WINDOW_SAMPLES))
    over_time = tagger.scores_over_time(waveform, RATE_HZ)
    assert over_time.shape == (expected, len(TAGS))
    assert np.array_equal(tagger.scores(waveform, RATE_HZ), over_time.mean(axis=0))


def test_scores_are_those_of_evaluation_on_packed_windows(tagger: Tagger) -> None:
    waveform = music(round(3.7 * WINDOW_SAMPLES))
    mel = LogMel(FEATURES)(waveform)
    stored = np.stack([w.mel.astype(np.float16) for w in windows(mel, FEATURES.num_frames)])
    batch = {
        "mel": torch.from_numpy(stored[:, None]),
        "tags": torch.zeros(len(stored), len(TAGS), dtype=torch.uint8),
        "id": ["clip"] * len(stored),
    }
    evaluated = average_per_clip(predict(tagger.bundle.model, [batch], "cpu")).scores[0]
    np.testing.assert_allclose(tagger.scores(waveform, RATE_HZ), evaluated, atol=1e-6)


@pytest.mark.parametrize("num_windows", [0.4, 1.0, 3.7, WINDOWS_PER_BATCH + 2.6])
def test_chunks_are_rows_whose_mean_is_the_score_of_evaluation(
    tmp_path: Path, num_windows: float
) -> None:
    tagger = Tagger.load(make_bundle(tmp_path, features=LONGER, chunk_frames=64), "cpu")
    assert tagger.window_s == pytest.approx(150 * 128 / 8000)
    assert tagger.step_s == pytest.approx(50 * 128 / 8000)
    waveform = music(round(num_windows * 150 * 128))
    stored = np.stack([w.mel.astype(np.float16) for w in windows(LogMel(LONGER)(waveform), 150)])
    over_time = tagger.scores_over_time(waveform, RATE_HZ)
    assert over_time.shape == (3 * len(stored), len(TAGS))
    with torch.inference_mode():
        by_hand = [
            torch.sigmoid(tagger.bundle.model(torch.from_numpy(chunk)[None, None].float()))[0]
            for mel in stored
            for chunk in (mel[:, :64], mel[:, 43:107], mel[:, 86:])
        ]
    np.testing.assert_allclose(over_time, torch.stack(by_hand), atol=1e-6)
    batch = {
        "mel": torch.from_numpy(stored[:, None]),
        "tags": torch.zeros(len(stored), len(TAGS), dtype=torch.uint8),
        "id": ["clip"] * len(stored),
    }
    evaluated = average_per_clip(predict(tagger.bundle.model, [batch], "cpu")).scores[0]
    np.testing.assert_allclose(tagger.scores(waveform, RATE_HZ), evaluated, atol=1e-6)


def test_on_a_cpu_the_chunks_of_one_window_are_scored_at_a_time(tmp_path: Path) -> None:
    tagger = Tagger.load(make_bundle(tmp_path, features=LONGER, chunk_frames=64), "cpu")
    sizes: list[int] = []
    tagger.bundle.model.register_forward_pre_hook(lambda _, given: sizes.append(given[0].numel()))
    tagger.scores(music(20 * 150 * 128), RATE_HZ)
    assert sizes == 20 * [3 * 64 * 16]


def test_other_sample_rates_are_resampled(tagger: Tagger) -> None:
    waveform = music(2 * WINDOW_SAMPLES)
    at_double_rate = np.repeat(waveform, 2)
    assert tagger.scores_over_time(at_double_rate, 2 * RATE_HZ).shape[0] == 2


@pytest.mark.parametrize(
    ("waveform", "why"),
    [
        (np.zeros((2, 8000), np.float32), "must be mono"),
        (np.zeros(0, np.float32), "must be mono"),
        (np.zeros(8000, np.int16), "must be floating point"),
        (np.full(8000, np.nan, np.float32), "not finite"),
        (np.full(8000, 1e30, np.float64), "too loud by far"),
    ],
)
def test_what_is_no_waveform_is_refused(tagger: Tagger, waveform: np.ndarray, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        tagger.scores(waveform, RATE_HZ)


def test_silence_has_finite_scores(tagger: Tagger) -> None:
    assert np.isfinite(tagger.scores(np.zeros(8000, np.float32), RATE_HZ)).all()


def test_the_front_door(tmp_path: Path) -> None:
    make_bundle(tmp_path / "run" / "best")
    assert mstag.load_tagger(tmp_path / "run", device="cpu").tag_names == TAGS
    with pytest.raises(ValueError, match="not a trained model"):
        mstag.load_tagger(tmp_path / "none")
    with pytest.raises(ValueError, match="auto, cpu or cuda"):
        mstag.load_tagger(tmp_path / "run", device="abacus")
