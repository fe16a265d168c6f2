"""The training step: a batch in, better weights out, and no waiting for the device.

Shape suffixes: B clips, 1 channel, M mel bands, T frames, K tags.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mstag import runtime
from mstag.config import TrainConfig
from mstag.runtime import Ranks
from mstag.training import network
from mstag.training.augment import Lots, augment
from mstag.training.ema import Ema
from mstag.training.loss import mean_num_known, summed_loss
from mstag.training.schedule import is_frozen_at, make_optimizer

log = logging.getLogger("mstag")


def check_batch_size(batch_size: int, world_size: int, accumulate_steps: int = 1) -> None:
    """Refuses a global batch that the ranks cannot share, or that BatchNorm cannot use.

    Args:
        batch_size: clips per optimiser step.
        world_size: number of ranks.
        accumulate_steps: pieces in which a rank takes its part.

    Raises:
        ValueError: not divisible by ranks and pieces, or one clip per piece.
    """
    num_pieces = world_size * accumulate_steps
    ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
    who = ranks
    if accumulate_steps > 1:
        who = f"{ranks} with {accumulate_steps} pieces each (train.accumulate_steps)"
    if batch_size % num_pieces:
        raise ValueError(
            f"train.batch_size = {batch_size}: {who} cannot share it equally; take "
            f"--set train.batch_size={max(2, batch_size // num_pieces) * num_pieces} or other ranks"
        )
    if batch_size < 2 * num_pieces:
        each = "piece" if accumulate_steps > 1 else "rank"
        raise ValueError(
            f"train.batch_size = {batch_size}: {who}: each {each} needs 2 clips or more, because "
            f"BatchNorm compares them; take --set train.batch_size={2 * num_pieces} or more"
        )


def check_enough_left(num_clips: int, num_pieces: int = 1) -> None:
    """Refuses a rank's part of a batch that damaged clips have left with less than two a piece.

    Raises:
        ValueError: says so.
    """
    if num_clips < 2 * num_pieces:
        each = "" if num_pieces == 1 else f" in each of {num_pieces} pieces"
        raise ValueError(
            f"{num_clips} clips are left of this rank's part of a batch, the others are damaged: "
            f"BatchNorm needs 2{each}; mend the shards (`shard-tools verify` names the damage)"
        )


class Engine:
    """A model, its optimiser and everything else that a training step changes.

    A step whose loss or gradient is not finite on any rank is left out: weights, optimiser,
    running statistics and the average of the weights stay as they were. Whether it is, is
    known on the device alone; the host learns of it in :meth:`read_means`.

    Args:
        model: is moved to ``device``.
        config: ``[train]``.
        device: where to train.
        precision: fp32, bf16 or fp16.
        ranks: of this process; with several, the copies of the model are kept alike.
        positive_weights: of :func:`mstag.training.loss.positive_weights`; None: none.

    Raises:
        ValueError: ``train.compile`` on a machine that cannot.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        *,
        device: torch.device,
        precision: str,
        ranks: Ranks,
        positive_weights: Tensor | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self.precision = precision
        self.ranks = ranks
        self.model, self._buffers = network.place(model, config, device, ranks)
        self.ema = Ema(self.model, config.ema_decay) if config.ema_decay else None
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.GradScaler(device.type, enabled=precision == "fp16")
        self._is_frozen = is_frozen_at(0, config)
        network.freeze_backbone(self.model, self._is_frozen)
        self.network = network.wrap(self.model, config, device, ranks)
        self._positive_weights = None if positive_weights is None else positive_weights.to(device)
        # Since the last read_means(), on the device, because reading them each step would wait:
        # sums of loss, gradient norm and 1 over the steps that were not left out,
        self._sums = torch.zeros(3, device=device, dtype=torch.float64)
        # and for every step its number and whether it was bad.
        self._news: list[tuple[int, Tensor]] = []
        self._bad_steps: list[int] = []

    def begin_epoch(self, epoch: int) -> None:
        """Freezes or frees the backbone, as ``train.freeze_epochs`` says for this epoch.

        Every rank must call it before the steps of epoch ``epoch`` (0 is the first).
        """
        if self._is_frozen == is_frozen_at(epoch, self.config):
            return
        self._is_frozen = not self._is_frozen
        network.freeze_backbone(self.model, self._is_frozen)
        self.network = self.model
        gc.collect()  # DDP's hooks go with the old one, which lies in cycles
        self.network = network.wrap(self.model, self.config, self.device, self.ranks)

    def step(self, batch: Mapping[str, Any], step: int, learning_rate: float) -> None:
        """One optimiser step on this rank's part of a global batch (mstag.data.stream.Batch).

        Everything random in it is a function of (seed, step, rank); the augmentation is one of
        (seed, step) and the clip's place in the global batch.
        """
        runtime.seed_everything(self.config.seed, step, self.ranks.rank)
        x_B1MT, y_BK, known_BK = self._augmented(batch, step)
        backups = [flat.clone() for flat in self._buffers]

        self.optimizer.zero_grad(set_to_none=True)
        with network.compile_errors_named() if self.config.compile else contextlib.nullcontext():
            loss = self._backward(x_B1MT, y_BK, known_BK)
        self.scaler.unscale_(self.optimizer)
        weights = list(self.model.parameters())
        grad_norm = nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        if self.config.grad_clip:
            nn.utils.clip_grads_with_norm_(weights, self.config.grad_clip, grad_norm)
        left_out = ~grad_norm.isfinite()  # the same on all ranks: they share the gradient
        self._update(learning_rate, left_out)
        bad = self._is_bad(left_out, loss)
        self.scaler.update()

        for flat, backup in zip(self._buffers, backups, strict=True):
            torch.where(left_out, backup, flat, out=flat)
        if self.ema is not None:
            self.ema.update(self.model, ~left_out)
        done = torch.stack([loss, grad_norm, torch.ones_like(loss)])
        self._sums += done.where(~left_out, 0)
        self._news.append((step, bad))

    def read_means(self) -> tuple[float, float]:
        """Mean (loss, gradient norm) of the steps since the last call; waits for the device.

        Every rank must call it: the loss is the mean over all of them. Steps that were left
        out do not count, and are named in the log; NaN where there was no other.

        Raises:
            ValueError: more steps than ``train.max_bad_steps`` had to be left out.
        """
        flags = torch.stack([bad for _, bad in self._news]) if self._news else self._sums[:0]
        read = torch.cat([self._sums, flags.double()])
        if self.ranks.world_size > 1:
            torch.distributed.all_reduce(read)
            read /= self.ranks.world_size
        loss, grad_norm, num_steps, *bad = read.tolist()
        numbers = [number for (number, _), flag in zip(self._news, bad, strict=True) if flag]
        self._sums.zero_()
        self._news.clear()
        self._note_bad_steps(numbers)
        if not num_steps:
            return math.nan, math.nan
        return loss / num_steps, grad_norm / num_steps

    def averaged_model(self) -> nn.Module:
        """The model to score and to save: the average where there is one, else the model."""
        return self.model if self.ema is None else self.ema.model

    def ema_distance(self) -> float | None:
        """How far the average is from the weights, relative to them; None without an average."""
        return None if self.ema is None else self.ema.distance(self.model)

    def weight_norm(self) -> float:
        """L2 norm of all parameters together; waits for the device."""
        return float(nn.utils.get_total_norm([w.detach() for w in self.model.parameters()]))

    def state_dict(self) -> dict[str, Any]:
        """Weights, their average, optimiser, loss scale, sums: plain tensors and numbers.

        Every rank must call it; but for what :meth:`read_means` will average, theirs are alike.
        """
        sums = [torch.empty_like(self._sums) for _ in range(self.ranks.world_size)]
        if self.ranks.world_size > 1:
            torch.distributed.all_gather(sums, self._sums)
        else:
            sums[0].copy_(self._sums)
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sums": torch.stack(sums),
            "news": [(number, bool(bad)) for number, bad in self._news],
            "bad_steps": list(self._bad_steps),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`, at any number of ranks."""
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        sums = state["sums"]
        alike = len(sums) == self.ranks.world_size
        self._sums.copy_(sums[self.ranks.rank] if alike else sums.mean(dim=0))
        self._news = [
            (number, torch.tensor(bad, device=self.device)) for number, bad in state["news"]
        ]
        self._bad_steps = list(state["bad_steps"])

    def _augmented(
        self, batch: Mapping[str, Any], step: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The batch on the device, in float32, augmented and laid out for the network."""
        config, ranks = self.config, self.ranks
        x_B1MT = batch["mel"].to(self.device, torch.float32)
        y_BK = batch["tags"].to(self.device, torch.float32)
        known_BK = batch["mask"].to(self.device, torch.float32) if "mask" in batch else None
        if config.on_bad_clip == "skip":
            check_enough_left(len(x_B1MT), config.accumulate_steps)
            if known_BK is None and ranks.world_size > 1:
                # Ranks may have lost different numbers of clips: count what is known.
                known_BK = torch.ones_like(y_BK)
        num_clips = max(config.batch_size // ranks.world_size, len(x_B1MT))
        lots = Lots(config.seed, step, num_clips, ranks.rank, ranks.world_size)
        num_frames = getattr(self.model, "num_frames", None)
        x_B1MT, y_BK, known_BK = augment(x_B1MT, y_BK, known_BK, config, lots, num_frames)
        if config.channels_last:
            # Not contiguous(), which leaves one-channel input as it is and the first pooling
            # several times slower.
            x_B1MT = x_B1MT.to(memory_format=torch.channels_last)
        return x_B1MT, y_BK, known_BK

    def _backward(self, x_B1MT: Tensor, y_BK: Tensor, known_BK: Tensor | None) -> Tensor:
        """Puts the batch's gradient into the weights, piece by piece; returns the loss."""
        num_pieces = self.config.accumulate_steps
        num_known = mean_num_known(y_BK, known_BK, self.ranks)
        x_pieces, y_pieces = x_B1MT.tensor_split(num_pieces), y_BK.tensor_split(num_pieces)
        known_pieces = None if known_BK is None else known_BK.tensor_split(num_pieces)
        sum_of_losses = torch.zeros((), device=self.device)
        if self._is_frozen or not (self.network.training and self.model.training):
            self.network.train()  # through all modules: 0.2 ms
        if self._is_frozen:
            network.set_backbone_to_eval(self.model)
        for number, (x, y) in enumerate(zip(x_pieces, y_pieces, strict=True)):
            known = None if known_pieces is None else known_pieces[number]
            is_last = number == num_pieces - 1
            with contextlib.nullcontext() if is_last else self._without_reduction():
                with self._autocast():
                    logits = self.network(x)
                loss = summed_loss(
                    logits.float(),
                    y,
                    known,
                    label_smoothing=self.config.label_smoothing,
                    positive_weights=self._positive_weights,
                )
                loss = loss / num_known
                # A loss that is not finite may have a gradient that is. Times 1 + 0 * loss,
                # which is 1 or NaN, it has not, and the all-reduce tells the other ranks.
                loss = loss * (1 + 0 * loss.detach())
                torch.autograd.backward(self.scaler.scale(loss))
            sum_of_losses += loss.detach()
        return sum_of_losses

    def _update(self, learning_rate: float, left_out: Tensor) -> None:
        """Moves the weights, or leaves everything as it is where ``left_out`` is true."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        # What GradScaler hands to fused optimisers, by which they skip a step on the device.
        self.optimizer.found_inf = left_out.float()  # type: ignore[attr-defined]
        self.optimizer.step()

    def _is_bad(self, left_out: Tensor, loss: Tensor) -> Tensor:
        """Whether a step that was left out is more than fp16's search for a loss scale."""
        if not self.scaler.is_enabled():
            return left_out
        diverged = (~loss.isfinite()).float()
        if self.ranks.world_size > 1:
            torch.distributed.all_reduce(diverged, torch.distributed.ReduceOp.MAX)
        # Overflow at a scale of 1 is not the scale's doing.
        scale = self.scaler.scale(torch.ones_like(loss))
        return left_out & ((diverged > 0) | (scale <= 1))

    def _note_bad_steps(self, numbers: list[int]) -> None:
        """Names the steps that were left out, counted from 1, and ends a run of too many."""
        budget = self.config.max_bad_steps
        for number in numbers:
            self._bad_steps.append(number)
            if self.ranks.is_first:
                log.warning(
                    f"step {number + 1}: the loss or its gradient was not finite: left out "
                    f"({len(self._bad_steps)} of train.max_bad_steps = {budget})"
                )
        if len(self._bad_steps) > budget:
            raise ValueError(
                f"the loss or its gradient was not finite in {len(self._bad_steps)} steps, the "
                f"last of them step {self._bad_steps[-1] + 1}; train.max_bad_steps = {budget}: "
                "training has diverged. None of these steps has touched the weights. Start anew "
                "with --fresh and a lower train.learning_rate, train.grad_clip = 1 or "
                "train.precision = fp32; if it is always the same clips, look for damage "
                "(`shard-tools verify`)"
            )

    def _without_reduction(self) -> contextlib.AbstractContextManager[Any]:
        """Gradients stay with their rank until the last piece."""
        if isinstance(self.network, DistributedDataParallel):
            return self.network.no_sync()
        return contextlib.nullcontext()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype)
