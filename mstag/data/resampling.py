"""Sample rates: a waveform at one rate -> the same sound at another.

Two ways, chosen by measurement (29 s, one AVX2 core). Where the new rate is more than half
the old one, as for MagnaTagATune's 16000 -> 11025 Hz, a polyphase filter written as matrix
products takes 2.7 ms and soxr's HQ filter 3.8; else soxr is the faster one (44100 -> 11025
Hz: 3.8 ms against 10.7). Both pass what lies below 91% of the lower Nyquist frequency
and stop what lies above it: soxr by 120 dB, the polyphase filter by 80 dB.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Waveform = NDArray[np.float32]
Convert = Callable[[Waveform, bool], Waveform]

PASS_END = 0.9136
"""End of the pass band, as a share of the lower Nyquist frequency: soxr's for HQ."""
STOP_DB = 80.0
"""Attenuation beyond the lower Nyquist frequency."""
_OUTPUTS_PER_PRODUCT = 48
_MOST_PHASES = 1000


def resample(waveform: Waveform, from_hz: int, to_hz: int) -> Waveform:
    """Resamples a whole waveform (num_samples,), float32.

    Returns:
        Its round(num_samples * to_hz / from_hz) samples at the other rate.

    Raises:
        ValueError: so little audio that nothing is left.
    """
    if from_hz == to_hz:
        return waveform
    if _suits_polyphase(from_hz, to_hz):
        resampled = resampler(from_hz, to_hz)(waveform, True)
    else:
        import soxr

        resampled = soxr.resample(waveform, from_hz, to_hz, quality="HQ")
    if not len(resampled):
        raise ValueError(f"holds too little audio to resample from {from_hz} to {to_hz} Hz")
    return resampled


def resampler(from_hz: int, to_hz: int) -> Convert:
    """A resampler of a stream: block by block, the last one marked, as if it were one piece."""
    if from_hz == to_hz:
        return lambda block, is_last: block
    if _suits_polyphase(from_hz, to_hz):
        return _Stream(_filter_bank(from_hz, to_hz))
    import soxr

    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ")

    def convert(block: Waveform, is_last: bool) -> Waveform:
        resampled: Waveform = stream.resample_chunk(block, last=is_last)
        return resampled

    return convert


def _suits_polyphase(from_hz: int, to_hz: int) -> bool:
    return from_hz < 2 * to_hz and to_hz // math.gcd(from_hz, to_hz) <= _MOST_PHASES


class _FilterBank:
    """Matrices that turn one period of input samples into one of output samples.

    The rates are to each other as ``up`` to ``down``, so the filters that the output samples
    need repeat after ``up`` of them. A block of neighbouring outputs hears nearly the same
    inputs: with their filters as the columns of a matrix, all blocks of a phase are one
    product of that matrix with overlapping rows of the input.

    Attributes:
        period_in, period_out: samples of a period.
        half: how many input samples an output hears on either side.
        blocks: (first input of the block, matrix (num_inputs, num_outputs)) of a period;
            inputs are counted from ``half`` samples before the period.
        reach: input samples that a period hears.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        common = math.gcd(from_hz, to_hz)
        up, down = to_hz // common, from_hz // common
        # Few phases: several periods make one product, and stay one block.
        periods = max(1, round(_OUTPUTS_PER_PRODUCT / up))
        self.period_in, self.period_out = periods * down, periods * up
        divisors = [n for n in range(1, self.period_out + 1) if self.period_out % n == 0]
        size = min(divisors, key=lambda n: abs(n - _OUTPUTS_PER_PRODUCT))
        nyquist_hz = min(from_hz, to_hz) / 2
        # Kaiser's formula for the length of a filter (Oppenheim and Schafer, 7.5.3).
        transition = 2 * math.pi * (1 - PASS_END) * nyquist_hz / from_hz
        self.half = math.ceil((STOP_DB - 7.95) / (2.285 * transition) / 2)
        cutoff = (1 + PASS_END) * nyquist_hz / from_hz
        self.blocks: list[tuple[int, NDArray[np.float32]]] = []
        for start in range(0, self.period_out, size):
            at = (start + np.arange(size)) * down / up
            first, last = math.floor(at[0]) - self.half + 1, math.floor(at[-1]) + self.half
            distance = np.arange(first, last + 1)[:, None] - at
            taps = cutoff * np.sinc(cutoff * distance) * _kaiser(distance / self.half)
            taps /= taps.sum(axis=0)
            self.blocks.append((first + self.half, np.ascontiguousarray(taps, np.float32)))
        self.reach = max(first + len(matrix) for first, matrix in self.blocks)

    def whole(self, waveform: Waveform, num_out: int) -> Waveform:
        """(num_out,) from a waveform before and behind which there is silence."""
        found = np.empty((-(-num_out // self.period_out), self.period_out), np.float32)
        num_periods = len(found)
        # Most periods hear nothing else, and need no copy of the waveform with silence around.
        inside = range(
            -(-self.half // self.period_in),
            min(num_periods, (len(waveform) + self.half - self.reach) // self.period_in + 1),
        )
        silence = np.zeros(self.half, np.float32)
        if not inside:
            behind = np.zeros(num_periods * self.period_in + self.reach, np.float32)
            self.apply(np.concatenate([silence, waveform, behind]), found)
            return found.reshape(-1)[:num_out]
        start, stop = inside.start, inside.stop
        head = waveform[: start * self.period_in + self.reach]
        self.apply(np.concatenate([silence, head]), found[:start])
        self.apply(waveform[start * self.period_in - self.half :], found[start:stop])
        tail = waveform[stop * self.period_in - self.half :]
        behind = np.zeros((num_periods - stop) * self.period_in + self.reach, np.float32)
        self.apply(np.concatenate([tail, behind]), found[stop:])
        return found.reshape(-1)[:num_out]

    def apply(self, heard: Waveform, out: Waveform) -> None:
        """Fills ``out`` (n, period_out) from inputs that start ``half`` before its first period."""
        stride = heard.strides[0]
        at = 0
        for first, matrix in self.blocks:
            rows = np.lib.stride_tricks.as_strided(
                heard[first:], (len(out), len(matrix)), (self.period_in * stride, stride)
            )
            np.matmul(rows, matrix, out=out[:, at : at + matrix.shape[1]])
            at += matrix.shape[1]


def _kaiser(place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kaiser's window at places from -1 to 1; 0 outside."""
    beta = 0.1102 * (STOP_DB - 8.7)
    inside = np.maximum(0.0, 1 - place**2)
    return np.where(inside > 0, np.i0(beta * np.sqrt(inside)) / np.i0(beta), 0.0)


@functools.lru_cache(maxsize=16)
def _filter_bank(from_hz: int, to_hz: int) -> _FilterBank:
    return _FilterBank(from_hz, to_hz)


class _Stream:
    """A filter bank going along a stream."""

    def __init__(self, bank: _FilterBank) -> None:
        self._bank = bank
        self._heard = np.zeros(bank.half, np.float32)
        self._num_in = self._num_out = 0

    def __call__(self, block: Waveform, is_last: bool) -> Waveform:
        bank = self._bank
        self._num_in += len(block)
        wanted = (2 * self._num_in * bank.period_out + bank.period_in) // (2 * bank.period_in)
        missing = wanted - self._num_out
        if is_last and self._num_in == len(block):
            return bank.whole(block, wanted)
        if is_last:
            num_periods = -(-missing // bank.period_out)
            total = max(0, num_periods - 1) * bank.period_in + bank.reach
            behind = max(0, total - len(self._heard) - len(block))
            heard = np.concatenate([self._heard, block, np.zeros(behind, np.float32)])
        else:
            heard = np.concatenate([self._heard, block])
            num_periods = max(0, (len(heard) - bank.reach) // bank.period_in + 1)
        found = np.empty((num_periods, bank.period_out), np.float32)
        bank.apply(heard, found)
        resampled = found.reshape(-1)[: missing if is_last else None]
        self._heard = heard[num_periods * bank.period_in :]
        self._num_out += len(resampled)
        return resampled
