"""Architectures by name: batches of spectrograms in, one logit per tag out.

Each network is two parts in a row, and its ``forward`` is both: ``embed`` turns spectrograms into
features (batch, its attribute ``embedding_size``), ``classify`` these into logits.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from mstag.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

ARCHITECTURES = ("mscnn", "mscnn2", "musicnn", "short_chunk_res")


def build_model(config: ModelConfig, n_mels: int, num_frames: int, num_tags: int) -> nn.Module:
    """Builds an untrained network; its initial weights come from torch's global seed.

    The network takes log-mel spectrograms (batch, 1, n_mels, :func:`frames_at_once`) and returns
    logits (batch, num_tags).

    Args:
        config: the architecture and its settings.
        n_mels: mel bands of the stored spectrograms.
        num_frames: their frames, of which the network sees ``config.chunk_frames`` at once, or all.
        num_tags: logits per clip.

    Raises:
        ValueError: an unknown architecture, or a spectrogram or a chunk that it cannot take.
    """
    if config.chunk_frames > num_frames:
        raise ValueError(
            f"model.chunk_frames = {config.chunk_frames}: must be at most features.num_frames = "
            f"{num_frames}, because a chunk is cut out of a stored spectrogram; lower it, or take "
            "0 for the whole spectrogram"
        )
    shape = n_mels, config.chunk_frames or num_frames, num_tags
    if config.name == "mscnn":
        from mstag.models.mscnn import MultiScaleCnn

        return MultiScaleCnn(config, *shape)
    if config.name == "mscnn2":
        from mstag.models.mscnn2 import MultiScaleRes

        return MultiScaleRes(config, *shape)
    if config.name == "musicnn":
        from mstag.models.musicnn import Musicnn

        return Musicnn(config, *shape)
    if config.name == "short_chunk_res":
        from mstag.models.short_chunk_res import ShortChunkRes

        return ShortChunkRes(config, *shape)
    nearest = difflib.get_close_matches(config.name, ARCHITECTURES, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(ARCHITECTURES)}"
    raise ValueError(f"model.name = {config.name!r}: no such architecture; {hint}")


def embed(model: nn.Module, mel_B1MT: Tensor) -> Tensor:
    """The features (batch, :func:`embedding_size`) that a network's tags are read from."""
    features_BF: Tensor = model.embed(mel_B1MT)  # type: ignore[operator]
    return features_BF


def classify(model: nn.Module, features_BF: Tensor) -> Tensor:
    """Logits (batch, num_tags) of what :func:`embed` gave."""
    logits_BK: Tensor = model.classify(features_BF)  # type: ignore[operator]
    return logits_BK


def embedding_size(model: nn.Module) -> int:
    """How many features :func:`embed` gives: the network's attribute of this name."""
    size = getattr(model, "embedding_size", None)
    assert isinstance(size, int), "a network without embedding_size: is it still in a wrapper?"
    return size


def frames_at_once(model: nn.Module) -> int:
    """Frames that a network takes at once: its attribute ``num_frames``, which each carries."""
    num_frames = getattr(model, "num_frames", None)
    assert isinstance(num_frames, int), "a network without num_frames: is it still in a wrapper?"
    return num_frames


def head_of(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that depend on the tags: its attribute ``head``, which each carries.

    Everything else is the backbone: what other tags can be learnt from.
    """
    names = getattr(model, "head", None)
    assert isinstance(names, tuple), "a network without a head: is it still in a wrapper?"
    return names
