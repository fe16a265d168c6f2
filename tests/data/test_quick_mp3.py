from __future__ import annotations

from pathlib import Path

import hostile_audio
import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import CLIP, MTT, needs_mtt

from mstag.data import quick_mp3
from mstag.data.audio import decode, open_audio
from mstag.data.decoders import LOSSY_SLACK_FRAMES


def both_ways(path: Path) -> list[tuple[str, np.ndarray | None]]:
    """What the short way (a file) and the careful one (its bytes) make of the same content."""
    found: list[tuple[str, np.ndarray | None]] = []
    for source in (path, path.read_bytes()):
        try:
            with open_audio(source) as reader:
                waveform = np.concatenate(list(reader.blocks()))
            found.append((f"truncated {reader.truncated}, {reader.rate_hz} Hz", waveform))
        except ValueError as error:
            found.append((str(error), None))
    return found


@needs_mtt
def test_the_real_clip_is_decoded_the_short_way_to_the_same_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a sound file needs no careful decoder")

    careful, rate_hz = decode((MTT / CLIP).read_bytes())
    monkeypatch.setattr(quick_mp3, "SndfileDecoder", refuse)
    quick, quick_rate_hz = decode(MTT / CLIP)
    assert rate_hz == quick_rate_hz == 16000 and np.array_equal(quick, careful)
    expected, _ = sf.read(MTT / CLIP, dtype="float32")
    assert np.array_equal(quick, expected)


@settings(max_examples=60, deadline=None)
@given(
    start=st.floats(0, 1),
    length=st.integers(0, 3000),
    wound=st.sampled_from(["cut", "remove", "zero", "garbage"]),
    repeat=st.integers(1, 3),
)
def test_damage_is_found_by_the_short_way_too(
    tmp_path_factory: pytest.TempPathFactory, start: float, length: int, wound: str, repeat: int
) -> None:
    content = bytearray(MP3)
    for number in range(repeat):
        at = int(start * (len(content) - 1) * (number + 1) / repeat)
        if wound == "cut":
            del content[max(at, 1) :]
        elif wound == "remove":
            del content[at : at + length]
        else:
            rng = np.random.default_rng(length)
            new = bytes(length) if wound == "zero" else rng.bytes(length)
            content[at : at + length] = new[: max(0, len(content) - at)]
    path = tmp_path_factory.mktemp("mp3") / "a.mp3"
    path.write_bytes(content or b"x")
    (quick, heard), (careful, expected) = both_ways(path)
    if expected is None or heard is None:
        assert quick == careful
        return
    assert abs(len(heard) - len(expected)) <= LOSSY_SLACK_FRAMES
    if len(heard) < 6 * 16000 - 2 * LOSSY_SLACK_FRAMES:
        assert quick == careful, "of so short a rest, both say that it is one"


def test_a_careful_decoder_that_fails_closes_the_file_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("cannot be read: input/output error")

    path = tmp_path / "a.mp3"
    path.write_bytes(MP3)
    monkeypatch.setattr(quick_mp3, "SndfileDecoder", refuse)
    num_open = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ValueError, match="input/output"):
        decode(path, start_s=1.0)
    assert len(list(Path("/proc/self/fd").iterdir())) == num_open


MP3 = hostile_audio.mp3(hostile_audio.noise(6.0, 16000), 16000)
