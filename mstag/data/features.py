"""Waveform -> log-mel spectrogram, as in the 2017 recipe.

Power spectrogram (periodic Hann window, centred, reflect padding), Slaney mel bands with
Slaney norm from 0 Hz to half the sample rate, natural log of max(power, 1e-20).
torchaudio's own MelSpectrogram floors 11025 / 2 to 5512 Hz inside its filter bank and so
differs from the recipe by up to 0.14 in log units; hence the filter bank below.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mstag.config import FeatureConfig
from mstag.data.spectrum import COMPILED, MelPower

POWER_FLOOR = 1e-20
SILENCE = float(np.log(POWER_FLOOR))
"""The log-mel value of digital silence, and of the padding behind short clips."""

_LINEAR_HZ_PER_MEL = 200 / 3
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27


def hz_to_mel(frequency_hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's mel scale (Auditory Toolbox, 1998): linear below 1 kHz, logarithmic above."""
    linear = frequency_hz / _LINEAR_HZ_PER_MEL
    logarithmic = _BREAK_MEL + np.log(np.maximum(frequency_hz, 1.0) / _BREAK_HZ) / _LOG_STEP
    return np.where(frequency_hz < _BREAK_HZ, linear, logarithmic)


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of :func:`hz_to_mel`."""
    logarithmic = _BREAK_HZ * np.exp(_LOG_STEP * (mel - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _LINEAR_HZ_PER_MEL, logarithmic)


def mel_filters(features: FeatureConfig) -> NDArray[np.float64]:
    """Triangular mel filters of equal area (Slaney norm).

    Returns:
        Array of shape (n_mels, n_fft // 2 + 1): weights of the power bins.
    """
    nyquist_hz = features.sample_rate_hz / 2
    bin_hz = np.linspace(0.0, nyquist_hz, features.n_fft // 2 + 1)
    edge_mel = np.linspace(0.0, hz_to_mel(np.array(nyquist_hz)), features.n_mels + 2)
    edge_hz = mel_to_hz(edge_mel)
    low, centre, high = edge_hz[:-2, None], edge_hz[1:-1, None], edge_hz[2:, None]
    rising = (bin_hz - low) / (centre - low)
    falling = (high - bin_hz) / (high - centre)
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (high - low))


def require_recipe(features: FeatureConfig) -> None:
    """Refuses features that were made in a way nobody told us.

    Raises:
        ValueError: the recipe is "unknown".
    """
    if features.recipe == "unknown":
        raise ValueError(
            'features.recipe = "unknown": the spectrograms were made elsewhere, so audio cannot be '
            "turned into such ones; name the recipe with `shard-tools index --config`"
        )


class LogMel:
    """Computes log-mel spectrograms on the CPU.

    A recording of any length needs no more memory than its result.

    Args:
        features: the settings.

    Raises:
        ValueError: the recipe is "unknown".
    """

    def __init__(self, features: FeatureConfig) -> None:
        require_recipe(features)
        self.features = features
        self._power = MelPower(features.n_fft, features.hop_length, mel_filters(features))

    def __call__(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """Waveform (num_samples,) -> log-mel (n_mels, num_frames), both float32.

        ``num_frames`` is 1 + num_samples // hop_length. A waveform shorter than half a
        window, which reflection cannot pad, is lengthened with zeros to that.
        """
        return self.frames(self.padded(waveform))

    def padded(
        self, waveform: NDArray[np.float32], *, start: bool = True, end: bool = True
    ) -> NDArray[np.float32]:
        """The waveform with half a window of its reflection at its start and its end."""
        half = self.features.n_fft // 2
        missing = half + 1 - len(waveform)
        if missing > 0:
            waveform = np.concatenate([waveform, np.zeros(missing, np.float32)])
        before = waveform[half:0:-1] if start else waveform[:0]
        after = waveform[-2 : -half - 2 : -1] if end else waveform[:0]
        return np.concatenate([before, waveform, after])

    def frames(self, padded: NDArray[np.float32]) -> NDArray[np.float32]:
        """The frames of a waveform that brings half a window of margin at either end.

        Args:
            padded: (num_samples,), at least one window long.

        Returns:
            (n_mels, 1 + (num_samples - n_fft) // hop_length).
        """
        padded = np.ascontiguousarray(padded, np.float32)
        mel = np.maximum(self._power(padded), np.float32(POWER_FLOOR))
        return np.log(mel, out=mel)


def as_stored(mel: NDArray[np.float32]) -> NDArray[np.float16]:
    """Rounds to float16 in C order, as shards hold spectrograms."""
    if COMPILED in sys.modules:
        # Not the module of that list itself: another thread may still be loading it.
        from mstag.data import spectrum_compiled

        if spectrum_compiled.HAS_HALVES:
            return spectrum_compiled.as_halves(np.ascontiguousarray(mel, np.float32))
    return np.ascontiguousarray(mel, dtype=np.float16)


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a clip's spectrogram that is stored as one sample.

    Attributes:
        mel: (n_mels, num_frames).
        start_frame: where it starts in the clip.
        padded_frames: how many frames at its end are the silence floor, not audio.
    """

    mel: NDArray[np.float32]
    start_frame: int
    padded_frames: int


def windows(mel: NDArray[np.float32], num_frames: int) -> list[Window]:
    """Cuts a clip's log-mel spectrogram into windows of exactly ``num_frames`` frames.

    A shorter clip gives one window, padded with the silence floor. A longer one gives
    consecutive windows, of which a last one that is less than half audio is dropped
    (MTT's 29.1-s clips end a frame or two behind the window).

    Args:
        mel: (n_mels, frames of the clip).
        num_frames: frames of each window.

    Returns:
        At least one window.
    """
    total = mel.shape[1]
    assert total > 0, "a spectrogram has at least one frame"
    starts = [0, *range(num_frames, total - (num_frames - 1) // 2, num_frames)]
    return [_window(mel, start, num_frames) for start in starts]


def _window(mel: NDArray[np.float32], start: int, num_frames: int) -> Window:
    piece = mel[:, start : start + num_frames]
    padded = num_frames - piece.shape[1]
    if padded:
        piece = np.pad(piece, ((0, 0), (0, padded)), constant_values=SILENCE)
    return Window(mel=piece, start_frame=start, padded_frames=padded)
