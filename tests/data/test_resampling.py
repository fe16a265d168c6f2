from __future__ import annotations

import numpy as np
import pytest
import soxr
from hypothesis import given
from hypothesis import strategies as st

from mstag.data import resampling
from mstag.data.resampling import resample, resampler

BY_MATRICES = [(16000, 11025), (8000, 11025), (22050, 16000), (11025, 16000), (12000, 11025)]
BY_SOXR = [(44100, 11025), (48000, 11025), (22050, 11025), (16001, 11025)]


def tone(hz: float, rate_hz: int, seconds: float = 2.0) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz).astype(np.float32)


@pytest.mark.parametrize(("from_hz", "to_hz"), BY_MATRICES + BY_SOXR)
def test_what_both_rates_can_hold_passes_and_the_rest_does_not(from_hz: int, to_hz: int) -> None:
    nyquist_hz = min(from_hz, to_hz) / 2
    inside = slice(to_hz // 2, -to_hz // 2)  # away from the edges
    for share in (0.01, 0.3, 0.7, 0.9):
        passed = resample(tone(share * nyquist_hz, from_hz), from_hz, to_hz)
        expected = tone(share * nyquist_hz, to_hz)
        assert len(passed) == len(expected)
        tolerance = 1e-4 if (from_hz, to_hz) in BY_MATRICES else 1e-3
        assert np.abs(passed - expected)[inside].max() < tolerance, share
    if from_hz > to_hz:
        # Beyond the new Nyquist frequency: soxr HQ is 120 dB down, ours 80.
        for hz in np.linspace(1.001 * nyquist_hz, 0.99 * from_hz / 2, 7):
            stopped = resample(tone(hz, from_hz), from_hz, to_hz)
            assert np.abs(stopped[inside]).max() < 10 ** (-78 / 20), hz


@pytest.mark.parametrize(("from_hz", "to_hz"), BY_MATRICES)
def test_matrices_sound_like_soxr(from_hz: int, to_hz: int) -> None:
    rng = np.random.default_rng(0)
    waveform = np.cumsum(rng.standard_normal(3 * from_hz)).astype(np.float32) / 100
    ours, soxrs = resample(waveform, from_hz, to_hz), soxr.resample(waveform, from_hz, to_hz)
    assert len(ours) == len(soxrs)
    inside = slice(300, -300)
    error = np.sqrt(np.mean((ours - soxrs)[inside] ** 2))
    assert error < 1e-2 * np.std(soxrs), "they differ in the transition band alone"


@given(
    st.lists(st.integers(0, 5000), max_size=6),
    st.sampled_from(BY_MATRICES),
)
def test_a_stream_gives_what_the_whole_gives(sizes: list[int], rates: tuple[int, int]) -> None:
    waveform = np.random.default_rng(1).standard_normal(sum(sizes)).astype(np.float32)
    convert = resampler(*rates)
    parts, at = [], 0
    for size in sizes:
        parts.append(convert(waveform[at : at + size], False))
        at += size
    parts.append(convert(waveform[:0], True))
    found = np.concatenate(parts)
    wanted = round(len(waveform) * rates[1] / rates[0])
    assert abs(len(found) - wanted) <= 1
    if wanted:
        assert np.allclose(found, resample(waveform, *rates), atol=1e-5)


def test_the_same_rate_and_too_little_audio() -> None:
    waveform = tone(440, 8000)
    assert resample(waveform, 8000, 8000) is waveform
    assert resampler(8000, 8000)(waveform, False) is waveform
    with pytest.raises(ValueError, match="too little audio to resample from 192000"):
        resample(waveform[:2], 192000, 8000)
    assert len(resample(waveform[:1], 16000, 11025)) == 1


def test_each_way_is_taken_where_it_is_the_faster_one() -> None:
    for rates in BY_MATRICES:
        assert resampling._suits_polyphase(*rates)
    for rates in BY_SOXR:
        assert not resampling._suits_polyphase(*rates)
