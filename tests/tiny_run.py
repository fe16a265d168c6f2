"""A dataset and a config so small that a whole training takes seconds."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from make_shards import make_shards
from shared_data import REPOSITORY

from mstag import config
from mstag.training import checkpoint

FEATURES = config.FeatureConfig(n_mels=16, num_frames=64)
SIZES = {"train": [7, 12, 6], "valid": [5, 1, 4], "test": [3, 10]}
CONFIG = """
[dataset]
name = "synthetic"
[features]
n_mels = 16
num_frames = 64
[model]
hidden_units = 8
[train]
epochs = 3
batch_size = 4
learning_rate = 1e-3
precision = "fp32"
device = "cpu"
mixup_alpha = 0.3
num_time_masks = 1
time_mask_frames = 10
log_every_steps = 2
[wandb]
mode = "disabled"
"""


def make_config(folder: Path) -> Path:
    """Writes the config and, beside it, the shards (folder/shards); returns the config's path."""
    make_shards(folder / "shards", SIZES, FEATURES)
    path = folder / "tiny.toml"
    path.write_text(CONFIG)
    return path


def arguments(folder: Path, run: str, *settings: str) -> list[str]:
    """The command line of train.py for a run in ``folder``."""
    chosen = [part for setting in settings for part in ("--set", setting)]
    places = ["--shards", str(folder / "shards"), "--out", str(folder / run)]
    return ["--config", str(folder / "tiny.toml"), *places, *chosen]


def environment(**extra: str) -> dict[str, str]:
    """A user's environment without an account, and with one thread, so that sums are alike."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return {**kept, "OMP_NUM_THREADS": "1", **extra}


def load_eval() -> ModuleType:
    """eval.py as a module; ``import eval`` would do, but reads like the builtin."""
    spec = importlib.util.spec_from_file_location("eval_script", REPOSITORY / "eval.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(script: str, *argv: str, **extra: str) -> subprocess.Popen[str]:
    """Starts a script of the repository; ``extra`` are variables of its environment."""
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / script), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=environment(**extra),
    )


def run_script(script: str, *argv: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Runs a script of the repository to its end."""
    process = start(script, *argv, **extra)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_torchrun(
    num_ranks: int, script: Path, *argv: str, options: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """Starts a script on several ranks of this machine, in a session of their own."""
    # OMP_NUM_THREADS is left to torchrun, as for a user; it chooses one thread.
    env = {k: v for k, v in environment().items() if k != "OMP_NUM_THREADS"}
    env["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", *options),
            *("--nproc-per-node", str(num_ranks), str(script), *argv),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=env,
        start_new_session=True,
    )


def torchrun(num_ranks: int, script: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Runs a script on several ranks of this machine, to its end."""
    return end_of(start_torchrun(num_ranks, script, *argv))


def end_of(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Waits for the end of :func:`start_torchrun`."""
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its ranks; killed, it would leave them behind
        out, err = process.communicate()
        raise AssertionError(f"the ranks hang:\n{out}\n{err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    by_clock = ("clips_per_s", "data_wait", "memory_gb", "utilisation")
    by_clock = ("track/share", *(f"train/{name}" for name in by_clock))
    return [{k: v for k, v in line.items() if k not in by_clock} for line in lines]


def assert_same_training(one: Path, other: Path) -> None:
    """Two runs ended with the same weights, optimiser, numbers and scores, bit by bit."""
    states = [checkpoint.load_newest(run / "checkpoints") for run in (one, other)]
    assert states[0] is not None
    assert states[1] is not None
    _assert_equal(states[0]["engine"], states[1]["engine"], "engine")
    assert states[0]["progress"] == states[1]["progress"]
    assert metrics_of(one) == metrics_of(other)
    assert (one / "eval-test.json").read_bytes() == (other / "eval-test.json").read_bytes()
    with (
        np.load(one / "scores-test.npz", allow_pickle=False) as a,
        np.load(other / "scores-test.npz", allow_pickle=False) as b,
    ):
        assert np.array_equal(a["scores"], b["scores"])


def _assert_equal(one: Any, other: Any, name: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), name
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one:
            _assert_equal(one[key], other[key], f"{name}.{key}")
    else:
        assert one == other, name
