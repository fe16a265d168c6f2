"""train.py itself on the clips of bench/train.py: an epoch with everything that goes with it.

A subprocess is what is timed, by the line that it prints when an epoch is done: trained, logged,
scored on the validation split, saved as a checkpoint and, where it is the best, as a bundle.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from stream_rows import N_MELS, NUM_FRAMES
from train_rows import Row

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
HANGS_S = 300.0
"""What takes longer hangs, and is killed."""
EPOCH_LINE = re.compile(r"epoch (\d+)/\d+  ([\d.]+) clips/s  data wait ([\d.]+)%")


def config_of(row: Row, num_epochs: int) -> str:
    """The recipe of 2017 as far as time depends on it, as TOML."""
    return f"""
[dataset]
name = "bench"
[features]
n_mels = {N_MELS}
num_frames = {NUM_FRAMES}
[train]
epochs = {num_epochs}
batch_size = {row.batch_size}
precision = "{row.precision}"
compile = {str(row.compile).lower()}
[wandb]
mode = "disabled"
"""


def time_run(
    row: Row, folder: Path, device: str, num_epochs: int, environment: dict[str, str]
) -> dict[str, Any]:
    """Trains for ``num_epochs`` and one more before them, which starts everything.

    Returns:
        ``epoch_s`` of the later ones, and what of it is training (``train_s``; the rest is
        scoring and saving); ``around_s``, which a run takes once: its start, what the first epoch
        takes longer, its end.

    Raises:
        RuntimeError: train.py failed; with its last words.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        config = Path(name) / "bench.toml"
        config.write_text(config_of(row, num_epochs + 1), encoding="utf-8")
        run = Path(name) / "run"
        argv = [sys.executable, "-u", str(TRAIN), "--config", str(config), f"train.device={device}"]
        argv += ["--shards", str(folder), "--out", str(run)]
        began = time.perf_counter()
        process = subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=TRAIN.parent,
            env=environment,
        )
        assert process.stdout is not None
        watchdog = threading.Timer(HANGS_S, process.kill)
        watchdog.start()
        lines, ends, rates, waits = [""], [], [], []
        for line in process.stdout:
            lines.append(line.strip())
            if found := EPOCH_LINE.match(line):
                ends.append(time.perf_counter())
                rates.append(float(found[2]))
                waits.append(float(found[3]) / 100)
        code = process.wait()
        watchdog.cancel()
        took_s = time.perf_counter() - began
        if code or len(ends) != num_epochs + 1:
            raise RuntimeError(f"train.py ended with code {code}: {' '.join(lines[-3:])[-300:]}")
        memory_gb = [
            metrics["train/memory_gb"]
            for metrics in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            if "train/memory_gb" in metrics and metrics["epoch"] > 1
        ]
    epoch_s = (ends[-1] - ends[0]) / num_epochs
    num_clips = json.loads((folder / "manifest.json").read_text())["splits"]["train"]["clips"]
    num_trained = num_clips // row.batch_size * row.batch_size
    return {
        "clips_per_s": num_clips / epoch_s,
        "epoch_s": epoch_s,
        "train_s": sum(num_trained / rate for rate in rates[1:]) / num_epochs,
        "around_s": took_s - (num_epochs + 1) * epoch_s,
        "data_wait": max(waits[1:]),
        "clips": num_clips,
        "peak_mb": 1e3 * max(memory_gb),
    }
