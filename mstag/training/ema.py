"""An exponential moving average of a model's weights, kept on the device without waiting for it.

After n updates the average moves by 1 - d, with the decay

    d = min(decay, (1 + n) / (10 + n)),

so that the initial weights, which nobody wants, are soon forgotten (the warm-up that
TensorFlow's ExponentialMovingAverage has with num_updates).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """The average of a model's parameters and floating-point buffers.

    Args:
        model: is copied; its weights are the first average.
        decay: in (0, 1); the share that the average keeps in an update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        """The averaged model, in evaluation mode; its tensors move with every update."""
        device = next(model.parameters()).device
        # A tensor, because whether a step counts is known on the device alone.
        self.num_updates = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, model: nn.Module, good: Tensor) -> None:
        """Moves the average towards ``model``.

        Args:
            model: the one that is trained; all of its weights are finite.
            good: 0-d; 1: the step counts, 0: it was left out, and nothing moves.
        """
        weight = (9 / (10 + self.num_updates)).clamp(min=1 - self.decay)  # 1 - d
        self.num_updates += good
        averages = averaged_tensors(self.model)
        moves = torch._foreach_sub(averaged_tensors(model), averages)
        torch._foreach_mul_(moves, (weight * good).float())
        torch._foreach_add_(averages, moves)

    @torch.no_grad()
    def distance(self, model: nn.Module) -> float:
        """||average - weights|| / ||weights|| over all parameters; waits for the device."""
        weights: list[Tensor] = list(model.parameters())
        averages: list[Tensor] = list(self.model.parameters())
        difference = nn.utils.get_total_norm(torch._foreach_sub(averages, weights))
        return float(difference / nn.utils.get_total_norm(weights))

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors."""
        return {"model": self.model.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.model.load_state_dict(state["model"])
        self.num_updates.copy_(state["num_updates"])


def averaged_tensors(model: nn.Module) -> list[Tensor]:
    """What is averaged: parameters and running statistics; counters of batches are not."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    return [*(weights.detach() for weights in model.parameters()), *buffers]
