from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from mstag import config
from mstag.data import audio
from mstag.data.audio import open_audio
from mstag.data.clip_windows import clip_windows, open_stretch
from mstag.data.features import LogMel, Window, windows

FEATURES = config.FeatureConfig(
    sample_rate_hz=4000, n_fft=256, hop_length=100, n_mels=16, num_frames=30
)
LOG_MEL = LogMel(FEATURES)


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    # 16-bit steps: what a wav file holds exactly.
    drawn = np.random.default_rng(seed).integers(-8000, 8000, num_samples)
    return (drawn / 32768).astype(np.float32)


def in_windows(path: Path, **stretch: float) -> list[Window]:
    with open_stretch(path, **stretch) as (reader, _):  # type: ignore[arg-type]
        return list(clip_windows(reader, LOG_MEL))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60_000), st.sampled_from([1.0, 2.5, 7.0]))
def test_a_stream_of_blocks_gives_the_windows_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, num_samples: int, block_s: float
) -> None:
    path = tmp_path_factory.mktemp("clip") / "a.wav"
    waveform = noise(num_samples)
    waveform[0] = 0.25  # a single sample may be drawn as 0, and silence is refused
    sf.write(path, waveform, 4000)
    whole = windows(LOG_MEL(waveform), 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "BLOCK_S", block_s)
        found = in_windows(path)
    assert [(w.start_frame, w.padded_frames) for w in found] == [
        (w.start_frame, w.padded_frames) for w in whole
    ]
    for one, other in zip(found, whole, strict=True):
        assert np.allclose(one.mel, other.mel, atol=1e-3)


def test_resampled_blocks_sound_like_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    sf.write(path, noise(200_000), 16000)
    whole = in_windows(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "BLOCK_S", 2.0)
        found = in_windows(path)
    assert len(found) == len(whole) == 17
    for one, other in zip(found, whole, strict=True):
        # Of a frame or two at the very end, the filter's tail may differ.
        assert np.allclose(one.mel[:, :25], other.mel[:, :25], atol=1e-2)


def test_the_centre_alone_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    waveform = noise(40_000)
    sf.write(path, waveform, 4000)
    centre_s = 30 * 100 / 4000
    with open_stretch(path, centre_s=centre_s) as (reader, start_s):
        (window,) = clip_windows(reader, LOG_MEL)
    assert start_s == pytest.approx((10 - centre_s) / 2)
    at = round(start_s * 4000)
    (expected,) = windows(LOG_MEL(waveform[at : at + 3000]), 30)
    assert np.array_equal(window.mel, expected.mel) and window.padded_frames == 0
    with open_stretch(path, start_s=9.5, centre_s=centre_s) as (reader, start_s):
        (short,) = clip_windows(reader, LOG_MEL)
    assert start_s == 9.5 and short.padded_frames == 9


def test_silent_windows_are_left_out_and_a_silent_clip_is_refused(tmp_path: Path) -> None:
    waveform = np.concatenate([noise(3000), np.zeros(6000, np.float32), noise(3000)])
    sf.write(tmp_path / "a.wav", waveform, 4000)
    assert [w.start_frame for w in in_windows(tmp_path / "a.wav")] == [0, 90]
    sf.write(tmp_path / "b.wav", np.zeros(5000), 4000)
    with (
        open_audio(tmp_path / "b.wav") as reader,
        pytest.raises(ValueError, match="silent"),
    ):
        list(clip_windows(reader, LOG_MEL))
