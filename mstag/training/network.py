"""A model made ready for training: where it lies, how its copies stay alike, what is compiled."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mstag.config import TrainConfig
from mstag.models import head_of
from mstag.runtime import Ranks

ALIGNED_BYTES = 64
"""Kernels of cuDNN may count on 16."""


def place(
    model: nn.Module, config: TrainConfig, device: torch.device, ranks: Ranks
) -> tuple[nn.Module, list[Tensor]]:
    """Moves a model to its device and gathers its buffers.

    Returns:
        The model (another one where SyncBatchNorm replaced the norms), and its buffers as
        :func:`flatten_buffers` gives them.
    """
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    if ranks.world_size > 1 and device.type == "cuda" and config.sync_batchnorm:
        # One batch over all ranks, for BatchNorm too. gloo has no such layer: CPU ranks
        # normalise by their own clips.
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return model, flatten_buffers(model)


def wrap(model: nn.Module, config: TrainConfig, device: torch.device, ranks: Ranks) -> nn.Module:
    """The network that the training step calls: compiled and distributed, as asked for.

    ``model`` stays what it is, and shares its weights with the network.

    Raises:
        ValueError: ``train.compile`` on a machine that cannot.
    """
    network = model
    if config.compile:
        check_compiler(device)
        # CUDA graphs spare the launches of hundreds of small kernels. DDP's hooks run amid
        # the backward pass, and gradients that are added up would lie in the graph's memory.
        whole = ranks.world_size == config.accumulate_steps == 1 and device.type == "cuda"
        mode = "reduce-overhead" if whole else "default"
        network = cast(nn.Module, torch.compile(model, mode=mode))
    if ranks.world_size > 1:
        network = DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # Training uses no running statistics, and scoring takes rank 0's: to send them
            # round before every step would be waste.
            broadcast_buffers=False,
            # All steps alike: DDP need not search the graph. Pieces without an all-reduce
            # are not alike, and a compiled network hides its graph.
            static_graph=config.accumulate_steps == 1 and not config.compile,
        )
    return network


def freeze_backbone(model: nn.Module, frozen: bool) -> None:
    """Says which weights learn: all, or the head's alone.

    Whatever wraps the model must be made anew: DDP looks at it once.
    """
    model.requires_grad_(not frozen)
    if frozen:
        for name in head_of(model):
            model.get_submodule(name).requires_grad_(True)


def set_backbone_to_eval(model: nn.Module) -> None:
    """Lets a frozen backbone give what it gives when it is scored.

    BatchNorm takes its running statistics and leaves them alone, dropout drops nothing.
    """
    model.eval()
    for name in head_of(model):
        model.get_submodule(name).train()


def flatten_buffers(model: nn.Module) -> list[Tensor]:
    """Moves a model's buffers into one flat tensor per dtype, in which they then lie.

    However many layers there are, all running statistics can then be copied and put back by
    one kernel each. Each starts at a multiple of ``ALIGNED_BYTES``, as a tensor of its own would,
    with zeros behind it.

    Returns:
        The flat tensors.
    """
    found: dict[torch.dtype, dict[int, Tensor]] = {}
    for buffer in model.buffers():
        found.setdefault(buffer.dtype, {})[id(buffer)] = buffer
    moved: dict[int, Tensor] = {}
    flats = []
    for buffers in found.values():
        unit = ALIGNED_BYTES // next(iter(buffers.values())).element_size()
        sizes = [-(-buffer.numel() // unit) * unit for buffer in buffers.values()]
        flat = next(iter(buffers.values())).new_zeros(sum(sizes))
        for buffer, part in zip(buffers.values(), torch.split(flat, sizes), strict=True):
            own = part[: buffer.numel()].view_as(buffer)
            own.copy_(buffer)
            # .data, not a view: autograd counts the changes of each for itself, so that one
            # layer's update does not spoil what another has saved for its backward pass.
            moved[id(buffer)] = own.data
        flats.append(flat)
    for module in model.modules():
        for name, own in list(module.named_buffers(recurse=False)):
            setattr(module, name, moved[id(own)])
    return flats


def check_compiler(device: torch.device) -> None:
    """Refuses ``train.compile`` where torch would find no compiler at its first step.

    Raises:
        ValueError: says which one is missing.
    """
    if device.type == "cuda":  # Triton builds a small C module to launch its kernels
        names = [os.environ.get("CC") or "gcc", "clang"]
    elif sys.platform == "darwin":
        names = [os.environ.get("CXX") or "clang++"]
    else:
        names = [os.environ.get("CXX") or ("cl" if sys.platform == "win32" else "g++")]
    if not any(shutil.which(name) for name in names):
        what, variable = ("C", "CC") if device.type == "cuda" else ("C++", "CXX")
        raise ValueError(
            f"train.compile = true: torch needs a {what} compiler, and there is no "
            f"{' or '.join(names)} here; install one, name one in ${variable}, or take "
            "--set train.compile=false"
        )


@contextlib.contextmanager
def compile_errors_named() -> Iterator[None]:
    """Makes a ValueError of what goes wrong while the network is compiled, at its first step."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"train.compile = true: torch cannot compile the network here ({reason}); take "
            "--set train.compile=false"
        ) from error
