from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from shared_data import CLIP, MTT, needs_mtt

from mstag.data.audio import decode, load_audio


def tone(seconds: float = 2.0, rate_hz: int = 16000, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)


def encoded(samples: np.ndarray, rate_hz: int = 16000, kind: str = "WAV", **how: str) -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, samples, rate_hz, format=kind, **how)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_formats_are_decoded_from_bytes_and_from_files(tmp_path: Path, kind: str) -> None:
    content = encoded(tone(), kind=kind)
    path = tmp_path / "no-extension"
    path.write_bytes(content)
    waveform = load_audio(content, 11025)
    assert waveform.dtype == np.float32 and abs(len(waveform) - 22050) < 1200
    assert np.array_equal(load_audio(path, 11025), waveform)
    spectrum = np.abs(np.fft.rfft(waveform))
    assert abs(spectrum.argmax() * 11025 / len(waveform) - 440) < 2


def test_channels_are_averaged() -> None:
    stereo = np.stack([tone(), np.zeros_like(tone())], axis=1)
    waveform, _ = decode(encoded(stereo, subtype="FLOAT"))
    assert np.allclose(waveform, tone() / 2, atol=1e-6)


def test_start_and_duration_are_honoured() -> None:
    ramp = np.linspace(0, 0.9, 32000)
    waveform, rate_hz = decode(encoded(ramp, subtype="FLOAT"), start_s=0.5, duration_s=1.0)
    assert rate_hz == 16000
    assert np.allclose(waveform, ramp[8000:24000], atol=1e-6)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"This is a text, not music.\n" * 400, "cannot be decoded"),
        (b"\0" * 5000, "cannot be decoded"),
        (encoded(tone())[:40], "cannot be decoded|no audio"),
        (encoded(np.zeros(0)), "no audio"),
        (encoded(np.array([0.0, np.nan, 0.1]), subtype="FLOAT"), "not finite"),
    ],
    ids=["empty", "text", "zeros", "header cut", "no samples", "nan"],
)
def test_bad_audio_is_refused_with_its_reason(content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        load_audio(content, 11025)


def test_missing_files_and_folders_are_refused_with_their_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        load_audio(tmp_path / "none.mp3", 11025)
    with pytest.raises(ValueError, match="directory"):
        load_audio(tmp_path, 11025)
    with pytest.raises(ValueError, match="no audio after 9 s"):
        decode(encoded(tone()), start_s=9.0)


@needs_mtt
def test_the_real_clip_has_the_length_that_the_recipe_expects() -> None:
    waveform, rate_hz = decode(MTT / CLIP)
    assert rate_hz == 16000
    assert len(waveform) / rate_hz == pytest.approx(29.1, abs=0.1)
