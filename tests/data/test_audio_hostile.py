from __future__ import annotations

import functools
import os
import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_audio
import numpy as np
import pytest
from hostile_audio import HAS_AV, Expected, encoded, make_hostile, mp3, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from mstag.data import audio_bytes
from mstag.data.audio import is_silent, open_audio
from mstag.data.quick_mp3 import QuickMp3Decoder

LONGEST_S = 20.0
"""A file of a few seconds that takes longer hangs (they take 0.1 s)."""


def outcome(path: Path | bytes) -> tuple[str, str, float]:
    """(outcome, reason, seconds of sound) of a file."""
    started = time.monotonic()
    num_samples, silent = 0, True
    try:
        with open_audio(path) as audio:
            for block in audio.blocks():
                assert block.dtype == np.float32 and block.ndim == 1 and len(block)
                assert np.isfinite(block).all()
                num_samples += len(block)
                silent = silent and is_silent(block)
    except ValueError as error:
        return "skipped", str(error), 0.0
    finally:
        assert time.monotonic() - started < LONGEST_S
    if silent:
        return "skipped", "silent", 0.0
    return "flagged" if audio.truncated else "packed", "", num_samples / audio.rate_hz


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Expected]]:
    folder = tmp_path_factory.mktemp("hostile")
    return folder, make_hostile(folder)


@pytest.mark.parametrize("large", [False, True], ids=["in memory", "as large files"])
def test_hostile_files_are_used_flagged_or_refused(
    hostile: tuple[Path, list[Expected]], monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    folder, files = hostile
    assert len(files) >= 40
    if large:
        monkeypatch.setattr(audio_bytes, "IN_MEMORY_BYTES", 0)
    wrong = []
    for file in files:
        got, reason, _ = outcome(folder / file.path)
        assert file.path not in reason and str(folder) not in reason
        assert reason.isprintable()
        # mp3 is repaired in memory only: behind damage, large files end.
        spared = large and file.path in ("garbage-before.mp3", "zeros-inside.mp3", "empty.mp3")
        if not spared and (got != file.outcome or not re.search(file.reason, reason)):
            wrong.append((file, got, reason))
    assert not wrong


def test_what_is_there_of_a_damaged_file_is_used() -> None:
    clean = mp3(noise(10))
    damaged = hostile_audio.broken(clean, 0.3, 9000)
    got, _, seconds = outcome(damaged)
    assert got == "flagged" and seconds == pytest.approx(10 * (1 - 9000 / len(clean)), abs=0.3)
    flac = encoded(noise(10), "FLAC")
    got, _, seconds = outcome(hostile_audio.cut(flac, 0.6))
    assert got == "flagged" and seconds == pytest.approx(6, abs=0.4)
    wav = encoded(noise(10))
    got, _, seconds = outcome(hostile_audio.cut(wav, 0.6))
    assert got == "flagged" and seconds == pytest.approx(6, abs=0.01)


def test_a_pipe_that_takes_a_files_place_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    regular = tmp_path / "regular"
    regular.write_bytes(b"x")
    status = regular.stat()
    monkeypatch.setattr(Path, "stat", lambda self, **_: status)  # as it was a moment ago
    assert outcome(pipe)[:2] == ("skipped", "cannot be read: it is a named pipe, not a file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.wav"
    path.write_bytes(encoded(noise()))
    path.chmod(0)
    assert outcome(path)[:2] == ("skipped", "cannot be read: permission denied")


@pytest.mark.parametrize("make", [mp3, encoded], ids=["mp3", "wav"])
def test_a_disk_that_fails_in_the_middle_is_no_end_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[np.ndarray], bytes]
) -> None:
    path = tmp_path / "clip"
    path.write_bytes(make(noise(20)))
    monkeypatch.setattr(audio_bytes, "IN_MEMORY_BYTES", 0)
    with open_audio(path) as audio:
        # A folder takes the place of the file's descriptor: what comes next is a real EISDIR.
        decoder: Any = audio._decoder
        quick = isinstance(decoder, QuickMp3Decoder)
        other = os.open(tmp_path, os.O_RDONLY)
        for read in (
            [decoder._descriptor, decoder._file.name] if quick else [decoder._stream.raw.fileno()]
        ):
            os.dup2(other, read)
        with pytest.raises(ValueError, match="cannot be read: is a directory"):
            list(audio.blocks())
        os.close(other)


def test_a_header_cannot_order_memory() -> None:
    content = bytearray(encoded(np.zeros((4000, 8), np.float32) + 0.1, "FLAC"))
    fields = int.from_bytes(content[18:26], "big") & ((1 << 44) - (1 << 36))
    content[18:26] = (655_350 << 44 | fields | 2**36 - 1).to_bytes(8, "big")
    tracemalloc.start()
    got, reason, _ = outcome(bytes(content))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert got == "skipped" and re.match(r"only 0\.0 of \d+\.\d s", reason)
    assert peak_bytes < 120e6  # 64 s of such audio are 1.3 GB


def test_what_looks_like_a_million_frames_does_not_take_an_hour() -> None:
    assert outcome(b"\xff\xfb\x90\x44" * 1_000_000)[0] == "skipped"


def test_a_wav_of_many_chunks_does_not_take_long_and_one_that_repeats_itself_ends() -> None:
    chunks = struct.pack("<4sI", b"junk", 0) * 500_000
    assert outcome(b"RIFF\xff\xff\xff\xffWAVE" + chunks)[0] == "skipped"


def test_impossible_places_in_a_stream_raise_nothing() -> None:
    stream = audio_bytes.BytesStream(b"abc")
    stream.seek(2)
    assert stream.seek(-9) == 2


@functools.cache
def valid(kind: str) -> bytes:
    """A short valid file."""
    if kind == "mp3":
        return mp3(noise(1.0))
    if kind == "m4a":
        return hostile_audio.front_loaded(hostile_audio.m4a(noise(1.0, 44100)))
    if kind == "aac":
        return hostile_audio.m4a(noise(1.0, 44100), kind="adts")
    subtypes = {"opus": ("OGG", "OPUS"), "ogg": ("OGG", "VORBIS"), "float": ("WAV", "FLOAT")}
    form, subtype = subtypes.get(kind, (kind, ""))
    return encoded(noise(1.0), form, **({"subtype": subtype} if subtype else {}))


KINDS = ["WAV", "float", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "ogg", "opus", "mp3", "MP3"]
KINDS += ["m4a", "aac"] if HAS_AV else []

damage = st.tuples(
    st.sampled_from(["change", "remove", "insert", "zero", "cut"]),
    # Headers are small: half of the damage is there.
    st.one_of(st.integers(0, 200), st.floats(0, 1)),
    st.binary(min_size=1, max_size=64),
    st.sampled_from([1, 1, 20, 400]),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(st.lists(damage, min_size=1, max_size=4))
def test_any_damage_gives_samples_or_a_reason(
    kind: str, wounds: list[tuple[str, float, bytes, int]]
) -> None:
    content = valid(kind)
    for how, where, new, times in wounds:
        start = where if isinstance(where, int) else int(where * len(content))
        bytes_ = new * times
        behind = start + (0 if how == "insert" else len(bytes_))
        middle = {"remove": b"", "zero": bytes(len(bytes_)), "cut": b""}.get(how, bytes_)
        content = content[:start] + middle + (b"" if how == "cut" else content[behind:])
    outcome(content)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(
        [b"RIFF", b"fLaC", b"OggS\0\2", b"ID3", b"\xff\xfb\x90", b"FORM", b"caff", b".snd"]
    ),
    st.binary(max_size=3000),
)
def test_any_bytes_behind_a_known_start_give_a_reason_or_samples(start: bytes, rest: bytes) -> None:
    outcome(start + rest)
