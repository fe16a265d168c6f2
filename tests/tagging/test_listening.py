"""A file is heard as packing hears it, and scored as eval.py scores it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_tagger import FEATURES, LONGER, TAGS, WINDOW_SAMPLES, make_bundle, make_wav, music

from mstag.config import Config, ShardsConfig
from mstag.data import audio
from mstag.data.clips import Catalogue, Clip, TagCount
from mstag.data.stream import ShardLoader
from mstag.models.predict import average_per_clip, predict
from mstag.tagging.listening import listen
from mstag.tagging.tagger import Tagger
from shard_tools.pack import pack

RATE_HZ = FEATURES.sample_rate_hz
FRAME_S = FEATURES.hop_length / RATE_HZ


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    return Tagger.load(make_bundle(tmp_path_factory.mktemp("bundle")), "cpu")


def with_a_silent_window(path: Path) -> Path:
    waveform = music(round(5.7 * WINDOW_SAMPLES))
    waveform[WINDOW_SAMPLES : round(2.5 * WINDOW_SAMPLES)] = 0
    soundfile.write(path, waveform, RATE_HZ, subtype="FLOAT")
    return path


@pytest.mark.parametrize("chunk_frames", [0, 64])
def test_scores_are_those_of_evaluation_on_the_packed_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_frames: int
) -> None:
    """Through real shards: decoded in blocks, resampled, a silent window left out."""
    features = LONGER if chunk_frames else FEATURES
    bundle = make_bundle(tmp_path / "bundle", features=features, chunk_frames=chunk_frames)
    tagger = Tagger.load(bundle, "cpu")
    monkeypatch.setattr(audio, "BLOCK_S", 2.0)
    data = tmp_path / "data"
    make_wav(data / "short.wav", 0.6)
    with_a_silent_window(data / "silent.wav")
    fast = music(40_000, seed=3)
    soundfile.write(data / "fast.flac", fast, 22_050)
    names = ["short.wav", "silent.wav", "fast.flac"]
    clips = [Clip(name, name, frozenset(TAGS[:1]), split="test") for name in names]
    tags = [TagCount(tag, 1) for tag in TAGS]
    settings = Config(features=features, shards=ShardsConfig(clips_per_shard=64))
    catalogue = Catalogue("x", tags, clips, "by hand", [])
    pack(settings, catalogue, data, tmp_path / "shards", num_workers=1, progress=False)
    loader = ShardLoader(tmp_path / "shards", "test", batch_size=4, shuffle=False, num_workers=0)
    evaluated = average_per_clip(predict(tagger.bundle.model, loader, "cpu"))
    by_id = dict(zip(evaluated.ids, evaluated.scores, strict=True))
    assert sorted(by_id) == sorted(names)
    for name in names:
        heard = listen(tagger, data / name, every_s=0.5)
        np.testing.assert_allclose(heard.scores, by_id[name], atol=1e-6)
        rest = dict(tagger.tag(data / name))
        assert [rest[tag] for tag in TAGS] == pytest.approx(list(by_id[name]), abs=1e-6)


def test_rows_over_time_by_hand(tagger: Tagger, tmp_path: Path) -> None:
    path = make_wav(tmp_path / "a.wav", 3.0)
    heard = listen(tagger, path, every_s=32 * FRAME_S)
    assert heard.over_time is not None and heard.over_time.shape == (6, len(TAGS))
    mel = tagger.log_mel(music(3 * WINDOW_SAMPLES)).astype(np.float16)
    # 193 frames; 64 around the middles 16, 48, ... of stretches of 32, moved inwards.
    with torch.inference_mode():
        for row, start in zip(heard.over_time, [0, 16, 48, 80, 112, 129], strict=True):
            chunk = torch.from_numpy(mel[:, start : start + 64]).float()[None, None]
            expected = torch.sigmoid(tagger.bundle.model(chunk))[0]
            np.testing.assert_allclose(row, expected, atol=1e-6)


@pytest.mark.parametrize("every_windows", [0.25, 1.0, 2.5])
def test_silent_stretches_have_no_scores(
    tagger: Tagger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_windows: float
) -> None:
    monkeypatch.setattr(audio, "BLOCK_S", 2.0)
    path = with_a_silent_window(tmp_path / "a.wav")
    heard = listen(tagger, path, every_s=every_windows * FEATURES.num_frames * FRAME_S)
    assert heard.over_time is not None
    silent = np.isnan(heard.over_time).all(axis=1)
    expected = {0.25: range(4, 10), 1.0: range(1, 2), 2.5: range(0)}[every_windows]
    assert np.flatnonzero(silent).tolist() == list(expected)
    assert np.isfinite(heard.over_time[~silent]).all()
    whole = listen(tagger, path)
    assert whole.over_time is None
    assert np.array_equal(whole.scores, heard.scores)


def test_silence_and_damage_are_said(tagger: Tagger, tmp_path: Path) -> None:
    path = tmp_path / "silent.wav"
    soundfile.write(path, np.zeros(50_000), RATE_HZ)
    with pytest.raises(ValueError, match="is silent"):
        listen(tagger, path, every_s=1.0)
    whole = make_wav(tmp_path / "a.wav", 4.0)
    assert not listen(tagger, whole).truncated
    cut = whole.read_bytes()[: round(0.8 * whole.stat().st_size)]
    heard = listen(tagger, cut)
    assert heard.truncated
    assert heard.duration_s == pytest.approx(0.8 * 4 * FEATURES.num_frames * FRAME_S, abs=0.1)


def test_of_a_long_file_no_scores_are_kept_but_their_sum(
    tagger: Tagger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would hold on to the memory of the threads that they come from: 120 MB an hour."""
    monkeypatch.setattr(audio, "BLOCK_S", 2.0)
    path = make_wav(tmp_path / "a.wav", 30)
    alive = weakref.WeakSet[Future[np.ndarray]]()
    most = 0

    def submit(chunks: Sequence[np.ndarray]) -> Future[np.ndarray]:
        nonlocal most
        future: Future[np.ndarray] = Future()
        future.set_result(tagger.score_chunks(chunks))
        alive.add(future)
        most = max(most, len(alive))
        return future

    heard = listen(tagger, path, submit=submit)
    assert most <= 2
    np.testing.assert_allclose(heard.scores, listen(tagger, path).scores, atol=1e-6)
