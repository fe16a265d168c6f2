"""What a config asks for, put together: the loader of the training split, and the engine."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mstag import runtime
from mstag.config import Config
from mstag.data.shards import Manifest
from mstag.data.store import Store
from mstag.data.stream import ShardLoader
from mstag.models import build_model
from mstag.runtime import Ranks
from mstag.training import finetune
from mstag.training.engine import Engine, check_batch_size
from mstag.training.loss import positive_weights


def make_loader(config: Config, store: Store, device: torch.device, ranks: Ranks) -> ShardLoader:
    """The training split: every rank reads its part of each global batch.

    Raises:
        ValueError: a batch that the ranks cannot share.
    """
    settings = config.train
    check_batch_size(settings.batch_size, ranks.world_size, settings.accumulate_steps)
    return ShardLoader(
        store,
        "train",
        batch_size=settings.batch_size,
        shuffle=True,
        seed=settings.seed,
        window=settings.shuffle_window,
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_workers=settings.loader_workers,
        device=device,
        on_bad_clip=settings.on_bad_clip,
        max_bad_clips=settings.max_bad_clips,
    )


def make_engine(
    config: Config,
    manifest: Manifest,
    device: torch.device,
    precision: str,
    ranks: Ranks,
    backbone: Mapping[str, Tensor] | None = None,
) -> Engine:
    """The network with its first weights, and what trains it.

    Args:
        config: the settings.
        manifest: of the shards.
        device: where to train.
        precision: fp32, bf16 or fp16.
        ranks: of this process.
        backbone: first weights of :mod:`mstag.training.finetune`; all others are the seed's.
    """
    runtime.seed_everything(config.train.seed)
    features, num_clips = manifest.features, manifest.splits["train"].clips
    model = build_model(config.model, features.n_mels, features.num_frames, len(manifest.tag_names))
    if backbone is not None:
        finetune.load_backbone(model, backbone)
    known = [tag.get("known", {}).get("train", num_clips) for tag in manifest.tags]
    positives = [tag["positives"]["train"] for tag in manifest.tags]
    return Engine(
        model,
        config.train,
        device=device,
        precision=precision,
        ranks=ranks,
        positive_weights=positive_weights(positives, known, config.train.positive_weight),
    )
