"""What audio files say about themselves: their kind, and how much there should be of them.

libsndfile reads as far as a file goes and keeps silent about what its header promised; hence
these few lines per format, written from the public descriptions of the formats.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

HEAD_BYTES = 4096
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1_000, 768_000
MAX_CHANNELS = 64

_MAX_CHUNKS = 1000
"""Chunks of a file that are looked through for the samples (real files: less than 20)."""
_UNKNOWN_SIZE = 0x7FFF_0000
"""From here on, a size of 32 bits is what programs write when they cannot go back to fill it in."""
_OGG_PAGE_BYTES = 27 + 255 + 255 * 255

_STARTS = {
    b"RIFF": "wav",
    b"RIFX": "wav",
    b"RF64": "wav",
    b"riff": "w64",
    b"FORM": "aiff",
    b".snd": "au",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"caff": "caf",
    b"ID3": "mp3",
    b"\x30\x26\xb2\x75": "wma",
    b"\x1a\x45\xdf\xa3": "webm",
}
FFMPEG_KINDS = frozenset(["m4a", "aac", "wma", "webm"])
"""What libsndfile does not read and FFmpeg does."""

_W64_RIFF_TAIL = bytes.fromhex("2e91cf11a5d628db04c10000")
_W64_DATA = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")

_NOT_AUDIO = {
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"BM": "an image",
    b"II*\0": "an image",
    b"MM\0*": "an image",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "an archive; unpack it first",
    b"\x1f\x8b": "an archive; unpack it first",
    b"Rar!": "an archive; unpack it first",
    b"7z\xbc\xaf": "an archive; unpack it first",
    b"MThd": "a MIDI score, which holds notes and no sound",
    b"\x00\x05\x16\x07": "a side file of macOS (AppleDouble), not the music itself",
    b"\x7fELF": "a program",
    b"MZ": "a program",
}


def kind_of(head: bytes) -> str:
    """The kind of audio that a file starts like ("wav", "mp3", ...); "" if like none."""
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    if head[4:8] == b"ftyp":
        return "m4a"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        # Both begin with a run of ones; AAC has no layer where MPEG audio has one of three.
        return "mp3" if head[1] & 0x06 else "aac"
    return ""


def not_audio(head: bytes) -> str | None:
    """What the beginning of a file shows it to be, in words, if that is no audio."""
    for start, name in _NOT_AUDIO.items():
        if head.startswith(start):
            return name
    if not head.strip(b"\0"):
        return "nothing but zeros"
    text = head.decode("utf-8", "replace").lstrip("\ufeff").lstrip()
    if text[:200].lower().startswith(("<!doctype html", "<html", "<head", "<?xml")):
        return "a web page (a download that failed?)"
    odd = sum(not (c.isprintable() or c in "\r\n\t") or c == "\ufffd" for c in text)
    # One letter may be cut at the end of what was read.
    return "text" if odd <= 1 and len(text) > 3 else None


def require_plausible(rate_hz: int, num_channels: int) -> None:
    """Refuses what no recording has.

    Raises:
        ValueError: the sample rate or the number of channels cannot be right.
    """
    if not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ:
        raise ValueError(
            f"its header claims {rate_hz} samples a second, which cannot be right "
            f"({LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} can)"
        )
    if not 1 <= num_channels <= MAX_CHANNELS:
        raise ValueError(
            f"its header claims {num_channels} channels, which cannot be right "
            f"(1 to {MAX_CHANNELS} can)"
        )


def claimed_data(stream: BinaryIO, kind: str) -> tuple[int, int] | None:
    """Where the samples start, and how many bytes of them the header claims.

    Args:
        stream: a file of this kind; its position is changed.
        kind: see :func:`kind_of`.

    Returns:
        (offset, bytes); None: the header does not say, or the kind has no such claim. 0 bytes:
        the place for the number was never filled in, or there is nothing.
    """
    head = _at(stream, 0, 40)
    if kind == "au" and len(head) >= 12:
        start, size = struct.unpack(">II", head[4:12])
        return None if size >= _UNKNOWN_SIZE else (start, size)
    if kind == "aiff":
        return _chunk(stream, ">", b"SSND")
    if kind == "wav":
        return _chunk(stream, ">" if head[:4] == b"RIFX" else "<", b"data")
    if kind == "w64" and head[4:16] == _W64_RIFF_TAIL:
        return _w64_data(stream)
    return None


def _chunk(stream: BinaryIO, order: str, name: bytes) -> tuple[int, int] | None:
    """The data chunk of a wav (RIFF, RF64) or aiff file."""
    offset = 12
    long_size = None
    for _ in range(_MAX_CHUNKS):
        head = _at(stream, offset, 24)
        if len(head) < 8:
            return None
        size = int(struct.unpack(order + "I", head[4:8])[0])
        if head[:4] == b"ds64" and len(head) == 24:
            long_size = int(struct.unpack("<Q", head[16:24])[0])
        if head[:4] == name:
            if size >= _UNKNOWN_SIZE:
                return None if not long_size else (offset + 8, long_size)
            return offset + 8, size
        offset += 8 + size + size % 2
    return None


def _w64_data(stream: BinaryIO) -> tuple[int, int] | None:
    offset = 40
    for _ in range(_MAX_CHUNKS):
        head = _at(stream, offset, 24)
        if len(head) < 24:
            return None
        size = int(struct.unpack("<Q", head[16:24])[0])  # with these 24 bytes
        if head[:16] == _W64_DATA:
            return offset + 24, max(size - 24, 0)
        if size < 24:
            return None
        offset += (size + 7) // 8 * 8
    return None


def ogg_is_cut(stream: BinaryIO) -> bool:
    """Whether the last page of an ogg file is incomplete, or not marked as the last one."""
    size = stream.seek(0, os.SEEK_END)
    tail = _at(stream, max(0, size - 2 * _OGG_PAGE_BYTES), 2 * _OGG_PAGE_BYTES)
    page = tail.rfind(b"OggS\0")
    header = tail[page : page + 27]
    if page < 0 or len(header) < 27:
        return True
    lengths = tail[page + 27 : page + 27 + header[26]]
    whole = page + 27 + header[26] + sum(lengths) <= len(tail) and len(lengths) == header[26]
    return not (whole and header[5] & 4)


def _at(stream: BinaryIO, offset: int, num_bytes: int) -> bytes:
    stream.seek(offset)
    return stream.read(num_bytes)
