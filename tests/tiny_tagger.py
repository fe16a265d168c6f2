"""An untrained tagger so small that tagging takes milliseconds, and music for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from mstag.config import FeatureConfig, ModelConfig
from mstag.models import build_model
from mstag.models.bundle import save_bundle

FEATURES = FeatureConfig(sample_rate_hz=8000, n_fft=512, hop_length=128, n_mels=16, num_frames=64)
LONGER = dataclasses.replace(FEATURES, num_frames=150)
"""Windows of three chunks of 64 frames, which overlap."""
TAGS = ["guitar", "slow", "rock & <roll>", "techno", "no piano"]
THRESHOLDS = [0.1, 0.9, 0.3, 0.2, 0.8]
WINDOW_SAMPLES = FEATURES.num_frames * FEATURES.hop_length


def make_bundle(
    folder: Path,
    *,
    seed: int = 0,
    features: FeatureConfig = FEATURES,
    chunk_frames: int = 0,
    name: str = "mscnn",
) -> Path:
    """Saves an untrained bundle and returns its folder."""
    torch.manual_seed(seed)
    settings = ModelConfig(name=name, hidden_units=8, chunk_frames=chunk_frames)
    model = build_model(settings, features.n_mels, features.num_frames, len(TAGS))
    save_bundle(
        folder,
        model,
        model_config=settings,
        features=features,
        tag_names=TAGS,
        thresholds=THRESHOLDS,
        dataset={"name": "synthetic", "digest": "0", "split_rule": "none", "leaks": {}},
        scores={"split": "valid", "roc_auc": 0.5},
    )
    return folder


def music(num_samples: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Noise whose loudness wanders, so that no two windows are alike."""
    rng = np.random.default_rng(seed)
    loudness = 0.2 + 0.15 * np.sin(np.arange(num_samples) / 3000 + seed)
    return (loudness * rng.standard_normal(num_samples)).clip(-1, 1).astype(np.float32)


def make_wav(path: Path, num_windows: float = 1.0, *, seed: int = 0) -> Path:
    """A file of so many windows at the tagger's own rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waveform = music(round(num_windows * WINDOW_SAMPLES), seed=seed)
    soundfile.write(path, waveform, FEATURES.sample_rate_hz, subtype="FLOAT")
    return path
