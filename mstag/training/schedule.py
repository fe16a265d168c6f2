"""How the weights move: when and how fast, and the optimiser."""

from __future__ import annotations

import math

import torch
from torch import nn

from mstag.config import TrainConfig


def learning_rate_at(step: int, total_steps: int, config: TrainConfig) -> float:
    """Learning rate of step ``step`` (0 is the first) of ``total_steps``.

    It rises linearly over ``warmup_steps``, whose last step reaches the peak, and then
    stays ("constant") or follows half a cosine that would reach zero at ``total_steps``.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def is_frozen_at(epoch: int, config: TrainConfig) -> bool:
    """Whether only the head learns in epoch ``epoch`` (0 is the first)."""
    return config.freeze_epochs < 0 or epoch < config.freeze_epochs


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam (L2 in the gradient) or AdamW (decoupled decay); one fused kernel for all weights.

    The fused kernels also skip a step by themselves where a flag on the device says so. Weights
    without a gradient, which are frozen, neither move nor decay.
    """
    cls = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return cls(
        model.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
