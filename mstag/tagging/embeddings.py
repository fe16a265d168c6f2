"""Music -> what a network's last layer hears: features for other tasks than its tags.

Shapes: n samples, r windows or chunks of windows over a piece, f features; for mscnn f is
``model.hidden_units`` and features are 0 or more.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mstag.config import FeatureConfig
from mstag.data.audio import open_audio
from mstag.data.clip_windows import clip_windows
from mstag.data.features import LogMel, as_stored, windows
from mstag.models import embed, frames_at_once
from mstag.models.bundle import Bundle
from mstag.models.predict import chunk_starts, in_float32

CHUNKS_AT_ONCE = 8
"""As many as the tagger's windows: 0.3 GB of activations with the default features."""


def embed_waveform(
    bundle: Bundle, waveform: NDArray[np.float32], device: torch.device
) -> NDArray[np.float32]:
    """Features (r, f) of a waveform (n,) at the bundle's rate."""
    mel = _log_mel(bundle.features)(waveform)
    found = windows(mel, bundle.features.num_frames)
    return _embed(bundle, (window.mel for window in found), device)


def embed_file(bundle: Bundle, source: Path | bytes, device: torch.device) -> NDArray[np.float32]:
    """Features (r, f) of an audio file of any length; windows of silence are left out.

    Raises:
        ValueError: not audio, or silent.
    """
    with open_audio(source) as reader:
        found = clip_windows(reader, _log_mel(bundle.features))
        return _embed(bundle, (window.mel for window in found), device)


def _embed(
    bundle: Bundle, mels: Iterable[NDArray[np.float32]], device: torch.device
) -> NDArray[np.float32]:
    chunk_frames = frames_at_once(bundle.model)
    starts = chunk_starts(bundle.features.num_frames, chunk_frames)

    def chunks() -> Iterator[NDArray[np.float16]]:
        for mel in mels:
            stored = as_stored(mel)  # as the tagger hears it
            yield from (stored[:, start : start + chunk_frames] for start in starts)

    rest, found = chunks(), []
    with in_float32(bundle.model):
        while batch := list(itertools.islice(rest, CHUNKS_AT_ONCE)):
            mel_B1MC = torch.from_numpy(np.stack(batch)[:, None]).to(device, torch.float32)
            found.append(embed(bundle.model, mel_B1MC))
        features_RF: NDArray[np.float32] = torch.cat(found).cpu().numpy()
    if not np.isfinite(features_RF).all():
        raise ValueError("its features are not finite numbers: it is too loud by far, or damaged")
    return features_RF


@functools.lru_cache(maxsize=4)
def _log_mel(features: FeatureConfig) -> LogMel:
    return LogMel(features)
