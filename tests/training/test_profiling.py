"""--profile: a trace that viewers read, and a table that people read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch

from mstag.training import profiling
from mstag.training.profiling import Profile


def train_with(profile: Profile, num_steps: int) -> None:
    weights = torch.zeros(8, 8, requires_grad=True)
    with profile:
        for _ in range(num_steps):
            (torch.ones(4, 8) @ weights).sum().backward()
            profile.step()


def test_a_few_steps_are_recorded_once(tmp_path: Path) -> None:
    train_with(Profile(tmp_path, rank=1), 30)
    folder = tmp_path / profiling.FOLDER
    assert {path.name for path in folder.iterdir()} == {"trace-rank1.json.gz", "steps-rank1.txt"}
    trace = json.loads(gzip.decompress((folder / "trace-rank1.json.gz").read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("aten::mm") == 2 * profiling.NUM_STEPS, "forward and backward"
    table = (folder / "steps-rank1.txt").read_text()
    assert "aten::mm" in table
    assert "Self CPU" in table


def test_too_few_steps_leave_no_trace(tmp_path: Path) -> None:
    num_steps = profiling.NUM_WAITING + profiling.NUM_WARMING - 1
    train_with(Profile(tmp_path, rank=0), num_steps)
    assert list((tmp_path / profiling.FOLDER).iterdir()) == []


def test_without_a_folder_nothing_happens(tmp_path: Path) -> None:
    train_with(Profile(None, rank=0), 12)
    assert list(tmp_path.iterdir()) == []
