"""Another batch size for a recipe: the learning rate goes with it, and what fits is found."""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mstag import runtime
from mstag.config import Config
from mstag.console import one_line
from mstag.data.shards import Manifest
from mstag.runtime import Ranks
from mstag.training.assembly import make_engine

log = logging.getLogger("mstag")

STEPS_PER_EPOCH = 20
"""``auto`` leaves this many steps to an epoch at least: learning takes steps, not clips alone."""
WORTH_IT = 1.05
"""A larger batch must train this much faster to be taken: smaller ones learn more per clip."""
MEMORY_SHARE = 0.8
"""Of the memory that is free: what a trial may be expected to take, twice the one before."""
NUM_STEPS = 3


def resolve(
    config: Config,
    wanted: str,
    state: dict[str, Any] | None,
    manifest: Manifest,
    device: torch.device,
    ranks: Ranks,
) -> Config:
    """The config that --batch-size asks for; every rank must call it.

    Args:
        config: the recipe.
        wanted: a number, or "auto": the one that a run which goes on has found before, else
            what :func:`largest_worth_it` finds on this device.
        state: the checkpoint of the run that goes on, if one does.
        manifest: of the shards.
        device: where to train.
        ranks: of this process.

    Raises:
        ValueError: neither.
    """
    if wanted.isdecimal() and int(wanted) > 0:
        return with_batch_size(config, int(wanted))
    if wanted != "auto":
        raise ValueError(f"--batch-size {wanted}: must be a whole number above 0, or auto")
    if state is not None:
        return with_batch_size(config, state["config"]["train"]["batch_size"])
    start, num_clips = config.train.batch_size, manifest.splits["train"].clips

    before, peaks = peak_bytes(), [0]

    def seconds(batch_size: int) -> float | None:
        taken = None
        # A GPU says by itself when it is full. A CPU's kernel would kill somebody.
        if device.type != "cpu" or 2 * peaks[-1] < MEMORY_SHARE * available_bytes(ranks):
            try:
                taken = seconds_of_steps(config, manifest, device, batch_size // ranks.world_size)
            except RuntimeError as error:  # e.g. more numbers than a kernel can count
                if batch_size == start:
                    raise
                log.info(one_line(error)[:200])
            peaks.append(peak_bytes() - before)
        # As slow as the slowest rank; infinite where one has no room.
        taken_s = max(runtime.gather_over_ranks(math.inf if taken is None else taken, ranks))
        return None if math.isinf(taken_s) else taken_s

    found = largest_worth_it(seconds, start, num_clips)
    changed = with_batch_size(config, found)
    log.info(f"batch size {found}, learning rate {changed.train.learning_rate:.3g}")
    return changed


def with_batch_size(config: Config, batch_size: int) -> Config:
    """The same recipe with another batch size.

    The learning rate follows as ``train.lr_scaling`` says (with the square root of the ratio
    for Adam: Malladi et al. 2022; with the ratio: Goyal et al. 2017), and the warm-up lasts as
    many clips as before.
    """
    train = config.train
    ratio = batch_size / train.batch_size
    power = {"sqrt": 0.5, "linear": 1.0, "none": 0.0}[train.lr_scaling]
    changed = dataclasses.replace(
        train,
        batch_size=batch_size,
        learning_rate=train.learning_rate * ratio**power,
        warmup_steps=math.ceil(train.warmup_steps / ratio),
    )
    return dataclasses.replace(config, train=changed)


def largest_worth_it(seconds: Callable[[int], float | None], start: int, num_clips: int) -> int:
    """Doubles a batch while it fits, trains faster, and leaves enough steps to an epoch.

    Args:
        seconds: batch size -> how long ``NUM_STEPS`` steps take, or None where it has no room.
        start: the recipe's batch size.
        num_clips: of the training split.

    Returns:
        The size to take; ``start`` where nothing larger is better.
    """
    best, best_rate, size = start, 0.0, start
    while size == start or size * STEPS_PER_EPOCH <= num_clips:
        taken_s = seconds(size)
        if taken_s is None:
            log.info(f"batch size {size}: does not fit")
            break
        rate = size * NUM_STEPS / taken_s
        log.info(f"batch size {size}: {rate:.1f} clips/s")
        if rate < WORTH_IT * best_rate:
            break
        best, best_rate, size = size, rate, 2 * size
    return best


def seconds_of_steps(
    config: Config, manifest: Manifest, device: torch.device, num_clips: int
) -> float | None:
    """Times ``NUM_STEPS`` steps of one rank on noise, after one that is not counted.

    Returns:
        Seconds, or None if there is not enough memory for a batch of ``num_clips``.
    """
    # Not compiled: each trial would cost a minute, and leave its graphs behind.
    train = dataclasses.replace(config.train, compile=False)
    config = dataclasses.replace(config, train=train)
    precision = runtime.pick_precision(config.train.precision, device)
    features, num_tags = manifest.features, len(manifest.tag_names)
    shape = num_clips, 1, features.n_mels, features.num_frames
    try:
        engine = make_engine(config, manifest, device, precision, Ranks())
        batch = {
            "mel": torch.randn(shape, device=device).half(),
            "tags": torch.zeros(num_clips, num_tags, dtype=torch.uint8, device=device),
        }
        engine.step(batch, 0, config.train.learning_rate)
        engine.read_means()
        started = time.perf_counter()
        for step in range(NUM_STEPS):
            engine.step(batch, step, config.train.learning_rate)
        engine.read_means()  # waits for the device
        return time.perf_counter() - started
    except torch.OutOfMemoryError:
        return None
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def peak_bytes() -> int:
    """The most memory that this process has held so far; 0 where nobody counts it."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes(ranks: Ranks) -> float:
    """This rank's share of the memory that the machine can still give; infinite if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable")), "inf")
    return float(kilobytes) * 1024 / ranks.local_world_size
