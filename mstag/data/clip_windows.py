"""A clip of an audio file -> windows of its log-mel spectrogram, in bounded memory.

A recording of ten hours is decoded, resampled and turned into windows block by block; what
comes out is what the whole would give, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mstag.data.audio import AudioReader, is_silent, open_audio
from mstag.data.features import LogMel, Window, windows
from mstag.data.resampling import Waveform, resample, resampler


@contextmanager
def open_stretch(
    path: Path,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    centre_s: float | None = None,
) -> Iterator[tuple[AudioReader, float]]:
    """Opens a clip, or its centre alone.

    Args:
        path: an audio file.
        start_s: where the clip starts in the file, in seconds.
        duration_s: how long it lasts; None: to the end.
        centre_s: of a clip longer than this, only so many seconds around its middle.

    Yields:
        The reader, and where its stretch starts in the file, in seconds.

    Raises:
        ValueError: not usable audio; the message says why, without the path.
    """
    with open_audio(path, start_s=start_s, duration_s=duration_s) as reader:
        if centre_s is None:
            yield reader, start_s
            return
        length_s = reader.duration_s
        if length_s is None:
            length_s = sum(map(len, reader.blocks())) / reader.rate_hz
    if length_s > centre_s:
        start_s += (length_s - centre_s) / 2
        duration_s = centre_s
    with open_audio(path, start_s=start_s, duration_s=duration_s) as reader:
        yield reader, start_s


def clip_windows(reader: AudioReader, log_mel: LogMel) -> Iterator[Window]:
    """Cuts a clip's log-mel spectrogram into windows; see :func:`features.windows`.

    A window in which no sample reaches half a step of 16-bit audio is left out: it would be
    a picture of nothing that looks like data.

    Args:
        reader: the clip; when the last window has come, it knows whether it was truncated.
        log_mel: how spectrograms are made.

    Yields:
        At least one window.

    Raises:
        ValueError: the clip cannot be decoded, or all of it is silent.
    """
    blocks = _resampled(reader, log_mel.features.sample_rate_hz)
    first = next(blocks)
    second = next(blocks, None)
    any_sound = False
    found = _whole(first, log_mel) if second is None else _stream(first, second, blocks, log_mel)
    for window, heard in found:
        if not is_silent(heard):
            any_sound = True
            yield window
    if not any_sound:
        raise ValueError("is silent: no sample reaches half a step of 16-bit audio")


def _whole(waveform: Waveform, log_mel: LogMel) -> Iterator[tuple[Window, Waveform]]:
    hop, num_frames = log_mel.features.hop_length, log_mel.features.num_frames
    for window in windows(log_mel(waveform), num_frames):
        start = window.start_frame * hop
        yield window, waveform[start : start + num_frames * hop]


def _stream(
    first: Waveform, second: Waveform, others: Iterator[Waveform], log_mel: LogMel
) -> Iterator[tuple[Window, Waveform]]:
    """The same for a clip of several blocks, each of which is longer than an FFT's window."""
    hop, n_fft = log_mel.features.hop_length, log_mel.features.n_fft
    num_frames = log_mel.features.num_frames
    stride = num_frames * hop
    start = 0
    heard = log_mel.padded(first, end=False)
    block: Waveform | None = second
    while block is not None:
        heard = np.concatenate([heard, block])
        # A window's own samples come before its margin; one FFT's window is kept for the end.
        while len(heard) >= stride + n_fft:
            mel = log_mel.frames(heard[: stride - hop + n_fft])
            yield Window(mel, start, 0), _inside(heard, n_fft, stride)
            heard = heard[stride:]
            start += num_frames
        block = next(others, None)
    heard = log_mel.padded(heard, start=False)
    for window in windows(log_mel.frames(heard), num_frames):
        at = window.start_frame * hop
        if start + at == 0 or num_frames - window.padded_frames > (num_frames - 1) // 2:
            placed = Window(window.mel, start + window.start_frame, window.padded_frames)
            yield placed, _inside(heard[at:], n_fft, stride)


def _inside(heard: Waveform, n_fft: int, stride: int) -> Waveform:
    return heard[n_fft // 2 : n_fft // 2 + stride]


def _resampled(reader: AudioReader, rate_hz: int) -> Iterator[Waveform]:
    blocks = reader.blocks()
    first = next(blocks)
    second = next(blocks, None)
    if second is None:
        yield resample(first, reader.rate_hz, rate_hz)
        return
    convert = resampler(reader.rate_hz, rate_hz)
    yield convert(first, False)
    yield convert(second, False)
    for block in blocks:
        yield convert(block, False)
    rest = convert(second[:0], True)
    if len(rest):
        yield rest
