"""Architectures by name: batches of spectrograms in, one logit per tag out."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from mstag.config import ModelConfig

if TYPE_CHECKING:
    from torch import nn

ARCHITECTURES = ("mscnn",)


def build_model(config: ModelConfig, n_mels: int, num_frames: int, num_tags: int) -> nn.Module:
    """Builds an untrained network; its initial weights come from torch's global seed.

    The network takes log-mel spectrograms (batch, 1, n_mels, num_frames) and returns logits
    (batch, num_tags).

    Raises:
        ValueError: an unknown architecture, or a spectrogram that it cannot take.
    """
    if config.name == "mscnn":
        from mstag.models.mscnn import MultiScaleCnn

        return MultiScaleCnn(config, n_mels, num_frames, num_tags)
    nearest = difflib.get_close_matches(config.name, ARCHITECTURES, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(ARCHITECTURES)}"
    raise ValueError(f"model.name = {config.name!r}: no such architecture; {hint}")
