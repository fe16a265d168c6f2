"""File -> waveform: decoding in blocks, mixing to mono, resampling.

Waveforms are float32 arrays of shape (num_samples,), nominally within -1 to 1. What a file
holds less than it promises is never passed over in silence: :attr:`AudioReader.truncated`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from mstag.data import headers
from mstag.data.audio_bytes import open_regular, stream_of, stream_of_bytes, unreadable
from mstag.data.decoders import Decoder, joined
from mstag.data.ffmpeg import FfmpegDecoder
from mstag.data.quick_mp3 import QuickMp3Decoder
from mstag.data.resampling import Waveform, resample
from mstag.data.sndfile import SndfileDecoder

BLOCK_S = 64.0
"""Seconds decoded at a time; a clip that is not longer comes as one block."""
LEAST_SHARE = 0.5
"""A file of which less than this share can be decoded is not used."""
LOUDEST = 2.0**32
"""Above this, a sample is damage: integers that someone stored as floats stay below."""
SILENT_BELOW = 2.0**-16
"""Half a step of 16-bit audio: what lies below it was rounded to zero before."""


class AudioReader:
    """A stretch of an audio file, decoded block by block: ten hours never sit in memory.

    Use it in a ``with`` statement, and go through :meth:`blocks` once.

    Attributes:
        rate_hz: the file's own sample rate.
        duration_s: length of the stretch as the file's header or the caller promises; None:
            not known before decoding.
        truncated: fewer samples came than were promised; known when the blocks have ended.
        decoded_s: length of what came; known when the blocks have ended.
    """

    def __init__(self, decoder: Decoder, start_s: float, duration_s: float | None) -> None:
        self.rate_hz = decoder.rate_hz
        self.truncated = False
        self.decoded_s = 0.0
        self._decoder = decoder
        self._start_s = start_s
        self._asked_s = duration_s
        self._start = round(start_s * self.rate_hz)
        self._limit = None if duration_s is None else round(duration_s * self.rate_hz)
        promised = self._promise()
        promised = self._limit if promised is None else promised
        self.duration_s = None if promised is None else promised / self.rate_hz

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._decoder.close()

    def blocks(self) -> Iterator[Waveform]:
        """The samples at the file's own rate, channels averaged.

        Yields:
            Waveforms of shape (num_samples,), C-contiguous, finite, of at most ``BLOCK_S``
            seconds; at least one sample in all.

        Raises:
            ValueError: no samples, samples that are not sound, or (at the end) less than half
                of what was promised; the message says which, without the path.
        """
        if self._start:
            self._decoder.seek(self._start)
        block = int(BLOCK_S * self.rate_hz)
        num_frames = 0
        while self._limit is None or num_frames < self._limit:
            wanted = block if self._limit is None else min(block, self._limit - num_frames)
            try:
                waveform = self._decoder.read(wanted)
            except OSError as error:
                raise unreadable(error) from None
            if len(waveform):
                _require_sound(waveform)
                num_frames += len(waveform)
                yield waveform
            if len(waveform) < wanted:
                break
        self.decoded_s = num_frames / self.rate_hz
        self._judge(num_frames)

    def _promise(self) -> int | None:
        """Frames that the file's header promises of the stretch; None: it does not say."""
        if self._decoder.promised_frames is None:
            return None
        rest = max(self._decoder.promised_frames - self._start, 0)
        return rest if self._limit is None else min(rest, self._limit)

    def _judge(self, num_frames: int) -> None:
        """Says whether ``num_frames`` are what was promised; see :meth:`blocks`."""
        promised = self._promise() or 0
        if num_frames + self._decoder.slack_frames >= promised:
            promised = num_frames
        if self._limit is not None:
            # What tables say of durations is rounded, by some to whole seconds.
            slack = max(0.5 * self.rate_hz, 0.02 * self._limit)
            if num_frames + slack < self._limit:
                promised = self._limit
        if num_frames < LEAST_SHARE * promised:
            raise ValueError(
                f"only {num_frames / self.rate_hz:.1f} of {promised / self.rate_hz:.1f} s can be "
                "decoded (cut off or damaged)"
            )
        if not num_frames:
            where = f" after {self._start_s:g} s" if self._start_s else ""
            raise ValueError(f"holds no audio{where}")
        ended = self._limit is None or num_frames < self._limit
        self.truncated = num_frames < promised or (ended and self._decoder.damaged)


def open_audio(
    source: Path | bytes, *, start_s: float = 0.0, duration_s: float | None = None
) -> AudioReader:
    """Opens audio to be read in blocks; see :class:`AudioReader`.

    Args:
        source: a file, or the bytes of one.
        start_s: where to start, in seconds.
        duration_s: how much to read, in seconds; None: to the end.

    Raises:
        ValueError: not a file, empty, or not audio; the message says which, without the path.
    """
    if not (math.isfinite(start_s) and start_s >= 0):
        raise ValueError(f"start_s must be a time from 0, not {start_s}")
    if duration_s is not None and not (math.isfinite(duration_s) and duration_s > 0):
        raise ValueError(f"duration_s must be above 0, not {duration_s}")
    if isinstance(source, bytes):
        stream = stream_of_bytes(source)
    else:
        descriptor, num_bytes = open_regular(source)
        head = os.pread(descriptor, headers.HEAD_BYTES, 0)
        if headers.kind_of(head) == "mp3":
            return AudioReader(QuickMp3Decoder(descriptor, num_bytes, head), start_s, duration_s)
        stream = stream_of(descriptor, num_bytes)
    try:
        kind = headers.kind_of(stream.read(headers.HEAD_BYTES))
        if kind in headers.FFMPEG_KINDS:
            return AudioReader(FfmpegDecoder(stream, kind), start_s, duration_s)
        return AudioReader(SndfileDecoder(stream, kind), start_s, duration_s)
    except OSError as error:
        stream.close()
        raise unreadable(error) from None
    except BaseException:
        stream.close()
        raise


def load_audio(
    source: Path | bytes,
    sample_rate_hz: int,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> Waveform:
    """Decodes audio as a whole, averages its channels and resamples it.

    Args:
        source: a file, or the bytes of one.
        sample_rate_hz: rate of the result.
        start_s: where to start, in seconds.
        duration_s: how much to read, in seconds; None: to the end.

    Returns:
        Waveform of shape (num_samples,), at least one sample.

    Raises:
        ValueError: see :func:`open_audio` and :meth:`AudioReader.blocks`.
    """
    waveform, file_rate_hz = decode(source, start_s=start_s, duration_s=duration_s)
    return resample(waveform, file_rate_hz, sample_rate_hz)


def decode(
    source: Path | bytes, *, start_s: float = 0.0, duration_s: float | None = None
) -> tuple[Waveform, int]:
    """Decodes audio to mono at its own sample rate; see :func:`load_audio`."""
    with open_audio(source, start_s=start_s, duration_s=duration_s) as audio:
        return joined(list(audio.blocks())), audio.rate_hz


def is_silent(waveform: Waveform) -> bool:
    """Whether no sample reaches half a step of 16-bit audio."""
    # A few samples tell of most music that it is none.
    return not any((np.abs(some) >= SILENT_BELOW).any() for some in (waveform[::97], waveform))


def _require_sound(waveform: Waveform) -> None:
    # One pass, and no array of its own, for all that is sound: each square is below the sum.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.dot(waveform, waveform) < LOUDEST**2:
            return
    low, high = float(waveform.min()), float(waveform.max())
    if low > -LOUDEST and high < LOUDEST:
        return
    if np.isfinite(low) and np.isfinite(high):
        raise ValueError(f"holds samples as large as {max(-low, high):.1g}, which are no sound")
    raise ValueError("holds samples that are not finite numbers")
