"""A clip of an audio file -> windows of its log-mel spectrogram, in bounded memory.

A recording of ten hours is decoded, resampled and turned into windows block by block; what
comes out is what the whole would give, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mstag.data.audio import AudioReader, is_silent, open_audio
from mstag.data.features import LogMel, Window, windows
from mstag.data.resampling import Waveform, resample, resampler

SILENT = "is silent: no sample reaches half a step of 16-bit audio"


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


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a clip's log-mel spectrogram, as long as a window; the last may be shorter.

    Attributes:
        mel: (n_mels, 1 to num_frames).
        start_frame: where it starts in the clip.
        heard: its samples: frame i stands for ``heard[i * hop_length :][: hop_length]``.
    """

    mel: NDArray[np.float32]
    start_frame: int
    heard: Waveform

    @property
    def is_silent(self) -> bool:
        """Whether no sample reaches half a step of 16-bit audio."""
        return is_silent(self.heard)


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
    any_sound = False
    for piece in clip_pieces(reader, log_mel):
        window = as_window(piece, log_mel.features.num_frames)
        if window is not None:
            any_sound = True
            yield window
    if not any_sound:
        raise ValueError(SILENT)


def as_window(piece: Piece, num_frames: int) -> Window | None:
    """The window that a piece gives, padded if need be; None: it is silent, or too little.

    Too little is a last piece that fills less than half a window.
    """
    if piece.start_frame and piece.mel.shape[1] <= (num_frames - 1) // 2:
        return None
    if piece.is_silent:
        return None
    (window,) = windows(piece.mel, num_frames)
    return Window(window.mel, piece.start_frame, window.padded_frames)


def clip_pieces(reader: AudioReader, log_mel: LogMel) -> Iterator[Piece]:
    """A clip's whole log-mel spectrogram, piece by piece, silence included.

    Raises:
        ValueError: the clip cannot be decoded.
    """
    blocks = _resampled(reader, log_mel.features.sample_rate_hz)
    first = next(blocks)
    second = next(blocks, None)
    if second is None:
        yield from _cut(log_mel(first), first, 0, log_mel)
    else:
        yield from _stream(first, second, blocks, log_mel)


def _cut(
    mel: NDArray[np.float32], heard: Waveform, start_frame: int, log_mel: LogMel
) -> Iterator[Piece]:
    hop, num_frames = log_mel.features.hop_length, log_mel.features.num_frames
    for at in range(0, mel.shape[1], num_frames):
        own = heard[at * hop : (at + num_frames) * hop]
        yield Piece(mel[:, at : at + num_frames], start_frame + at, own)


def _stream(
    first: Waveform, second: Waveform, others: Iterator[Waveform], log_mel: LogMel
) -> Iterator[Piece]:
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
            yield Piece(mel, start, heard[n_fft // 2 :][:stride])
            heard = heard[stride:]
            start += num_frames
        block = next(others, None)
    heard = log_mel.padded(heard, start=False)
    yield from _cut(log_mel.frames(heard), heard[n_fft // 2 :], start, log_mel)


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
