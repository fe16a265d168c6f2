"""train.py's options, its words on a terminal and elsewhere, and every recipe at once."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
import threading
from pathlib import Path

import pytest
import tiny_run
import torch
from click.testing import CliRunner, Result
from make_shards import make_shards
from safetensors.torch import load_file

import train
from mstag import config
from mstag.training import checkpoint, network, runs
from mstag.training.engine import Engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config and shards, shared: nothing writes to them."""
    path = tmp_path_factory.mktemp("tiny")
    tiny_run.make_config(path)
    return path


def invoke(*argv: str) -> Result:
    """train.py in this process: saves the seconds that importing torch takes."""
    threads = torch.get_num_threads()
    done = CliRunner().invoke(train.main, argv)
    torch.set_num_threads(threads)
    return done


def test_another_batch_size_and_the_learning_rate_that_goes_with_it(folder: Path) -> None:
    argv = tiny_run.arguments(folder, "eight", "train.epochs=1", "train.warmup_steps=4")
    assert invoke(*argv, "--batch-size", "8").exception is None
    settings = runs.read_config(folder / "eight").train
    assert settings.batch_size == 8
    assert settings.learning_rate == pytest.approx(1e-3 * 2**0.5)
    assert settings.warmup_steps == 2
    trained = [line for line in tiny_run.metrics_of(folder / "eight") if "train/lr" in line]
    assert trained[0]["clips_seen"] == 16
    assert trained[0]["train/lr"] == pytest.approx(1e-3 * 2**0.5)
    assert "is finished" in invoke(*argv, "--batch-size", "8").stderr
    assert "is finished" in invoke(*argv, "--batch-size", "auto").stderr, "it keeps what it has"
    assert "train.batch_size: 8 -> 4" in str(invoke(*argv).exception)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("26", "25 training clips are less than one batch"),
        ("1", "each rank needs 2 clips or more"),
        ("0", "must be a whole number above 0, or auto"),
        ("big", "must be a whole number above 0, or auto"),
    ],
)
def test_a_batch_size_that_cannot_be(folder: Path, size: str, message: str) -> None:
    done = invoke(*tiny_run.arguments(folder, "cannot"), "--batch-size", size)
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)
    assert not (folder / "cannot").exists()


def test_a_batch_size_is_found(folder: Path) -> None:
    argv = [*tiny_run.arguments(folder, "found", "train.epochs=1"), "--batch-size", "auto"]
    done = invoke(*argv)
    assert done.exception is None
    assert "batch size 4, learning rate 0.001" in done.stderr, "25 clips are too few for more"
    assert runs.read_config(folder / "found").train.batch_size == 4
    # Trying leaves no mark on the training.
    assert invoke(*tiny_run.arguments(folder, "said", "train.epochs=1")).exception is None
    tiny_run.assert_same_training(folder / "said", folder / "found")


def test_the_validation_split_is_scored_now_and_then_and_at_the_end(folder: Path) -> None:
    settings = ("train.epochs=3", "train.valid_every_epochs=2")
    assert invoke(*tiny_run.arguments(folder, "seldom", *settings)).exception is None
    every = tiny_run.arguments(folder, "always", settings[0])
    assert invoke(*every).exception is None
    seldom, always = (
        {
            line["epoch"]: line["valid/roc_auc"]
            for line in tiny_run.metrics_of(folder / name)
            if "valid/roc_auc" in line
        }
        for name in ("seldom", "always")
    )
    assert [*seldom] == [2, 3]
    assert {epoch: always[epoch] for epoch in seldom} == seldom, "what is learnt is the same"
    ledgers = [line for line in tiny_run.metrics_of(folder / "seldom") if "data/seen" in line]
    assert [line["epoch"] for line in ledgers] == [1, 2, 3]


def test_profiling_changes_nothing_but_the_time(folder: Path) -> None:
    argv = tiny_run.arguments(folder, "plain", "train.epochs=2")
    assert invoke(*argv).exception is None
    argv = tiny_run.arguments(folder, "profiled", "train.epochs=2")
    assert invoke(*argv, "--profile").exception is None
    tiny_run.assert_same_training(folder / "plain", folder / "profiled")
    assert {path.name for path in (folder / "profiled" / "profile").iterdir()} == {
        "trace-rank0.json.gz",
        "steps-rank0.txt",
    }
    table = (folder / "profiled" / "profile" / "steps-rank0.txt").read_text()
    assert "aten::convolution_backward" in table


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch deprecates what its compiler uses
def test_compiled_training_learns_the_same(folder: Path) -> None:
    try:
        network.check_compiler(torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))
    # Without dropout, whose lots a compiled network draws in its own way.
    plain, compiled = (
        tiny_run.arguments(folder, name, "model.dropout=0") for name in ("eager", "compiled")
    )
    assert invoke(*plain).exception is None
    assert invoke(*compiled, "--compile").exception is None
    assert runs.read_config(folder / "compiled").train.compile
    losses = [
        [line["train/loss"] for line in tiny_run.metrics_of(folder / name) if "train/loss" in line]
        for name in ("eager", "compiled")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert "train.compile: True -> False" in str(invoke(*plain[:4], *compiled[4:]).exception)


def test_everything_at_once_stopped_and_gone_on_with(tmp_path: Path) -> None:
    """Chunks, pieces, averaged weights, weights of tags, an early end: one run, cut short."""
    features = config.FeatureConfig(n_mels=16, num_frames=150)
    make_shards(tmp_path / "shards", tiny_run.SIZES, features)
    (tmp_path / "tiny.toml").write_text(tiny_run.CONFIG)
    settings = [
        *("features.num_frames=150", "model.chunk_frames=64", "train.accumulate_steps=2"),
        *("train.ema_decay=0.8", "train.optimizer=adamw", "train.schedule=cosine"),
        *("train.warmup_steps=3", "train.grad_clip=0.5", "train.label_smoothing=0.1"),
        *("train.positive_weight=0.5", "train.num_mel_masks=1", "train.mel_mask_bands=4"),
        *("train.shuffle_window=2", "train.loader_workers=0", "train.epochs=12"),
        *("train.early_stop_epochs=1", "train.keep_checkpoints=99"),
    ]
    assert invoke(*tiny_run.arguments(tmp_path, "whole", *settings)).exception is None
    outcome = json.loads((tmp_path / "whole" / "finished.json").read_text())
    assert outcome["epoch"] == outcome["best_epoch"] + 1 < 12
    best_at = 6 * outcome["best_epoch"]
    state = checkpoint.load(tmp_path / "whole" / "checkpoints" / f"step-{best_at:08d}.pt")
    (saved,) = (tmp_path / "whole" / "best").glob("*.safetensors")
    weights = load_file(saved)
    averaged, latest = state["engine"]["ema"]["model"], state["engine"]["model"]
    assert weights.keys() == averaged.keys()
    assert all(torch.equal(weights[key], averaged[key]) for key in weights)
    assert not all(torch.equal(weights[key], latest[key]) for key in weights)

    step = Engine.step

    def heard(self: Engine, batch: object, done: int, rate: float) -> None:
        step(self, batch, done, rate)  # type: ignore[arg-type]
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", heard)
        assert invoke(*tiny_run.arguments(tmp_path, "stopped", *settings)).exit_code == 143
    assert invoke(*tiny_run.arguments(tmp_path, "stopped", *settings)).exception is None
    tiny_run.assert_same_training(tmp_path / "whole", tmp_path / "stopped")


LINE = re.compile(
    r"step (\d+)/18  epoch (\d)  loss \d\.\d{4}  lr 0\.001  \d+\.\d clips/s  "
    r"data wait \d+\.\d%  ETA (\d+ s|unknown)"
)


def test_plain_lines_on_a_machine_without_what_training_can_do_without(
    folder: Path, tmp_path: Path
) -> None:
    for name in ("wandb", "webdataset", "soundfile", "sklearn", "matplotlib", "torchaudio"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('there is no {name} here')\n")
    argv = tiny_run.arguments(folder, "poor", "wandb.mode=auto")
    done = tiny_run.run_script("train.py", *argv, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "W&B: off (there is no wandb here); the numbers are in" in done.stderr
    assert f"dashboard: {folder}/poor/metrics.jsonl" in done.stdout
    shown = [match.groups()[:2] for match in map(LINE.fullmatch, done.stderr.splitlines()) if match]
    assert shown == [(str(step), str(1 + (step - 1) // 6)) for step in range(2, 19, 2)]
    assert len(done.stderr.splitlines()) == 1 + 1 + 9 + 2 * 3
    assert "\r" not in done.stderr
    assert "%|" not in done.stderr


def test_a_bar_on_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    shown = bytearray()

    def read() -> None:
        while part := os.read(ours, 4096):
            shown.extend(part)
            if b"\x04" in part:
                return

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        threads = torch.get_num_threads()
        train.main(tiny_run.arguments(folder, "terminal"), standalone_mode=False)
        torch.set_num_threads(threads)
        terminal.write("\x04")
        terminal.flush()
        reader.join()
    os.close(ours)
    text = shown.decode()
    lines = text.replace("\r\n", "\n").split("\n")
    assert re.search(r"epoch 3  loss \d\.\d{4}.* 18/18 \[", text)
    assert not LINE.search(text)
    assert len(lines) < 15, lines
    assert text.count("best so far") + text.count("valid: ROC-AUC") >= 3
