"""What test_survival_ranks.py starts under torchrun: runs whole, and runs that one rank stops.

    torchrun ... survival_on_ranks.py FOLDER

FOLDER is of tiny_run.make_config. One start for all, because importing torch takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import tiny_run
from torch import nn

import train
from mstag import console, runtime
from mstag.config import ModelConfig
from mstag.models import mscnn
from mstag.training.engine import Engine

PLAIN = ("model.dropout=0",)
STOP_AT = 8


class Plain(mscnn.MultiScaleCnn):
    """The network without BatchNorm: each clip's gradient is its own affair."""

    def __init__(self, config: ModelConfig, n_mels: int, num_frames: int, num_tags: int) -> None:
        super().__init__(config, n_mels, num_frames, num_tags)
        self.classifier[1] = nn.Identity()


@contextlib.contextmanager
def plain_network(batches: Path) -> Iterator[None]:
    """In here, ``mscnn`` is :class:`Plain`, and the clips of each step are noted in a file."""
    step = Engine.step

    def noted(self: Engine, batch: Mapping[str, Any], number: int, rate: float) -> None:
        parts = runtime.gather_over_ranks(list(batch["id"]), self.ranks)
        if self.ranks.is_first:
            with batches.open("a") as file:
                file.write(json.dumps([number, [clip for part in parts for clip in part]]) + "\n")
        step(self, batch, number, rate)

    with mock.patch.object(mscnn, "MultiScaleCnn", Plain), mock.patch.object(Engine, "step", noted):
        yield


def run(folder: Path, name: str, *settings: str) -> int:
    """Trains FOLDER/NAME; returns the exit code."""
    try:
        train.main(tiny_run.arguments(folder, name, *settings), standalone_mode=False)
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code
    return 0


@contextlib.contextmanager
def stopping_rank(rank: int, number: int) -> Iterator[None]:
    """In here, one rank hears signal ``number`` in step ``STOP_AT``, counted from 1."""
    step = Engine.step

    def heard(self: Engine, batch: Mapping[str, Any], done: int, rate: float) -> None:
        if self.ranks.rank == rank and done == STOP_AT - 1:
            os.kill(os.getpid(), number)
        step(self, batch, done, rate)

    with mock.patch.object(Engine, "step", heard):
        yield


def main(folder: Path) -> None:
    """The runs "whole" and "stopped" end alike; "plain" waits for somebody to go on with it."""
    # A process can join the group once: the rendezvous remembers its first address.
    runtime.stop_ranks = lambda: None
    ranks = runtime.read_ranks()
    codes = [run(folder, "whole")]
    with stopping_rank(1, signal.SIGTERM):
        codes.append(run(folder, "stopped"))
    codes.append(run(folder, "stopped"))
    with plain_network(folder / "whole-batches.jsonl"):
        codes.append(run(folder, "plain-whole", *PLAIN))
    with plain_network(folder / "batches.jsonl"), stopping_rank(0, signal.SIGINT):
        codes.append(run(folder, "plain", *PLAIN))
    print(f"rank {ranks.rank}: {codes}", flush=True)
    console.end_process(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
