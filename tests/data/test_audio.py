from __future__ import annotations

import builtins
import io
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import hostile_audio
import numpy as np
import pytest
import soundfile as sf
from hostile_audio import HAS_AV, make_good, mp3
from shared_data import CLIP, MTT, needs_mtt

from mstag.data import audio_bytes
from mstag.data.audio import BLOCK_S, decode, is_silent, load_audio, open_audio


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
    with pytest.raises(ValueError, match="no such file"):
        load_audio(tmp_path / "none.mp3", 11025)
    with pytest.raises(ValueError, match="folder"):
        load_audio(tmp_path, 11025)
    with pytest.raises(ValueError, match="no audio after 9 s"):
        decode(encoded(tone()), start_s=9.0)


@needs_mtt
def test_the_real_clip_has_the_length_that_the_recipe_expects() -> None:
    waveform, rate_hz = decode(MTT / CLIP)
    assert rate_hz == 16000
    assert len(waveform) / rate_hz == pytest.approx(29.1, abs=0.1)


def test_the_common_case_is_one_block_of_the_decoders_own_samples() -> None:
    content = mp3(hostile_audio.noise(29.1))
    with open_audio(content) as audio:
        (block,) = audio.blocks()
    assert np.array_equal(block, sf.read(io.BytesIO(content), dtype="float32")[0])
    assert block.dtype == np.float32 and block.flags.c_contiguous
    assert audio.duration_s is None and not audio.truncated


def test_good_files_of_every_kind_keep_their_tone(tmp_path: Path) -> None:
    files = make_good(tmp_path)
    assert len(files) >= 40
    for file in files:
        with open_audio(tmp_path / file.path) as audio:
            num_samples = sum(map(len, audio.blocks()))
        assert not audio.truncated, file.path
        seconds = num_samples / audio.rate_hz
        assert seconds == pytest.approx(hostile_audio.SECONDS, abs=0.15), file.path
        assert audio.duration_s is None or audio.duration_s == pytest.approx(seconds, abs=0.05)
        middle = load_audio(tmp_path / file.path, 11025)[2000:24050]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))) * 4 / len(middle)
        assert abs(spectrum.argmax() / 2 - hostile_audio.TONE_HZ) <= 0.5, file.path
        assert spectrum.max() == pytest.approx(hostile_audio.LEVEL, rel=0.08), file.path


def test_an_mp3_whose_first_frames_are_its_largest_is_read_to_its_end() -> None:
    # libsndfile guesses its length from the first frames, and would stop at half of it.
    rng = np.random.default_rng(0)
    samples = np.concatenate([0.2 * rng.standard_normal(3 * 44100), 0.1 * tone(17, 44100)])
    content = mp3(samples.astype(np.float32), 44100, vbr=True)
    assert len(sf.read(io.BytesIO(content))[0]) < 0.8 * len(samples)
    waveform, _ = decode(content)
    assert len(samples) <= len(waveform) < len(samples) + 4000
    late, _ = decode(content, start_s=16.0, duration_s=2.0)
    assert np.abs(late - waveform[16 * 44100 : 18 * 44100]).max() < 1e-5


LONG_S = 1200


@pytest.fixture(scope="module")
def long_signal() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal(LONG_S * 8000) * 0.1).astype(np.float32)


@pytest.mark.parametrize("in_memory", [True, False], ids=["bytes", "file"])
@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_long_file_comes_in_blocks_that_are_the_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    long_signal: np.ndarray,
    kind: str,
    in_memory: bool,
) -> None:
    path = tmp_path / "long"
    sf.write(path, long_signal, 8000, format=kind, subtype="PCM_16")
    if not in_memory:
        monkeypatch.setattr(audio_bytes, "IN_MEMORY_BYTES", 1000)
    whole, _ = sf.read(path, dtype="float32")
    place = 0
    with open_audio(path) as audio:
        assert audio.duration_s == LONG_S
        for block in audio.blocks():
            assert len(block) <= BLOCK_S * 8000
            assert np.array_equal(block, whole[place : place + len(block)])
            place += len(block)
    assert place == len(whole) and not audio.truncated


@pytest.mark.parametrize("kind", ["WAV", "MP3"])
def test_a_long_file_does_not_sit_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long_signal: np.ndarray, kind: str
) -> None:
    path = tmp_path / "long"
    how = {"subtype": "PCM_16"} if kind == "WAV" else {}
    seconds = LONG_S if kind == "WAV" else LONG_S // 3
    sf.write(path, long_signal[: seconds * 8000], 8000, format=kind, **how)
    monkeypatch.setattr(audio_bytes, "IN_MEMORY_BYTES", 1000)
    with open_audio(path):
        pass  # imports
    tracemalloc.start()
    with open_audio(path) as audio:
        num_samples = sum(map(len, audio.blocks()))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert abs(num_samples - seconds * 8000) < 4000
    assert peak_bytes < 3.5 * BLOCK_S * 8000 * 4


FORMATS = {
    "wav": lambda x: encoded(x),
    "flac": lambda x: encoded(x, kind="FLAC"),
    "aiff": lambda x: encoded(x, kind="AIFF"),
    "ogg": lambda x: encoded(x, kind="OGG"),
    "opus": lambda x: encoded(x, kind="OGG", subtype="OPUS"),
    "mp3": lambda x: mp3(x),
    "mp3 with its length": lambda x: encoded(x, kind="MP3"),
}
# Opus carries its state from packet to packet, and forgets it at a jump; see RFC 7845, 4.6.
SEEK_ERRORS = {"opus": 0.0, "mp3": 1e-5, "mp3 with its length": 1e-5, "m4a": 1e-4}
if HAS_AV:
    FORMATS["m4a"] = lambda x: hostile_audio.m4a(x, 16000)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("in_memory", [True, False], ids=["bytes", "file"])
def test_a_stretch_is_the_same_as_a_slice_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, in_memory: bool
) -> None:
    path = tmp_path / "clip"
    path.write_bytes(FORMATS[kind](hostile_audio.noise(8.0)))
    if not in_memory:
        monkeypatch.setattr(audio_bytes, "IN_MEMORY_BYTES", 100)
    whole, rate_hz = decode(path)
    for start_s, duration_s in [(0.0, 2.0), (0.7, 1.0), (3.21, 2.0), (6.5, None), (6.5, 1.8)]:
        with open_audio(path, start_s=start_s, duration_s=duration_s) as audio:
            (stretch,) = audio.blocks()
        assert not audio.truncated
        start = round(start_s * rate_hz)
        stop = None if duration_s is None else start + round(duration_s * rate_hz)
        expected = whole[start:stop]
        assert len(stretch) == len(expected)
        assert np.abs(stretch - expected).max() <= SEEK_ERRORS.get(kind, 0.0)


def test_a_shorter_rest_than_the_caller_says_is_flagged_or_refused() -> None:
    content = encoded(tone(4.0))
    for duration_s, truncated in [(3.9, False), (4.3, False), (5.0, True)]:
        with open_audio(content, duration_s=duration_s) as audio:
            assert sum(map(len, audio.blocks())) <= 4 * 16000
        assert audio.truncated is truncated, duration_s
    with pytest.raises(ValueError, match=r"only 2\.0 of 6\.0 s can be decoded"):
        decode(content, start_s=2.0, duration_s=6.0)
    with pytest.raises(ValueError, match=r"only 3\.0 of 29\.1 s"):
        decode(hostile_audio.cut(encoded(tone(29.1)), 0.1035), duration_s=29.1)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_times_that_are_none_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="start_s must be"):
        decode(encoded(tone()), start_s=value)
    with pytest.raises(ValueError, match="duration_s must be"):
        decode(encoded(tone()), duration_s=value)


def test_silence_is_below_half_a_step_of_16_bits() -> None:
    assert is_silent(np.zeros(10, np.float32)) and is_silent(np.zeros(0, np.float32))
    assert is_silent(np.full(10, -(2.0**-17), np.float32))
    assert not is_silent(np.array([0, 0, -(2.0**-16)], np.float32))


def test_loud_samples_are_no_overflow() -> None:
    # Their squares are no float32, and a product of theirs no test of being finite.
    waveform, _ = decode(encoded(np.full(9000, 2.0**31), subtype="FLOAT"))
    assert waveform.max() == np.float32(2.0**31)


def test_without_the_decoder_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_av(name: str, *rest: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(ValueError, match=r"is m4a audio, .* pip install -e \.\[m4a\]"):
        open_audio(b"\0\0\0\x20ftypM4A " + bytes(999))


def test_decoders_are_imported_only_when_needed() -> None:
    check = (
        "import sys, mstag.data.audio as a; assert 'soundfile' not in sys.modules\n"
        "try: a.open_audio(b'text, no music')\n"
        "except ValueError: print('av' in sys.modules, 'soundfile' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.skipif(not HAS_AV, reason="PyAV is not installed (pip install -e .[m4a])")
def test_a_playlist_never_opens_what_it_names(tmp_path: Path) -> None:
    secret = tmp_path / "secret.m4a"
    secret.write_bytes(hostile_audio.m4a(hostile_audio.noise(rate_hz=44100)))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{secret}\n"
    for start in ("", "\0\0\0\x20ftypM4A "):
        with pytest.raises(ValueError, match="cannot be decoded"):
            open_audio((start + playlist).encode())
