"""Waveform -> power in mel bands, by compiled loops or, in the first minutes, by numpy.

The two give the same bits. Compiled loops take a thirtieth of numpy's time, but loading them
(numba) takes as long as numpy does for some ten minutes of music: a command that tags one
song never needs them.
"""

from __future__ import annotations

import sys
import threading

import numpy as np
from numpy.typing import NDArray

from mstag.data import spectrum_plain
from mstag.data.spectrum_tables import Floats, make_tables

COMPILED = "mstag.data.spectrum_compiled"
PLAIN_FRAMES = 10_000
"""Frames after which the compiled loops are loaded: 16 clips of 29 s."""


class MelPower:
    """Computes the power in mel bands of a waveform's frames.

    Args:
        n_fft: length of a frame, even. Powers of two take compiled loops, others numpy alone.
        hop_length: samples from one frame to the next.
        filters: (n_mels, n_fft // 2 + 1), of which most are zeros.
    """

    def __init__(self, n_fft: int, hop_length: int, filters: NDArray[np.float64]) -> None:
        assert n_fft >= 16 and n_fft % 2 == 0, f"frames of {n_fft} samples"
        self._tables = make_tables(n_fft, hop_length, filters)
        self._num_plain = 0
        self._own = threading.local()

    def __call__(self, waveform: Floats) -> Floats:
        """Waveform (num_samples,), at least n_fft long -> power (n_mels, num_frames).

        ``num_frames`` is 1 + (num_samples - n_fft) // hop_length; frame i starts at sample
        i * hop_length.
        """
        tables = self._tables
        num_frames = 1 + (len(waveform) - tables.n_fft) // tables.hop
        assert num_frames > 0, f"{len(waveform)} samples hold no frame of {tables.n_fft}"
        if self._is_plain(num_frames):
            return spectrum_plain.mel_power(waveform, num_frames, tables)
        from mstag.data import spectrum_compiled

        return spectrum_compiled.mel_power(waveform, num_frames, tables, self._own)

    def _is_plain(self, num_frames: int) -> bool:
        if self._tables.n_fft & (self._tables.n_fft - 1):
            return True
        if COMPILED in sys.modules:
            return False
        self._num_plain += num_frames
        return self._num_plain <= PLAIN_FRAMES
