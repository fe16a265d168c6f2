"""The frames of mp3 files, where libsndfile needs help with them.

Its mpg123 guesses the length of an mp3 file that does not state it from the first frames and
the size, and stops there: a file of variable bit rate whose first frames are large would lose
its second half. And it gives up at 1 KB of garbage, however much music follows.
Header fields: ISO/IEC 11172-3 and 13818-3; the counting tags: LAME's and Fraunhofer's.
"""

from __future__ import annotations

import io
import re
from typing import BinaryIO

import numpy as np

_FULL_RATES_HZ = (44100, 48000, 32000)
_BITRATES_KBPS = {
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# Layer III of MPEG 1, 2 and 2.5; bit rates 1 to 14; sample rates 0 to 2.
_HEADER = re.compile(
    rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\x1b\x20-\x2b\x30-\x3b\x40-\x4b\x50-\x5b"
    rb"\x60-\x6b\x70-\x7b\x80-\x8b\x90-\x9b\xa0-\xab\xb0-\xbb\xc0-\xcb\xd0-\xdb"
    rb"\xe0-\xeb]",
    re.DOTALL,
)
_RUN = 3
"""Frames in a row, each where the one before says, that are no coincidence."""
_MAX_FALSE_STARTS = 50_000
"""What looks like a frame and is none, before we give up (about a second)."""
_ID3V1_BYTES = 128
_TAGS_AT_END = (b"APETAGEX", b"LYRICSBEGIN")


def after_id3(stream: BinaryIO) -> int:
    """Where the frames of a file start, behind its ID3v2 tags (with their pictures)."""
    offset = 0
    while True:
        stream.seek(offset)
        head = stream.read(10)
        if len(head) < 10 or head[:3] != b"ID3":
            return offset
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte & 0x7F
        offset += 10 + size + (10 if head[5] & 0x10 else 0)


def states_its_length(stream: BinaryIO) -> bool:
    """Whether the first frame is a tag that counts the frames (Xing, Info, VBRI)."""
    stream.seek(after_id3(stream))
    frame = stream.read(64)
    if len(frame) < 64 or not _HEADER.match(frame):
        return False
    full, mono = frame[1] & 0x08, frame[3] >> 6 == 3
    side_info = (17 if mono else 32) if full else (9 if mono else 17)
    offset = 4 + side_info
    if frame[offset : offset + 4] in (b"Xing", b"Info"):
        return bool(frame[offset + 7] & 1)
    return frame[36:40] == b"VBRI"


def is_even(content: bytes) -> bool:
    """Whether a file is whole frames of one size and kind from its start to its end.

    So are files of a constant bit rate at rates that need no padding (MagnaTagATune's); their
    length needs no guess. A small tag may follow.
    """
    frames = np.frombuffer(content, np.uint8)
    if content[-_ID3V1_BYTES:].startswith(b"TAG"):
        frames = frames[:-_ID3V1_BYTES]
    frames = frames[after_id3(io.BytesIO(content)) :]
    header = frames[:3].tobytes()
    if not _HEADER.match(header) or len(frames) % (size := _frame_bytes(header)):
        return False
    headers = frames.reshape(-1, size)[:, :3]
    return bool((headers == headers[0]).all())


def ends_in_tags(stream: BinaryIO) -> bool:
    """Whether a decoder that stopped here stopped at the tags behind the music."""
    here = stream.tell()
    stream.seek(max(0, here - 4096))
    found = stream.read(8192)
    stream.seek(here)
    return any(tag in found for tag in _TAGS_AT_END)


def reframed(content: bytes, start: int) -> tuple[bytes, bool]:
    """The frames of an mp3 file without what lies between them.

    Args:
        content: the file.
        start: where frames may begin.

    Returns:
        The frames, and whether anything lay between them (not before or behind).
    """
    runs: list[bytes] = []
    first: bytes | None = None
    end = start
    gap = False
    false_starts = 0
    while false_starts < _MAX_FALSE_STARTS and (found := _HEADER.search(content, start)):
        if first is not None and not _same_kind(found.group(), first):
            start = found.start() + 1
            false_starts += 1
            continue
        stop, num_frames = _run(content, found.start())
        if num_frames < _RUN:
            start = found.start() + 1
            false_starts += 1
            continue
        gap = gap or (bool(runs) and found.start() > end)
        first = first or found.group()
        runs.append(content[found.start() : stop])
        start = end = stop
    return b"".join(runs), gap


def _run(content: bytes, start: int) -> tuple[int, int]:
    """The end of a run of frames that follow each other, and their number."""
    header = first = content[start : start + 3]
    num_frames = 0
    while _HEADER.match(header) and _same_kind(header, first):
        start += _frame_bytes(header)
        num_frames += 1
        header = content[start : start + 3]
    return min(start, len(content)), num_frames


def _same_kind(header: bytes, other: bytes) -> bool:
    """Whether two headers agree on version, layer and sample rate."""
    return header[1] & 0xFE == other[1] & 0xFE and header[2] & 0x0C == other[2] & 0x0C


def _frame_bytes(header: bytes) -> int:
    full = bool(header[1] & 0x08)
    rate_hz = _FULL_RATES_HZ[header[2] >> 2 & 3] >> (0 if full else 1 if header[1] & 0x10 else 2)
    bits_per_s = 1000 * _BITRATES_KBPS[full][(header[2] >> 4) - 1]
    return (144 if full else 72) * bits_per_s // rate_hz + (header[2] >> 1 & 1)
