"""The training step: a batch in, better weights out, and no waiting for the device.

Shape suffixes: B clips, 1 channel, M mel bands, T frames, K tags.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mstag import runtime
from mstag.config import TrainConfig
from mstag.runtime import Ranks
from mstag.training.augment import augment


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


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam (L2 in the gradient) or AdamW (decoupled decay); one fused kernel for all weights."""
    cls = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return cls(
        model.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )


def check_batch_size(batch_size: int, world_size: int) -> None:
    """Refuses a global batch that the ranks cannot share, or that BatchNorm cannot use.

    Raises:
        ValueError: not divisible by the ranks, or one clip per rank.
    """
    if batch_size % world_size:
        raise ValueError(
            f"train.batch_size = {batch_size}: {world_size} ranks cannot share it equally; take "
            f"--set train.batch_size={max(2, batch_size // world_size) * world_size} or other ranks"
        )
    if batch_size < 2 * world_size:
        raise ValueError(
            f"train.batch_size = {batch_size}: each rank needs 2 clips or more, because BatchNorm "
            f"compares them; take --set train.batch_size={2 * world_size} or more"
        )


def check_enough_left(num_clips: int) -> None:
    """Refuses a rank's part of a batch that damaged clips have left with less than two.

    Raises:
        ValueError: says so.
    """
    if num_clips < 2:
        raise ValueError(
            f"{num_clips} clips are left of this rank's part of a batch, the others are damaged: "
            "BatchNorm needs 2; mend the shards (`shard-tools verify` names the damage)"
        )


def masked_loss(logits_BK: Tensor, y_BK: Tensor, known_BK: Tensor | None, ranks: Ranks) -> Tensor:
    """Binary cross-entropy, the mean over every known label of the global batch.

    DDP averages the ranks' gradients. Where labels are partial, ranks know different
    numbers of them, so each divides by the mean number and not by its own.
    """
    if known_BK is None:
        return F.binary_cross_entropy_with_logits(logits_BK, y_BK)
    num_known = known_BK.sum()
    if ranks.world_size > 1:
        torch.distributed.all_reduce(num_known)
        num_known = num_known / ranks.world_size
    total = F.binary_cross_entropy_with_logits(logits_BK, y_BK, known_BK, reduction="sum")
    return total / num_known.clamp(min=1e-9)


class Engine:
    """A model, its optimiser and everything else that a training step changes."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        *,
        device: torch.device,
        precision: str,
        ranks: Ranks,
    ) -> None:
        """Moves ``model`` to ``device`` and, with several ranks, keeps its copies alike."""
        self.config = config
        self.device = device
        self.precision = precision
        self.ranks = ranks
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
        if ranks.world_size > 1 and device.type == "cuda":
            # One batch over all ranks, for BatchNorm too. gloo has no such layer: CPU ranks
            # normalise by their own clips.
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.GradScaler(device.type, enabled=precision == "fp16")
        self.network: nn.Module = self.model
        if ranks.world_size > 1:
            self.network = DistributedDataParallel(
                self.model,
                device_ids=[device] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )
        # Sums since the last read_means(), on the device: reading them each step would wait.
        self._sums = torch.zeros(2, device=device)
        self._num_steps = 0

    def step(self, batch: Mapping[str, Any], step: int, learning_rate: float) -> None:
        """One optimiser step on this rank's part of a global batch (mstag.data.stream.Batch).

        Everything random in it is a function of (seed, step, rank).
        """
        key = (self.config.seed, step, self.ranks.rank)
        runtime.seed_everything(*key)
        x_B1MT = batch["mel"].to(self.device, torch.float32)
        y_BK = batch["tags"].to(self.device, torch.float32)
        known_BK = batch["mask"].to(self.device, torch.float32) if "mask" in batch else None
        if self.config.on_bad_clip == "skip":
            check_enough_left(len(x_B1MT))
            if known_BK is None and self.ranks.world_size > 1:
                # Ranks may have lost different numbers of clips: count what is known.
                known_BK = torch.ones_like(y_BK)
        rng = np.random.default_rng(key)
        x_B1MT, y_BK, known_BK = augment(x_B1MT, y_BK, known_BK, self.config, rng)
        if self.config.channels_last:
            # Not contiguous(), which leaves one-channel input as it is and the first pooling
            # several times slower.
            x_B1MT = x_B1MT.to(memory_format=torch.channels_last)

        self.network.train()
        with self._autocast():
            logits_BK = self.network(x_B1MT)
        loss = masked_loss(logits_BK.float(), y_BK, known_BK, self.ranks)

        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.unscale_(self.optimizer)
        weights = list(self.model.parameters())
        grad_norm = nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        if self.config.grad_clip:
            nn.utils.clip_grads_with_norm_(weights, self.config.grad_clip, grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.scaler.step(self.optimizer)
        self.scaler.update()

        self._sums += torch.stack([loss.detach(), grad_norm])
        self._num_steps += 1

    def read_means(self) -> tuple[float, float]:
        """Mean (loss, gradient norm) of the steps since the last call; waits for the device.

        Every rank must call it: the loss is the mean over all of them.

        Raises:
            ValueError: the loss is NaN or infinite; every further step would be wasted.
        """
        sums = self._sums.clone()
        if self.ranks.world_size > 1:
            torch.distributed.all_reduce(sums)
        loss, grad_norm = (sums / self.ranks.world_size / max(1, self._num_steps)).tolist()
        self._sums.zero_()
        self._num_steps = 0
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss}: training has diverged; start anew with --fresh and a lower "
                "train.learning_rate, or with train.precision=fp32"
            )
        return loss, grad_norm

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, loss scale and the running sums: plain tensors and numbers."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sums": self._sums,
            "num_steps": self._num_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self._sums.copy_(state["sums"])
        self._num_steps = state["num_steps"]

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype)
