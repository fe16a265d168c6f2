"""--dry-run: everything that a training does, once, in seconds; then what it would do.

Nothing is written but a checkpoint in a temporary folder beside the run, which is read back
and removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mstag import runtime
from mstag.config import Config
from mstag.data.store import Store
from mstag.data.stream import ShardLoader
from mstag.models.predict import predict
from mstag.training import checkpoint, runs, wandb_run
from mstag.training.display import duration
from mstag.training.engine import Engine
from mstag.training.schedule import learning_rate_at
from mstag.training.score import CLIPS_PER_RANK

NUM_STEPS = 2
"""The first one warms up, the others are timed."""


def rehearse(
    engine: Engine,
    loader: ShardLoader,
    store: Store,
    run: Path,
    config: Config,
    progress: checkpoint.Progress,
    identity: Mapping[str, Any],
) -> None:
    """Trains two steps, scores a batch, saves and loads a checkpoint, and prints a plan.

    Every rank must call it. The engine and the loader are of no use afterwards.

    Raises:
        ValueError, OSError: what would have stopped the training.
    """
    ranks, settings = engine.ranks, config.train
    runtime.on_first_rank(lambda: runs.check_place(run), ranks)
    total_steps = len(loader) * settings.epochs
    step_s, step = [], progress.step
    engine.begin_epoch(progress.epoch)
    with contextlib.closing(iter(loader)) as batches:
        for _ in range(NUM_STEPS):
            started = time.perf_counter()
            batch = next(batches, None)
            if batch is None:  # the run stands at the very end of an epoch
                break
            engine.step(batch, step, learning_rate_at(step, total_steps, settings))
            loss, _ = engine.read_means()
            step_s.append(time.perf_counter() - started)
            step += 1
    loader.close()
    score_s = _score_one_batch(engine, store)

    state = {
        **identity,
        "step": step,
        "progress": dataclasses.asdict(progress),
        "engine": engine.state_dict(),
        "loader": loader.state_dict() | {"refused": 0},
    }
    started = time.perf_counter()
    num_bytes = runtime.from_first_rank(lambda: _save_and_load(run, state), ranks)
    save_s = time.perf_counter() - started
    if not ranks.is_first:
        return

    num_valid = store.manifest.splits["valid"].clips
    valid_s = score_s * num_valid / min(num_valid, CLIPS_PER_RANK * ranks.world_size)
    steps_left = total_steps - progress.step
    every = settings.valid_every_epochs
    scorings_left = math.ceil(settings.epochs / every) - progress.epoch // every
    train_s = steps_left * (step_s[-1] if step_s else 0.0) + scorings_left * valid_s
    after = "each epoch" if every == 1 else f"every {every} epochs and the last"
    goes_on = f"goes on at step {progress.step}" if progress.step else "starts anew"
    has_test = runs.has_clips(store.manifest, "test")
    lines = [
        "dry run: data, training step, evaluation, checkpoint: all work; nothing was kept",
        f"run:        {run}, {goes_on}",
        f"training:   {settings.epochs} epochs of {len(loader)} steps of {settings.batch_size} "
        f"clips ({loader.num_clips} clips), {ranks.world_size} rank(s) on {engine.device}, "
        f"{engine.precision}",
        f"step:       {step_s[-1]:.2f} s, the first {step_s[0]:.2f} s, loss {loss:.4f}"
        if step_s
        else "step:       none: the run stands at the end of an epoch",
        f"evaluation: {num_valid} clips after {after}, some {duration(valid_s)}",
        f"checkpoint: {num_bytes / 1e6:.0f} MB in {save_s:.2f} s, every "
        f"{settings.checkpoint_every_s:.0f} s and after each epoch",
        f"tracking:   W&B {wandb_run.wanted_mode(config.wandb)}, metrics.jsonl",
        "test split: " + ("scored once, at the end" if has_test else "none"),
        f"in all:     some {duration(train_s)} from here",
    ]
    click.echo("\n".join(lines))


def _score_one_batch(engine: Engine, store: Store) -> float:
    """Scores the first batch of the validation split; returns the seconds it took."""
    ranks = engine.ranks
    loader = ShardLoader(
        store,
        "valid",
        batch_size=CLIPS_PER_RANK * ranks.world_size,
        shuffle=False,
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_workers=0,
        device=engine.device,
    )
    started = time.perf_counter()
    first = next(iter(loader))
    predict(engine.averaged_model(), [first], engine.device)
    return time.perf_counter() - started


def _save_and_load(run: Path, state: Mapping[str, Any]) -> int:
    """Writes a checkpoint where the run's would lie, reads it back; returns its bytes."""
    existing = next(folder for folder in [run, *run.absolute().parents] if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".dry-run-", dir=existing) as folder:
        path = checkpoint.save(Path(folder), state, keep=1)
        checkpoint.load(path)
        return path.stat().st_size
