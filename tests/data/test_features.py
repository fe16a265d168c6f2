from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared_data import CLIP, MTT, needs_mtt

from mstag.config import FeatureConfig
from mstag.data import features
from mstag.data.audio import load_audio
from mstag.data.features import SILENCE, LogMel, hz_to_mel, mel_filters, mel_to_hz, windows

RECIPE = FeatureConfig()


def recipe_on_librosa(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Power and log-mel as the 2017 code had them from librosa (which padded by reflection)."""
    import librosa

    power = librosa.feature.melspectrogram(
        y=waveform, sr=11025, n_fft=2048, hop_length=512, n_mels=128, pad_mode="reflect"
    )
    return power, np.log(np.maximum(power, 1e-20))


def assert_equals_recipe(waveform: np.ndarray) -> None:
    power, expected = recipe_on_librosa(waveform)
    found = LogMel(RECIPE)(waveform)
    assert found.dtype == np.float32 and found.shape == expected.shape
    loud = power > 1e-9
    assert loud.mean() > 0.5, "the comparison must cover most of the picture"
    assert np.abs(found - expected)[loud].max() < 1e-3


@needs_mtt
@pytest.mark.filterwarnings("ignore")
def test_log_mel_equals_the_recipe_on_real_music() -> None:
    waveform = load_audio(MTT / CLIP, 11025)
    assert_equals_recipe(waveform)
    mel = LogMel(RECIPE)(waveform)
    assert mel.shape[0] == 128 and len(windows(mel, 628)) == 1


@pytest.mark.filterwarnings("ignore")
def test_log_mel_equals_the_recipe_on_noise_and_tones() -> None:
    rng = np.random.default_rng(0)
    seconds = np.arange(11025 * 6) / 11025
    tones = sum(np.sin(2 * np.pi * hz * seconds) / n for n, hz in enumerate((220, 1760, 5000), 1))
    waveform = 0.2 * tones + 0.01 * rng.standard_normal(len(seconds))
    assert_equals_recipe(waveform.astype(np.float32))


@pytest.mark.filterwarnings("ignore")
def test_filters_equal_librosas() -> None:
    import librosa

    for n_mels, n_fft, rate_hz in ((128, 2048, 11025), (96, 512, 16000), (40, 1024, 44100)):
        settings = FeatureConfig(n_mels=n_mels, n_fft=n_fft, sample_rate_hz=rate_hz)
        expected = librosa.filters.mel(sr=rate_hz, n_fft=n_fft, n_mels=n_mels, dtype=np.float64)
        assert np.allclose(mel_filters(settings), expected, atol=1e-12)


@given(st.floats(0, 20000))
def test_mel_scale_inverts(hz: float) -> None:
    assert mel_to_hz(hz_to_mel(np.array(hz))) == pytest.approx(hz, abs=1e-6)


def test_mel_scale_has_slaneys_fixed_points() -> None:
    # Auditory Toolbox: 200/3 Hz per mel up to 1 kHz (15 mel), then a factor 6.4 every 27 mel.
    points_hz = hz_to_mel(np.array([0.0, 1000.0, 6400.0]))
    assert np.allclose(points_hz, [0.0, 15.0, 42.0])


@given(st.integers(1, 5000))
def test_number_of_frames(num_samples: int) -> None:
    settings = FeatureConfig(n_fft=256, hop_length=64, n_mels=8)
    mel = LogMel(settings)(np.zeros(num_samples, np.float32))
    assert mel.shape == (8, 1 + max(num_samples, 129) // 64)
    assert np.all(mel == np.float32(SILENCE))


def test_num_samples_gives_exactly_num_frames() -> None:
    settings = FeatureConfig(n_fft=256, hop_length=64, n_mels=8, num_frames=10)
    assert LogMel(settings)(np.zeros(settings.num_samples, np.float32)).shape == (8, 10)


@given(
    num_samples=st.integers(1, 40_000),
    n_mels=st.sampled_from([1, 3, 40, 128]),
    n_fft=st.sampled_from([64, 512, 2048]),
    hop_length=st.sampled_from([50, 128, 700]),
)
def test_log_mel_equals_torchaudio_and_the_whole_filter_bank(
    num_samples: int, n_mels: int, n_fft: int, hop_length: int
) -> None:
    from torchaudio.functional import spectrogram

    settings = FeatureConfig(n_fft=n_fft, hop_length=hop_length, n_mels=n_mels)
    waveform = np.random.default_rng(num_samples).standard_normal(num_samples).astype(np.float32)
    long_enough = np.pad(waveform, (0, max(0, n_fft // 2 + 1 - num_samples)))
    power = spectrogram(
        torch.from_numpy(long_enough),
        pad=0,
        window=torch.hann_window(n_fft),
        n_fft=n_fft,
        hop_length=hop_length,
        win_length=n_fft,
        power=2.0,
        normalized=False,
    ).numpy()
    expected = np.log(np.maximum(mel_filters(settings) @ power, 1e-20))
    found = LogMel(settings)(waveform)
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.allclose(found, expected, atol=2e-3)


@given(st.integers(1, 60), st.integers(1, 20))
def test_windows_have_the_size_and_cover_the_clip(total: int, size: int) -> None:
    mel = np.arange(total, dtype=np.float32)[None].repeat(2, axis=0)
    cut = windows(mel, size)
    for window in cut:
        assert window.mel.shape == (2, size)
        real = size - window.padded_frames
        start = window.start_frame
        assert np.array_equal(window.mel[:, :real], mel[:, start : start + real])
        assert np.all(window.mel[:, real:] == np.float32(SILENCE))
    assert [w.start_frame for w in cut] == [i * size for i in range(len(cut))]
    left_over = total - len(cut) * size
    assert left_over <= 0 or left_over < size / 2
    assert all(2 * w.padded_frames <= size for w in cut[1:])


def test_silence_fits_float16() -> None:
    assert np.isfinite(np.float16(SILENCE))
    assert pytest.approx(-46.0517, abs=1e-4) == features.SILENCE
