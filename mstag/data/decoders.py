"""What every decoder of audio offers, and what they share.

There are two: :mod:`mstag.data.sndfile` for most formats, :mod:`mstag.data.ffmpeg` for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mstag.data.resampling import Waveform

LOSSY_SLACK_FRAMES = 4096
"""By how much lossy files end early without harm: encoders count their padding differently."""


class Decoder(Protocol):
    """An open audio file.

    A frame is one sample of each channel; no more of a long file is held than was asked for.

    Attributes:
        rate_hz: frames a second.
        promised_frames: frames of the whole file as its header claims; None: it does not say
            (after damage: a guess).
        slack_frames: how many fewer are still a whole file.
        damaged: something is missing, by what the file looks like or what happened while it
            was decoded; known when :meth:`read` has ended.
    """

    rate_hz: int
    slack_frames: int

    @property
    def damaged(self) -> bool:
        """See above."""

    @property
    def promised_frames(self) -> int | None:
        """See above."""

    def seek(self, frame: int) -> None:
        """Goes to this frame, or to the end of a shorter file; once, before reading."""

    def read(self, num_frames: int) -> Waveform:
        """The next frames, the mean of their channels; fewer only when nothing follows."""

    def close(self) -> None:
        """Lets go of the file."""


def mono(samples: NDArray[np.float32]) -> Waveform:
    """The mean of the channels: (num_frames, num_channels) -> (num_frames,)."""
    channels = samples.shape[1]
    if channels == 1:
        return samples[:, 0]
    # 20 times as fast as mean(axis=1), and on one core, unlike a matrix product.
    total = samples[:, 0] + samples[:, 1]
    for channel in range(2, channels):
        total += samples[:, channel]
    total *= np.float32(1 / channels)
    return total


def joined(pieces: Sequence[Waveform]) -> Waveform:
    """One waveform of several; without a copy where there is one."""
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else np.empty(0, np.float32)
