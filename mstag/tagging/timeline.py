"""Which parts of a piece the network hears to say what a stretch of it sounds like.

A piece is cut into stretches of equal length from its start; what is left is the last one, or,
if it is less than a tenth of a stretch, part of the one before.
The network hears C frames at once, seconds of them, and knows nothing shorter:

- a stretch no longer than that gets the score of the C frames around its middle, moved inwards
  where they would reach over an end of the piece. Neighbouring rows then hear mostly the same:
  a row tells what it sounds like *around* that time, blurred over C frames;
- a longer stretch gets the mean over as few chunks of C frames as cover it.

A stretch in which no sample reaches half a step of 16-bit audio is not heard at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mstag.data.audio import SILENT_BELOW
from mstag.data.clip_windows import Piece
from mstag.data.features import SILENCE, as_stored
from mstag.models.predict import chunk_starts

Chunk = NDArray[np.float16]

SMALL_REST = 0.1
"""Of a stretch: mp3 files, for one, last some hundredths of a second longer than their music."""


class Timeline:
    """Cuts chunks for stretches while a spectrogram comes in, piece by piece.

    Args:
        every_frames: length of a stretch; need not be whole.
        chunk_frames: C.
        hop_length: samples from one frame to the next.

    Attributes:
        num_stretches: how many there are, in the end.
    """

    def __init__(self, every_frames: float, chunk_frames: int, hop_length: int) -> None:
        assert every_frames >= 2, f"stretches of {every_frames} frames"
        self.num_stretches = 0
        self._every = every_frames
        self._chunk = chunk_frames
        self._hop = hop_length
        self._mel: Chunk = np.empty((0, 0), np.float16)
        self._sounds = np.empty(0, bool)
        self._first = 0  # frame of the piece that the buffers start with

    def feed(self, piece: Piece) -> Iterator[tuple[int, Chunk]]:
        """Takes the next piece; yields (number of the stretch, chunk) as far as is known."""
        new = as_stored(piece.mel)
        self._mel = np.concatenate([self._mel, new], axis=1) if self._mel.size else new
        self._sounds = np.concatenate([self._sounds, _sounding(piece, self._hop)])
        end = self._first + self._mel.shape[1]
        while max(span := self._span(self.num_stretches)) <= end:
            starts = self._starts(*span)
            if starts[-1] + self._chunk > end:
                break
            yield from self._next(span, starts)
        needed = min(self._span(self.num_stretches)[0], end) - self._chunk
        drop = max(0, needed - self._first)
        self._mel, self._sounds = self._mel[:, drop:], self._sounds[drop:]
        self._first += drop

    def finish(self, num_samples: float) -> Iterator[tuple[int, Chunk]]:
        """The rest, of a piece of so many samples."""
        end = self._first + self._mel.shape[1]
        if end < self._chunk:
            missing = ((0, 0), (0, self._chunk - end))
            self._mel = np.pad(self._mel, missing, constant_values=np.float16(SILENCE))
        every_samples = self._every * self._hop
        total = max(1, math.ceil(num_samples / every_samples - SMALL_REST))
        while self.num_stretches < total:
            start, stop = self._span(self.num_stretches)
            start = min(start, end - 1)
            span = start, max(start + 1, min(stop, end))
            last = max(0, end - self._chunk)
            yield from self._next(span, [min(at, last) for at in self._starts(*span)])

    def _next(self, span: tuple[int, int], starts: list[int]) -> Iterator[tuple[int, Chunk]]:
        number = self.num_stretches
        self.num_stretches += 1
        if self._sounds[span[0] - self._first : span[1] - self._first].any():
            for start in starts:
                at = start - self._first
                yield number, self._mel[:, at : at + self._chunk]

    def _span(self, number: int) -> tuple[int, int]:
        """First frame of a stretch, and the one behind its last."""
        return round(number * self._every), round((number + 1) * self._every)

    def _starts(self, start: int, stop: int) -> list[int]:
        """Where the chunks of a stretch start, if the piece does not end too early."""
        length = stop - start
        if length <= self._chunk:
            return [max(0, start + (length - self._chunk) // 2)]
        return [start + at for at in chunk_starts(length, self._chunk)]


def _sounding(piece: Piece, hop_length: int) -> NDArray[np.bool_]:
    """Of each frame: whether one of the samples that it stands for is no silence."""
    num_frames = piece.mel.shape[1]
    loud = np.abs(piece.heard[: num_frames * hop_length]) >= SILENT_BELOW
    padded = np.zeros((num_frames, hop_length), bool)
    padded.reshape(-1)[: len(loud)] = loud
    return np.asarray(padded.any(axis=1), bool)
