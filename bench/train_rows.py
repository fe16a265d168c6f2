"""The ways of training that bench/train.py compares, and how each is timed.

    python bench/train_rows.py ROW [options]

Run by bench/train.py, each row (a Row as JSON) in a process of its own; prints its figures as
JSON. The peer is the code of 2017 as people would write it today: the network spelt out, ReLU
before pooling, torch's own backward pass, contiguous memory, plain Adam, the loss read after
every step. Both train the same network with the same maths on batches of the same clips.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stream_rows import N_MELS, NUM_FRAMES, NUM_TAGS
from torch import Tensor, nn
from torch.nn import functional
from train_timing import (
    Batch,
    Step,
    flops_per_clip,
    peak_memory_mb,
    peaks,
    stages_ms,
    time_epochs,
    time_steps,
    wait_for,
)

from mstag import runtime
from mstag.config import ModelConfig, TrainConfig
from mstag.data.stream import ShardLoader
from mstag.models import build_model
from mstag.runtime import Ranks
from mstag.training import score
from mstag.training.engine import Engine

RATE = 1e-4
LOG_EVERY = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way of training, and what of it is measured."""

    table: str
    """step, epoch (end to end), run (train.py itself), evaluation, ranks."""
    name: str
    rounds: int = 1
    """At most; what the ratios do not hang on is measured once."""
    is_peer: bool = False
    precision: str = "fp32"
    compile: bool = False
    channels_last: bool = True
    tf32: bool = True
    """Torch's default: cuDNN's convolutions of float32 in TF32, on GPUs that have it."""
    augmented: bool = False
    batch_size: int = 0
    """0: the recipe's."""
    num_workers: int = 2
    num_ranks: int = 1
    num_threads: int = 0
    """0: as training chooses."""
    is_profiled: bool = False
    not_measured: str = ""
    """The reason, if so."""

    @property
    def key(self) -> str:
        """Unique over all tables."""
        return f"{self.table}: {self.name}"

    @property
    def arithmetic(self) -> str:
        """Which of the device's peaks its convolutions are to be held against."""
        return "tf32" if self.precision == "fp32" and self.tf32 else self.precision


# ---- The peer -------------------------------------------------------------------------------


class Peer(nn.Module):
    """The 2017 network written plainly."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [(1, 50, 3, 7), (50, 100, 3, 5), (100, 70, 3, 3)]
        shapes += [(1, 100, 3, 5), (100, 70, 3, 3), (1, 70, 3, 3), (210, 70, 3, 3), (70, 70, 3, 3)]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, (h, w), padding=(h // 2, w // 2)) for i, o, h, w in shapes
        )
        self.norm, self.drop = nn.BatchNorm1d(5040, eps=1e-3), nn.Dropout(0.6)
        self.hidden, self.out = nn.Linear(5040, 500), nn.Linear(500, NUM_TAGS)

    def forward(self, x: Tensor) -> Tensor:
        """Spectrograms -> logits."""
        pool, relu, conv = functional.max_pool2d, functional.relu, self.convs
        half = functional.avg_pool2d(x, (2, 4))
        fine = pool(relu(conv[0](x)), (2, 4))
        fine = pool(relu(conv[1](fine)), (2, 4))
        fine = pool(relu(conv[2](fine)), (2, 2))
        middle = pool(relu(conv[3](half)), (2, 4))
        middle = pool(relu(conv[4](middle)), (2, 2))
        coarse = pool(relu(conv[5](pool(half, (2, 4)))), (2, 2))
        joint = relu(conv[6](torch.cat([fine, middle, coarse], dim=1)))
        joint = pool(relu(conv[7](joint)), (2, 2)).flatten(1)
        return self.out(relu(self.hidden(self.drop(self.norm(joint)))))


def peer_step(device: torch.device) -> Step:
    """A training step of the peer."""
    model = Peer().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, weight_decay=1e-4)
    total = 0.0

    def step(batch: Batch, number: int) -> None:
        nonlocal total
        mel, tags = batch["mel"].to(device).float(), batch["tags"].to(device).float()
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(model(mel), tags)
        loss.backward()
        optimizer.step()
        total += loss.item()

    return step


class InMemory(torch.utils.data.Dataset[Batch]):
    """The peer's data: a float32 array per clip, all of them in memory."""

    def __init__(self, folder: Path) -> None:
        loader = ShardLoader(folder, "train", batch_size=64, shuffle=False, num_workers=0)
        self.mels: list[np.ndarray] = []
        self.tags: list[np.ndarray] = []
        for batch in loader:
            self.mels += list(batch["mel"].numpy().astype(np.float32))
            self.tags += list(batch["tags"].numpy().astype(np.float32))

    def __len__(self) -> int:
        return len(self.mels)

    def __getitem__(self, number: int) -> Batch:
        return {"mel": self.mels[number], "tags": self.tags[number]}


# ---- mstag ----------------------------------------------------------------------------------


def our_engine(row: Row, device: torch.device, ranks: Ranks) -> Engine:
    """The engine that train.py would make."""
    settings: dict[str, Any] = {"batch_size": row.batch_size, "channels_last": row.channels_last}
    if row.augmented:
        settings |= {"mixup_alpha": 0.3, "num_time_masks": 2, "num_mel_masks": 2}
    config = TrainConfig(precision=row.precision, compile=row.compile, **settings)
    model = build_model(ModelConfig(), N_MELS, NUM_FRAMES, NUM_TAGS)
    return Engine(model, config, device=device, precision=row.precision, ranks=ranks)


def our_step(engine: Engine) -> Step:
    """A training step as train.py takes it; what it logs goes nowhere."""
    log = io.StringIO()

    def step(batch: Batch, number: int) -> None:
        engine.step(batch, number, RATE)
        if number % LOG_EVERY == LOG_EVERY - 1:
            print(json.dumps(engine.read_means()), file=log)

    return step


def random_batch(num_clips: int, device: torch.device) -> Batch:
    """Clips as they lie in the shards, on the device already."""
    mel = torch.randn(num_clips, 1, N_MELS, NUM_FRAMES).half()
    tags = (torch.rand(num_clips, NUM_TAGS) < 0.1).to(torch.uint8)
    return {"mel": mel.to(device), "tags": tags.to(device)}


# ---- A process -----------------------------------------------------------------------------


def about(device: torch.device) -> dict[str, Any]:
    """What bench/train.py must know of the machine before it can choose rows."""
    forward, both = flops_per_clip(Peer, (1, N_MELS, NUM_FRAMES))
    on_gpu = device.type == "cuda"
    precision = runtime.pick_precision("auto", device)
    return {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if on_gpu else "",
        "num_gpus": torch.cuda.device_count() if on_gpu else 0,
        "cpu": torch.backends.cpu.get_cpu_capability().lower(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": precision,
        "flops_forward": forward,
        "flops_both": both,
        "peaks": peaks(device, has_bf16_units=on_gpu or precision == "bf16"),
    }


def measure(row: Row, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of a row."""
    ranks = runtime.read_ranks()
    device = runtime.pick_device(args.device, ranks.local_rank)
    if not row.is_peer:
        ranks = runtime.start_ranks(device)
        runtime.prepare_device(device)
    if row.num_threads:
        torch.set_num_threads(row.num_threads)
    torch.manual_seed(0)
    if row.table == "evaluation":
        return evaluation(row, args.folder, device)
    engine = None if row.is_peer else our_engine(row, device, ranks)
    if not row.tf32:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    step = our_step(engine) if engine else peer_step(device)
    if row.table == "epoch":
        found = end_to_end(row, step, args, device)
    else:
        batch = random_batch(row.batch_size // ranks.world_size, device)
        # Ranks must take the same number of steps, whatever their clocks say.
        limit_s = args.limit_s if ranks.world_size == 1 else math.inf
        found = time_steps(lambda number: step(batch, number), device, args.steps, limit_s)
        found["clips_per_s"] = row.batch_size / float(np.median(found["step_s"]))
    found["peak_mb"] = peak_memory_mb(device)
    if args.profile:
        parts = stages_ms(lambda: step(batch, 10**6), device)
        if device.type == "cuda":
            step_ms = 1e3 * float(np.median(found["step_s"]))  # of a step without the profiler
            parts["GPU idle"] = max(0.0, step_ms - sum(parts.values()))
        found["stages_ms"] = parts
    runtime.stop_ranks()
    return found


def end_to_end(
    row: Row, step: Step, args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Epochs from the peer's DataLoader or from shards."""
    if row.is_peer:
        # fork, where it is no longer the default: the others would copy every array.
        way = "fork" if row.num_workers and sys.platform.startswith("linux") else None
        batches = torch.utils.data.DataLoader(
            InMemory(args.folder),
            batch_size=row.batch_size,
            shuffle=True,
            num_workers=row.num_workers,
            multiprocessing_context=way,
        )
        return time_epochs(lambda epoch: batches, step, device, args.epochs, args.limit_s)
    loader = ShardLoader(
        args.folder, "train", batch_size=row.batch_size, shuffle=True, device=device
    )

    def epoch_of(epoch: int) -> Iterable[Batch]:
        loader.set_epoch(epoch)
        return loader

    found = time_epochs(epoch_of, step, device, args.epochs, math.inf)
    loader.close()
    return found


def evaluation(row: Row, folder: Path, device: torch.device) -> dict[str, Any]:
    """Scoring a split as train.py does after each epoch, its start and its metrics included."""
    engine = our_engine(row, device, Ranks())
    seconds = []
    for _ in range(2):
        began = wait_for(device)
        _, predictions = score.score_split(
            engine.model, folder, "valid", device=device, ranks=Ranks(), num_resamples=0
        )
        seconds.append(wait_for(device) - began)
    rate = len(predictions.scores) / seconds[1]
    return {"clips_per_s": rate, "first_s": seconds[0], "peak_mb": peak_memory_mb(device)}


def main() -> None:
    """Measures one row, or says what machine this is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("row")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=20.0)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    if args.row == "about":
        found = about(runtime.pick_device(args.device))
    else:
        found = measure(Row(**json.loads(args.row)), args)
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
