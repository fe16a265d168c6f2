from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import REPOSITORY

import mstag.data
from mstag.data import spectrum, spectrum_compiled, spectrum_plain
from mstag.data.spectrum import MelPower
from mstag.data.spectrum_tables import make_tables

assert spectrum_compiled, "loaded, and so what MelPower takes"


def noise(num_samples: int) -> np.ndarray:
    return np.random.default_rng(num_samples).standard_normal(num_samples).astype(np.float32)


def every_bin(n_fft: int, hop: int) -> MelPower:
    """Bands of one bin each: the power spectrogram itself."""
    return MelPower(n_fft, hop, np.eye(n_fft // 2 + 1))


@given(
    # Every way through the FFT: its last pass of 4 or of pairs, one block or many, and numpy's.
    n_fft=st.sampled_from([16, 32, 64, 128, 256, 512, 1024, 4096, 18, 400, 1000]),
    hop=st.integers(1, 700),
    num_frames=st.integers(1, 40),
    rest=st.integers(0, 699),
)
def test_bins_equal_numpys(n_fft: int, hop: int, num_frames: int, rest: int) -> None:
    waveform = noise(n_fft + (num_frames - 1) * hop + rest % hop)
    frames = np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), n_fft)[::hop]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    expected = np.abs(np.fft.rfft(frames * window)).T ** 2
    found = every_bin(n_fft, hop)(waveform)
    assert found.shape == expected.shape == (n_fft // 2 + 1, num_frames)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5 * n_fft)


@given(
    n_fft=st.sampled_from([16, 32, 64, 256, 512, 2048]),
    hop=st.integers(1, 700),
    num_frames=st.integers(1, 200),
    n_mels=st.integers(1, 40),
)
def test_numpy_gives_the_same_bits(n_fft: int, hop: int, num_frames: int, n_mels: int) -> None:
    filters = np.random.default_rng(n_mels).random((n_mels, n_fft // 2 + 1))
    filters[filters < 0.5] = 0
    waveform = noise(n_fft + (num_frames - 1) * hop)
    plain = spectrum_plain.mel_power(waveform, num_frames, make_tables(n_fft, hop, filters))
    assert np.array_equal(plain, MelPower(n_fft, hop, filters)(waveform))


@pytest.mark.skipif(not spectrum_compiled.HAS_HALVES, reason="this processor has no f16c")
@given(st.lists(st.floats(width=32, allow_nan=False), max_size=70))
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_halves_are_rounded_as_numpy_does(numbers: list[float]) -> None:
    mel = np.array(numbers, np.float32)
    with np.errstate(over="ignore"):
        expected = mel.astype(np.float16)
        found = spectrum_compiled.as_halves(mel)
    assert found.dtype == np.float16 and found.tobytes() == expected.tobytes()


def test_halves_are_rounded_while_another_thread_loads_the_loops() -> None:
    check = """
import sys, threading
import numpy as np
from mstag.data.features import as_stored
mel = np.ones((4, 40), np.float32)
loading = threading.Thread(target=__import__, args=("mstag.data.spectrum_compiled",))
loading.start()
while loading.is_alive():
    assert (as_stored(mel) == 1).all()
"""
    subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, check=True)


def test_compiled_loops_are_loaded_when_there_is_much_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, spectrum.COMPILED)
    monkeypatch.delattr(mstag.data, "spectrum_compiled")
    monkeypatch.setattr(spectrum, "PLAIN_FRAMES", 50)
    power, waveform = every_bin(64, 64), noise(64 * 20)
    found = [power(waveform) for _ in range(2)]
    assert spectrum.COMPILED not in sys.modules
    found.append(power(waveform))
    assert spectrum.COMPILED in sys.modules
    found.append(power(waveform))
    assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("n_fft", [64, 100])
def test_bands_weigh_bins(n_fft: int) -> None:
    filters = np.random.default_rng(0).random((7, n_fft // 2 + 1))
    filters[2] = 0  # narrower than the distance of two bins
    filters[3, 5:] = 0
    filters[4, :-1] = 0
    waveform = noise(5000)
    power = every_bin(n_fft, 32)(waveform)
    assert np.allclose(MelPower(n_fft, 32, filters)(waveform), filters @ power, rtol=1e-4)


@pytest.mark.parametrize("n_fft", [64, 100])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_what_is_wrong_with_a_frame_stays_there(n_fft: int, bad: float) -> None:
    waveform, power = noise(64 * 30), every_bin(n_fft, 64)
    whole = power(waveform)
    at = 64 * 20 + 30
    waveform[at] = bad
    spoiled = power(waveform)
    hears = [64 * frame <= at < 64 * frame + n_fft for frame in range(whole.shape[1])]
    assert not np.isfinite(spoiled[:, hears]).all(axis=0).any()
    assert np.array_equal(spoiled[:, np.invert(hears)], whole[:, np.invert(hears)])


def test_frames_do_not_depend_on_their_neighbours() -> None:
    waveform, power = noise(64 * 40), every_bin(64, 64)
    whole = power(waveform)
    for first, last in ((0, 1), (3, 20), (17, 40)):
        assert np.array_equal(power(waveform[64 * first : 64 * last]), whole[:, first:last])


def test_threads_do_not_share_their_scratch() -> None:
    power = every_bin(256, 64)
    waveforms = [noise(64 * 100 + number) for number in range(16)]
    expected = [power(waveform) for waveform in waveforms]
    with ThreadPoolExecutor(4) as pool:
        for found, alone in zip(pool.map(power, waveforms), expected, strict=True):
            assert np.array_equal(found, alone)
