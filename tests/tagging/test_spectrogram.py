"""The traceable spectrogram: LogMel's numbers, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_tagger import music

from mstag.config import FeatureConfig
from mstag.data.features import SILENCE, LogMel
from mstag.tagging.spectrogram import Spectrogram, num_samples


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_fft": 2048, "hop_length": 512, "n_mels": 128, "num_frames": 30},
        {"n_fft": 512, "hop_length": 128, "n_mels": 16, "num_frames": 64},
        {"n_fft": 400, "hop_length": 160, "n_mels": 40, "num_frames": 9},
        {"n_fft": 254, "hop_length": 101, "n_mels": 20, "num_frames": 7},  # 2 x 127; no stretch
        {"n_fft": 450, "hop_length": 600, "n_mels": 20, "num_frames": 5},  # 18 x 25; gaps
        {"n_fft": 16, "hop_length": 1, "n_mels": 2, "num_frames": 3},
    ],
)
def test_it_is_the_spectrogram_of_the_shards(sizes: dict[str, int]) -> None:
    features = FeatureConfig(sample_rate_hz=8000, **sizes)
    windows = np.stack([music(num_samples(features), seed=seed) for seed in range(2)])
    num_frames = torch.tensor([features.num_frames, 2])
    with torch.inference_mode():
        found = Spectrogram(features)(torch.from_numpy(windows), num_frames).numpy()
    expected = np.stack([LogMel(features).frames(window) for window in windows])
    assert found.shape == expected.shape == (2, features.n_mels, features.num_frames)
    np.testing.assert_allclose(found[0], expected[0], atol=2e-3)
    np.testing.assert_allclose(found[1, :, :2], expected[1, :, :2], atol=2e-3)
    assert (found[1, :, 2:] == np.float32(SILENCE)).all()


def test_tones_fall_into_their_bands() -> None:
    features = FeatureConfig(sample_rate_hz=8000, n_fft=512, hop_length=128, num_frames=4)
    time_s = np.arange(num_samples(features)) / 8000
    for tone_hz in (300.0, 1000.0, 3500.0):
        wave = torch.from_numpy(np.sin(2 * np.pi * tone_hz * time_s).astype(np.float32))
        mel = Spectrogram(features)(wave[None], torch.tensor([4]))[0].numpy()
        expected = LogMel(features).frames(wave.numpy())
        assert (mel.argmax(axis=0) == expected.argmax(axis=0)).all()


def test_silence_is_the_floor_and_no_recipe_no_spectrogram() -> None:
    features = FeatureConfig(sample_rate_hz=8000, n_fft=64, hop_length=16, n_mels=4, num_frames=3)
    silent = Spectrogram(features)(torch.zeros(1, num_samples(features)), torch.tensor([3]))
    assert (silent == np.float32(SILENCE)).all()
    with pytest.raises(ValueError, match="made elsewhere"):
        Spectrogram(FeatureConfig(recipe="unknown"))
