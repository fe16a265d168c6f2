"""What mel power is computed with: tables that are the same for every frame."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Tables(NamedTuple):
    """What is the same for every frame."""

    n_fft: int
    hop: int
    window: Floats
    twiddle: Floats
    """Of pass after pass, and within one of butterfly after butterfly: cos and sin of the
    angles of outputs 1, 2 and 3."""
    place: NDArray[np.int64]
    """Where the FFT of half the length leaves each of its bins."""
    untangle: Floats
    """cos and sin for each bin up to half of that."""
    band_bins: NDArray[np.int64]
    """Per band: its first bin, one behind its last, and where its weights start."""
    weights: Floats


def make_tables(n_fft: int, hop: int, filters: NDArray[np.float64]) -> Tables:
    """For frames of n_fft samples, and filters (n_mels, n_fft // 2 + 1)."""
    num_points = n_fft // 2
    angle = -2 * np.pi * np.arange(num_points // 2 + 1) / n_fft
    spans = [_span(band) for band in filters]
    starts = np.cumsum([0, *(stop - first for first, stop in spans)])
    band_bins = [(first, stop, start) for (first, stop), start in zip(spans, starts, strict=False)]
    weights = [band[first:stop] for band, (first, stop) in zip(filters, spans, strict=True)]
    return Tables(
        n_fft=n_fft,
        hop=hop,
        window=_as_floats(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)),
        twiddle=_as_floats(_twiddles(num_points)),
        place=np.argsort(_bins_in_place(num_points)),
        untangle=_as_floats(np.stack([np.cos(angle), np.sin(angle)], axis=1)),
        band_bins=np.array(band_bins, np.int64),
        weights=_as_floats(np.concatenate(weights)),
    )


def _twiddles(num_points: int) -> NDArray[np.float64]:
    """For passes over blocks of num_points, a quarter of it, and so on down to 4."""
    found = []
    while num_points >= 4:
        angle = -2 * np.pi * np.arange(num_points // 4) / num_points
        found += [f(j * angle) for j in (1, 2, 3) for f in (np.cos, np.sin)]
        num_points //= 4
    return np.concatenate(
        [np.stack(found[i : i + 6], axis=1).ravel() for i in range(0, len(found), 6)]
    )


def _bins_in_place(num_points: int) -> NDArray[np.int64]:
    """Which bin the passes leave in each place: the number's digits to base 4, reversed."""
    if num_points <= 2:
        return np.arange(num_points)
    inner = 4 * _bins_in_place(num_points // 4)
    return np.concatenate([inner + j for j in range(4)])


def _span(band: NDArray[np.float64]) -> tuple[int, int]:
    """First bin that a band weighs, and one behind the last; never empty."""
    used = np.flatnonzero(band)
    return (int(used[0]), int(used[-1]) + 1) if used.size else (0, 1)


def _as_floats(numbers: NDArray[np.float64]) -> Floats:
    return np.ascontiguousarray(numbers.ravel(), np.float32)
