"""The log-mel spectrogram as a torch module that exporters can trace.

The same numbers as :class:`mstag.data.features.LogMel`, but for rounding, out of products with
constant matrices alone: they run wherever the network runs. The Fourier transform is done in two
steps (Cooley and Tukey, 1965): 0.3 MB of matrices and, in onnxruntime 1.32 on one core, with the
mel filters half the time of the 2017 network. As one matrix it would weigh 17 MB and take 4.2
times as long; ONNX's own STFT weighs nothing, takes 1.7 times as long, and is not in every
runtime (bench/export.py).

Shape suffixes: B windows, S samples, T frames, F = B * T; N = P * Q samples of a frame, n = Q p +
q; bins k = r + P s, of which r goes to P // 2 alone, as the others mirror these; M mel bands.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mstag.config import FeatureConfig
from mstag.data.features import POWER_FLOOR, SILENCE, mel_filters, require_recipe


def num_samples(features: FeatureConfig) -> int:
    """Samples of a waveform window: its frames with half a Fourier window either side."""
    return features.num_samples + features.n_fft


class Spectrogram(nn.Module):
    """Waveform windows -> log-mel windows, as the network takes them.

    Args:
        features: the settings; the recipe must be known.

    Raises:
        ValueError: the recipe is "unknown".
    """

    def __init__(self, features: FeatureConfig) -> None:
        super().__init__()
        require_recipe(features)
        self.features = features
        n_fft = features.n_fft
        self.num_p = max(p for p in range(1, math.isqrt(n_fft) + 1) if n_fft % p == 0)
        self.num_q = n_fft // self.num_p
        self.num_r = self.num_p // 2 + 1
        self.first_QPR = nn.Buffer(_as_tensor(self._first_step()))
        self.second_QS = nn.Buffer(_as_tensor(self._second_step()))
        self.mel_RSM = nn.Buffer(_as_tensor(self._filters()))

    def forward(self, waveform_BS: Tensor, num_frames_B: Tensor) -> Tensor:
        """Waveform windows -> log-mel (B, n_mels, num_frames).

        Args:
            waveform_BS: float32, :func:`num_samples` each.
            num_frames_B: int64: frames of each, from its start, that are audio. The others
                become silence, as in the last window of a piece.
        """
        features = self.features
        num_frames, hop = features.num_frames, features.hop_length
        # Frames are gathered in stretches as long as divide both the hop and the frame.
        stretch = math.gcd(features.n_fft, hop)
        first_T1 = torch.arange(num_frames)[:, None] * (hop // stretch)
        places = first_T1 + torch.arange(features.n_fft // stretch)
        stretches = waveform_BS.reshape(-1, num_samples(features) // stretch, stretch)
        frames_FPQ = stretches[:, places].reshape(-1, self.num_p, self.num_q)

        once_QFR = frames_FPQ.permute(2, 0, 1) @ self.first_QPR
        # Real parts of all q, then imaginary ones.
        once = once_QFR.reshape(self.num_q, -1, 2, self.num_r).permute(1, 3, 2, 0)
        twice = once.reshape(-1, 2 * self.num_q) @ self.second_QS
        parts = (twice * twice).reshape(-1, self.num_r, 2, self.num_q)
        power_BTK = (parts[:, :, 0] + parts[:, :, 1]).reshape(
            -1, num_frames, self.num_r * self.num_q
        )
        mel_BMT = torch.log((power_BTK @ self.mel_RSM).clamp(min=POWER_FLOOR)).transpose(1, 2)
        is_audio_BT = torch.arange(num_frames) < num_frames_B[:, None]
        return torch.where(is_audio_BT[:, None], mel_BMT, SILENCE)

    def _first_step(self) -> NDArray[np.float64]:
        """Sums over p of windowed samples, (Q, P, 2R): real parts, then imaginary ones."""
        n_fft = self.features.n_fft
        hann_N = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
        n_QP = np.arange(self.num_q)[:, None] + self.num_q * np.arange(self.num_p)
        # Whole numbers modulo N keep the angles exact.
        turn_QPR = n_QP[:, :, None] * np.arange(self.num_r) % n_fft / n_fft
        step_QPR = hann_N[n_QP][:, :, None] * np.exp(-2j * np.pi * turn_QPR)
        return np.concatenate([step_QPR.real, step_QPR.imag], axis=2)

    def _second_step(self) -> NDArray[np.float64]:
        """Sums over q, (2Q, 2S): a complex product written as a real one."""
        q = np.arange(self.num_q)
        step_QS = np.exp(-2j * np.pi * (np.outer(q, q) % self.num_q / self.num_q))
        return np.block([[step_QS.real, step_QS.imag], [-step_QS.imag, step_QS.real]])

    def _filters(self) -> NDArray[np.float64]:
        """Mel filters in the order in which the bins come out, (R * S, M)."""
        n_fft = self.features.n_fft
        bins = (np.arange(self.num_r)[:, None] + self.num_p * np.arange(self.num_q)).reshape(-1)
        mirrored = np.minimum(bins, n_fft - bins)
        filters_RSM = mel_filters(self.features).T[mirrored]
        # Some bins come out beside their mirror images; one of the two counts.
        _, first = np.unique(mirrored, return_index=True)
        counts = np.zeros(len(bins), bool)
        counts[first] = True
        assert len(first) == n_fft // 2 + 1, "a bin is missing"
        return np.where(counts[:, None], filters_RSM, 0.0)


def _as_tensor(matrix: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(matrix, np.float32))


def waveform_windows(
    waveform: NDArray[np.float32], features: FeatureConfig
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cuts a piece (n,) into what :class:`Spectrogram` takes: the windows that a tagger hears.

    Returns:
        Windows (w, :func:`num_samples`) and how many frames of each are audio (w,).
    """
    half, hop, num_frames = features.n_fft // 2, features.hop_length, features.num_frames
    audio = np.pad(waveform, (0, max(0, half + 1 - len(waveform))))
    total = 1 + len(audio) // hop
    padded = np.pad(audio, half, mode="reflect")
    starts = [0, *range(num_frames, total - (num_frames - 1) // 2, num_frames)]
    size = num_samples(features)
    windows = np.zeros((len(starts), size), np.float32)
    for window, start in zip(windows, starts, strict=True):
        piece = padded[start * hop : start * hop + size]
        window[: len(piece)] = piece
    return windows, np.array([min(num_frames, total - start) for start in starts])
