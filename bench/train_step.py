"""How fast is a training step on this CPU, against the original's way of writing it?

    python bench/train_step.py [--steps N] [--rounds N]

Both train the same network of 2017 (same layers, same maths, fp32, batches of 20 clips of
128 x 628) on the same random batch, in turn, each in processes of its own. The peer is the
original's code as people would write it today: ReLU before pooling, torch's own backward,
contiguous memory, plain Adam. Writes bench/results/train_step-<machine>.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from mstag.config import ModelConfig, TrainConfig
from mstag.models import build_model
from mstag.runtime import Ranks, keep_freed_memory
from mstag.training.engine import Engine

PEER = "original's style"
NAMES = (PEER, "mstag")
BATCH_SIZE, N_MELS, NUM_FRAMES, NUM_TAGS = 20, 128, 628, 50


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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
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


def peer_step(mel: torch.Tensor, tags: torch.Tensor) -> Callable[[int], None]:
    """A training step of the peer."""
    model = Peer()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-4)

    def step(number: int) -> None:
        optimizer.zero_grad()
        logits = model(mel.float())
        functional.binary_cross_entropy_with_logits(logits, tags.float()).backward()
        optimizer.step()

    return step


def our_step(mel: torch.Tensor, tags: torch.Tensor) -> Callable[[int], None]:
    """A training step as train.py takes it."""
    model = build_model(ModelConfig(), N_MELS, NUM_FRAMES, NUM_TAGS)
    engine = Engine(
        model, TrainConfig(), device=torch.device("cpu"), precision="fp32", ranks=Ranks()
    )
    return lambda number: engine.step({"mel": mel, "tags": tags}, number, 1e-4)


def seconds_per_step(name: str, num_steps: int) -> list[float]:
    """Times one way of writing it in this process, after a step that allocates."""
    torch.manual_seed(0)
    if name == "mstag":
        keep_freed_memory()  # as train.py does
    mel = torch.randn(BATCH_SIZE, 1, N_MELS, NUM_FRAMES).half()
    tags = (torch.rand(BATCH_SIZE, NUM_TAGS) < 0.1).to(torch.uint8)
    step = our_step(mel, tags) if name == "mstag" else peer_step(mel, tags)
    seconds = []
    for number in range(num_steps + 1):
        start = time.perf_counter()
        step(number)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def in_own_process(name: str, num_steps: int) -> float:
    """Median seconds of a step, in a fresh process: the allocator's settings are its own."""
    command = [sys.executable, __file__, "--steps", str(num_steps), "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return statistics.median(json.loads(done.stdout))


def main() -> None:
    """Times both in turn, each time in a process of its own, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6, help="steps per process")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of processes")
    parser.add_argument("--only", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(seconds_per_step(args.only, args.steps)))
        return
    rounds = [{n: in_own_process(n, args.steps) for n in NAMES} for _ in range(args.rounds)]
    rates = {n: BATCH_SIZE / statistics.median(r[n] for r in rounds) for n in NAMES}
    ratio = statistics.median(r[PEER] / r["mstag"] for r in rounds)
    for name, rate in rates.items():
        print(f"{name:18} {rate:6.1f} clips/s")
    print(f"{'ratio':18} {ratio:6.2f}  (median of {args.rounds} pairs of processes)")
    machine = f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}".lower()
    result = {
        "command": f"python bench/train_step.py --steps {args.steps} --rounds {args.rounds}",
        "machine": f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "clips_per_s": rates,
        "ratio": ratio,
    }
    name = f"train_step-{machine}-{torch.get_num_threads()}-threads.json"
    path = Path(__file__).parent / "results" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
