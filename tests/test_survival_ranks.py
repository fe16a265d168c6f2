"""Runs of two ranks: one is stopped or killed, and the run goes on, on two ranks or on one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import survival
import survival_on_ranks
import tiny_run
import torch
from shared_data import REPOSITORY

from mstag.training import checkpoint

TESTS = Path(__file__).parent
EVERY_STEP = "train.checkpoint_every_s=0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config, shards, and the runs of survival_on_ranks.py."""
    path = tmp_path_factory.mktemp("tiny")
    tiny_run.make_config(path)
    done = tiny_run.torchrun(2, TESTS / "survival_on_ranks.py", str(path))
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"rank {rank}: [0, 143, 0, 0, 130]" in done.stdout, done.stdout + done.stderr
    for name in ("stopped", "plain"):
        text = f"stopped after step {survival_on_ranks.STOP_AT}"
        assert done.stderr.count(text) == 2, f"{name}: {done.stderr}"
    return path


def newest(run: Path) -> dict[str, Any]:
    state = checkpoint.load_newest(run / "checkpoints")
    assert state is not None
    return state


def test_a_signal_to_one_rank_stops_all_and_they_go_on_bit_by_bit_alike(folder: Path) -> None:
    tiny_run.assert_same_training(folder / "whole", folder / "stopped")


def test_one_rank_goes_on_with_a_run_of_two(folder: Path) -> None:
    assert newest(folder / "plain")["step"] == survival_on_ranks.STOP_AT
    threads = torch.get_num_threads()
    with survival_on_ranks.plain_network(folder / "batches.jsonl"):
        assert survival_on_ranks.run(folder, "plain", *survival_on_ranks.PLAIN) == 0
    torch.set_num_threads(threads)
    batches = [
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("whole-batches.jsonl", "batches.jsonl")
    ]
    assert batches[0] == batches[1]
    assert [number for number, _ in batches[0]] == list(range(18))
    one, other = (newest(folder / name)["engine"]["model"] for name in ("plain-whole", "plain"))
    assert one.keys() == other.keys()
    for key in one:
        assert torch.allclose(one[key], other[key], rtol=0, atol=1e-5), key


def ranks_of(torchrun: int) -> list[int]:
    """Process ids of a torchrun's ranks; each is a session of its own."""
    children = [process for process in survival.processes() if process.parent == torchrun]
    ranks = sorted(process.pid for process in children if "train.py" in process.command)
    assert len(ranks) == 2, children
    return ranks


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to", ["torchrun", "all", "rank"])
def test_signals_under_torchrun(folder: Path, number: int, to: str) -> None:
    run = folder / f"torchrun-{number}-{to}"
    argv = tiny_run.arguments(folder, run.name, EVERY_STEP)
    process = tiny_run.start_torchrun(2, REPOSITORY / "train.py", *argv)
    survival.wait_for_checkpoint(run, 4)
    ranks = ranks_of(process.pid)
    for pid in {"torchrun": [process.pid], "all": [process.pid, *ranks], "rank": ranks[1:]}[to]:
        os.kill(pid, number)
    done = tiny_run.end_of(process)
    for pid in ranks:
        survival.assert_nothing_lives(pid)
    assert done.returncode != 0
    assert done.stderr.count("stopped after step") == 1, done.stderr
    assert not (run / "finished.json").exists()
    stood = newest(run)["step"]
    assert f"stopped after step {stood};" in done.stderr
    assert survival.leftovers(run) == []
    done = tiny_run.torchrun(2, REPOSITORY / "train.py", *argv)
    assert done.returncode == 0, done.stderr
    assert f"going on with {run} at step {stood}" in done.stderr
    tiny_run.assert_same_training(folder / "whole", run)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_goes_on_by_itself_when_a_rank_dies(folder: Path, rank: int) -> None:
    run = folder / f"restarted-{rank}"
    argv = tiny_run.arguments(folder, run.name, EVERY_STEP)
    options = ("--max-restarts", "2")
    process = tiny_run.start_torchrun(2, REPOSITORY / "train.py", *argv, options=options)
    survival.wait_for_checkpoint(run, 5)
    ranks = ranks_of(process.pid)
    os.kill(ranks[rank], signal.SIGKILL)
    done = tiny_run.end_of(process)
    print(done.stderr)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("going on with") == 1
    assert "Traceback" not in done.stderr
    for pid in ranks:
        survival.assert_nothing_lives(pid)
    tiny_run.assert_same_training(folder / "whole", run)
