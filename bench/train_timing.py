"""Clocks of bench/train.py: steps, epochs, stages of a step, the device's peak, memory."""

from __future__ import annotations

import itertools
import math
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from mstag.training import engine as engine_room
from mstag.training.display import Clock

BLOCK = {"cpu": 1, "cuda": 10}
"""Steps between two looks at the clock, each of which waits for the device."""
WARM_UP = {"cpu": 0, "cuda": 20}
"""Steps after the first that do not count: cuDNN's choices, the recording of CUDA graphs."""

Batch = dict[str, Any]
Step = Callable[[Batch, int], None]


def wait_for(device: torch.device) -> float:
    """The time when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_steps(
    step: Callable[[int], None], device: torch.device, num_steps: int, limit_s: float
) -> dict[str, Any]:
    """The first step apart, then blocks of steps until there are enough or it takes too long."""
    began = wait_for(device)
    step(0)
    first_s = wait_for(device) - began
    number, size = 1 + WARM_UP[device.type], BLOCK[device.type]
    for earlier in range(1, number):
        step(earlier)
    forget_peak(device)
    seconds: list[float] = []
    while not seconds or (len(seconds) * size < num_steps and sum(seconds) * size < limit_s):
        began = wait_for(device)
        for _ in range(size):
            step(number)
            number += 1
        seconds.append((wait_for(device) - began) / size)
    return {"first_s": first_s, "step_s": seconds}


def time_epochs(
    epoch_of: Callable[[int], Iterable[Batch]],
    step: Step,
    device: torch.device,
    num_epochs: int,
    limit_s: float,
) -> dict[str, Any]:
    """Whole epochs, or what of them the limit allows, after a few steps that warm up."""
    number, first_s = 0, 0.0
    began = wait_for(device)
    for batch in epoch_of(0):
        step(batch, number)
        if number == 0:
            first_s = wait_for(device) - began
        number += 1
        if number > WARM_UP[device.type]:
            break
    forget_peak(device)
    batches = itertools.chain.from_iterable(map(epoch_of, range(1, num_epochs + 1)))
    clock, num_clips, first_number = Clock(), 0, number
    began = wait_for(device)
    for batch in clock.watch(batches):
        step(batch, number)
        number += 1
        num_clips += len(batch["mel"])
        if time.perf_counter() - began > limit_s:
            break
    seconds = wait_for(device) - began
    return {
        "first_s": first_s,
        "clips_per_s": num_clips / seconds,
        "steps": number - first_number,
        "data_wait": clock.lap()[1],
    }


def forget_peak(device: torch.device) -> None:
    """Counts a GPU's peak anew: cuDNN's search takes more than any later step does."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """What this process took of the GPU since it warmed up, else of the machine so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    kilo = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo / 1e6


# ---- Where the time of a step goes ----------------------------------------------------------

STAGES = [
    ("optimiser", "any", r"Optimizer\.step"),
    ("augmentation", "any", r"^augment$"),
    ("pooling", "own", r"_pool2d"),
    ("copies", "own", r"^aten::(copy_|clone|contiguous|to|_to_copy|cat|fill_|zero_)$"),
    ("convolution backward", "any", r"convolution_backward|^_\w*Conv\w*Backward$"),
    ("convolution forward", "own", r"conv"),
]
"""In this order: a stage, and the name (of the operator, or of any that it runs in) it goes by."""


def stage_of(names: list[str]) -> str:
    """The stage of an operator from its own name, followed by those it runs in."""
    for stage, which, pattern in STAGES:
        if any(re.search(pattern, name) for name in (names[:1] if which == "own" else names)):
            return stage
    return "rest"


def stages_ms(step: Callable[[], None], device: torch.device) -> dict[str, float]:
    """Milliseconds of one step by stage: operators' own times, on a GPU those of its kernels."""
    augment = engine_room.augment

    def named_augment(*arguments: Any, **named: Any) -> Any:
        with record_function("augment"):
            return augment(*arguments, **named)

    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    engine_room.augment = named_augment
    for _ in range(2 if on_gpu else 1):  # the first sets CUDA's tracing up
        with profile(activities=activities, acc_events=True) as recorded:
            step()
            wait_for(device)
    engine_room.augment = augment
    found = dict.fromkeys([stage for stage, _, _ in STAGES] + ["rest"], 0.0)
    for event in recorded.events():
        if event.device_type != DeviceType.CPU:
            continue  # kernels: they count at the operator that started them
        own_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        names, outer = [event.name], event.cpu_parent
        while outer is not None:
            names.append(outer.name)
            outer = outer.cpu_parent
        found[stage_of(names)] += own_us / 1e3
    return found


# ---- The device -----------------------------------------------------------------------------


def flops_per_clip(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[float, float]:
    """Of a network: (forward, forward and backward), a multiplication and an addition as 2."""
    with torch.device("meta"):
        model, mel = make(), torch.empty(2, *shape)
    with FlopCounterMode(display=False) as forward:
        logits = model(mel)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    once = forward.get_total_flops() / 2
    return once, once + backward.get_total_flops() / 2


def peaks(device: torch.device, *, has_bf16_units: bool) -> dict[str, float]:
    """FLOP/s of large matrix products, the best of several: what the arithmetic units can do."""
    on_gpu = device.type == "cuda"
    kinds = {"fp32": torch.float32}
    kinds |= {"bf16": torch.bfloat16} if has_bf16_units else {}
    kinds |= {"tf32": torch.float32, "fp16": torch.float16} if on_gpu else {}
    size, num_products = (8192, 10) if on_gpu else (2048, 1)
    found = {}
    for kind, dtype in kinds.items():
        if on_gpu:
            torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        best = math.inf
        for attempt in range(8):
            began = wait_for(device)
            for _ in range(num_products):
                torch.mm(a, b)
            if attempt:
                best = min(best, (wait_for(device) - began) / num_products)
        found[kind] = 2 * size**3 / best
    return found
