"""The arithmetic of ``spectrum_compiled`` in numpy, bit by bit: slower, and ready at once.

Also for frames whose length is no power of two, which take numpy's own FFT.
"""

from __future__ import annotations

import numpy as np

from mstag.data.spectrum_tables import Floats, Tables

FRAMES_AT_ONCE = 128
"""Their spectra take 1 MB with the default features."""

Complex = tuple[Floats, Floats]
"""Real and imaginary parts."""


def mel_power(waveform: Floats, num_frames: int, tables: Tables) -> Floats:
    """Power (n_mels, num_frames) of the first frames of a waveform (num_samples,)."""
    cut = np.lib.stride_tricks.sliding_window_view(waveform, tables.n_fft)[:: tables.hop]
    spectrum = _bin_power if tables.n_fft & (tables.n_fft - 1) == 0 else _bin_power_by_numpy
    power = np.empty((len(tables.band_bins), num_frames), np.float32)
    # Far too loud audio becomes infinite here, and is refused further on.
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, num_frames, FRAMES_AT_ONCE):
            frames = cut[first : min(first + FRAMES_AT_ONCE, num_frames)]
            windowed = np.ascontiguousarray(frames.T) * tables.window[:, None]
            power[:, first : first + len(frames)] = _bands(spectrum(windowed, tables), tables)
    return power


def _bin_power_by_numpy(windowed: Floats, tables: Tables) -> Floats:
    spectrum = np.fft.rfft(windowed, axis=0)
    power: Floats = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)
    return power


def _bin_power(windowed: Floats, tables: Tables) -> Floats:
    """Windowed samples (n_fft, f) -> power (n_fft // 2 + 1, f)."""
    num_points = tables.n_fft // 2
    re, im = _fft(windowed[0::2].copy(), windowed[1::2].copy(), tables)
    re, im = re[tables.place], im[tables.place]
    power = np.empty((num_points + 1, windowed.shape[1]), np.float32)
    power[0] = (re[0] + im[0]) * (re[0] + im[0])
    power[num_points] = (re[0] - im[0]) * (re[0] - im[0])
    k = np.arange(1, num_points // 2 + 1)
    half, untangle = np.float32(0.5), tables.untangle.reshape(-1, 2)[k]
    cos, sin = untangle[:, :1], untangle[:, 1:]
    (a_re, a_im), (b_re, b_im) = (re[k], im[k]), (re[num_points - k], im[num_points - k])
    even_re, even_im = (a_re + b_re) * half, (a_im - b_im) * half
    odd_re, odd_im = (a_im + b_im) * half, (b_re - a_re) * half
    turned_re, turned_im = odd_re * cos - odd_im * sin, odd_re * sin + odd_im * cos
    re, im = even_re + turned_re, even_im + turned_im
    power[k] = re * re + im * im
    re, im = even_re - turned_re, even_im - turned_im
    power[num_points - k] = re * re + im * im
    return power


def _fft(re: Floats, im: Floats, tables: Tables) -> Complex:
    """All passes; each point is a row."""
    num_points, num_frames = re.shape
    size, at = num_points, 0
    while size >= 4:
        quarter = size // 4
        twiddle = tables.twiddle[at : at + 6 * quarter].reshape(quarter, 6, 1)
        blocks = (num_points // size, 4, quarter, num_frames)
        _pass(re.reshape(blocks), im.reshape(blocks), twiddle)
        at += 6 * quarter
        size = quarter
    if size == 2:
        pairs = (num_points // 2, 2, num_frames)
        for part in (re.reshape(pairs), im.reshape(pairs)):
            part[:, 0], part[:, 1] = part[:, 0] + part[:, 1], part[:, 0] - part[:, 1]
    return re, im


def _pass(re: Floats, im: Floats, twiddle: Floats) -> None:
    a_re, b_re, c_re, d_re = (re[:, i].copy() for i in range(4))
    a_im, b_im, c_im, d_im = (im[:, i].copy() for i in range(4))
    ac_re, ac_im, bd_re, bd_im = a_re + c_re, a_im + c_im, b_re + d_re, b_im + d_im
    re[:, 0], im[:, 0] = ac_re + bd_re, ac_im + bd_im
    re[:, 2], im[:, 2] = _rotate(ac_re - bd_re, ac_im - bd_im, twiddle[:, 2], twiddle[:, 3])
    ac_re, ac_im, bd_re, bd_im = a_re - c_re, a_im - c_im, b_im - d_im, d_re - b_re
    re[:, 1], im[:, 1] = _rotate(ac_re + bd_re, ac_im + bd_im, twiddle[:, 0], twiddle[:, 1])
    re[:, 3], im[:, 3] = _rotate(ac_re - bd_re, ac_im - bd_im, twiddle[:, 4], twiddle[:, 5])


def _rotate(re: Floats, im: Floats, cos: Floats, sin: Floats) -> Complex:
    return re * cos - im * sin, re * sin + im * cos


def _bands(bins: Floats, tables: Tables) -> Floats:
    """Power of the bins (n_fft // 2 + 1, f) -> of the bands (n_mels, f)."""
    power = np.empty((len(tables.band_bins), bins.shape[1]), np.float32)
    for band, (first, stop, weight) in enumerate(tables.band_bins):
        sums = np.zeros((2, bins.shape[1]), np.float32)
        for k in range(first, stop):
            # The last of an odd number goes to the first sum, as its place says.
            sums[(k - first) % 2] += bins[k] * tables.weights[weight + k - first]
        np.add(sums[0], sums[1], out=power[band])
    return power
