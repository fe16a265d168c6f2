"""scripts/train.slurm with Slurm's commands played by small scripts, on this one machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run
from shared_data import REPOSITORY

from mstag.training import checkpoint

SCRIPT = ["sh", str(REPOSITORY / "scripts" / "train.slurm")]


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """A folder with commands, and the environment of a job on one machine with one rank."""
    commands = {
        ".venv/bin/torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
        "bin/srun": 'shift 2; exec "$@"',
        "bin/scontrol": '[ "$1" = show ] && echo localhost; echo "$@" >> scontrol.log',
    }
    for name, line in commands.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    (tmp_path / "train.py").symlink_to(REPOSITORY / "train.py")
    return {
        **tiny_run.environment(PYTHONPATH=str(REPOSITORY)),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        # The port follows from the job: tests that run side by side must not meet.
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_GPUS_ON_NODE": "1",
    }


def test_a_job_that_is_told_saves_queues_again_and_goes_on(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    config = tiny_run.make_config(tmp_path)
    run = tmp_path / "run"
    more = ["--set", "train.checkpoint_every_s=0", "--set", "train.epochs=8"]
    command = [*SCRIPT, str(config), str(tmp_path / "shards"), str(run), *more]

    job = subprocess.Popen(command, cwd=tmp_path, env=cluster)
    for _ in range(600):
        if checkpoint.paths(run / "checkpoints"):
            break
        time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) != 0
    saved = checkpoint.load_newest(run / "checkpoints")
    assert saved is not None
    assert not (run / "finished.json").exists(), "told too late to show anything"
    log = (tmp_path / "scontrol.log").read_text()
    assert f"requeue {cluster['SLURM_JOB_ID']}" in log

    again = subprocess.run(command, cwd=tmp_path, env=cluster, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"going on with {run} at step {saved['step']}" in again.stderr
    assert (run / "finished.json").exists()
    assert (tmp_path / "scontrol.log").read_text().count("requeue") == 1


def test_how_to_use_it(tmp_path: Path, cluster: dict[str, str]) -> None:
    done = subprocess.run(SCRIPT, cwd=tmp_path, env=cluster, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch")
