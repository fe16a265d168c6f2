"""Runs that are killed, stopped, out of space or led astray: what is left, and how they go on."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import survival
import tiny_run
import torch
from click.testing import CliRunner, Result
from make_shards import make_samples, make_shards
from survival import Forks, Processes, Training

import train
from mstag import stopping
from mstag.data import shards
from mstag.data.stream import ShardLoader
from mstag.training import checkpoint, runs, score

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
EVERY_STEP = "train.checkpoint_every_s=0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config and shards, shared: nothing writes to them."""
    path = tmp_path_factory.mktemp("tiny")
    tiny_run.make_config(path)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An uninterrupted run."""
    assert invoke(*tiny_run.arguments(folder, "whole")).exception is None
    return folder / "whole"


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """What starts processes quickly."""
    server = Forks()
    yield server
    server.close()


def invoke(*argv: str) -> Result:
    """train.py in this process."""
    threads = torch.get_num_threads()
    done = CliRunner().invoke(train.main, argv)
    torch.set_num_threads(threads)
    return done


def newest_step(run: Path) -> int:
    """Of its checkpoints."""
    return checkpoint.step_of(checkpoint.paths(run / "checkpoints")[0])


def test_a_run_killed_three_times_ends_bit_by_bit_alike(
    folder: Path, whole: Path, forks: Forks
) -> None:
    run = folder / "thrice"
    training = Training(forks, tiny_run.arguments(folder, "thrice", EVERY_STEP), run)
    for number, step in zip(SIGNALS, (3, 8, 13), strict=True):
        end = training.start(number, step=step)
        print(end.stderr, f"-> {end.exit_code}, checkpoint of step {newest_step(run)}\n")
        assert "Traceback" not in end.stderr
        if not training.is_finished:  # the machine may be slow to deliver a signal
            assert end.exit_code == (128 + number if number != signal.SIGKILL else -number)
    end = training.start()
    assert end.exit_code == 0
    tiny_run.assert_same_training(whole, run)


def kill_at_random_moments(
    starter: Forks | Processes,
    folder: Path,
    whole: Path,
    name: str,
    num_signals: int,
    seconds: float,
) -> None:
    """Sends signals within ``seconds`` of a start, to one run after the other, until each is done.

    Prints how the processes ended.
    """
    rng = random.Random(num_signals)
    num_sent = num_runs = 0
    while num_sent < num_signals:
        num_runs += 1
        run = folder / f"{name}-{num_runs}"
        training = Training(starter, tiny_run.arguments(folder, run.name, EVERY_STEP), run)
        while not training.is_finished:
            number = rng.choice(SIGNALS) if num_sent < num_signals else 0
            num_sent += bool(number)
            group = bool(number) and number != signal.SIGKILL and rng.random() < 0.5
            after_s = rng.random() * seconds
            end = training.start(number, after_s=after_s, whole_group=group)
            at = newest_step(run) if list(run.glob("checkpoints/*.pt")) else 0
            print(f"run {num_runs}: signal {number} after {after_s:.2f} s: {end.exit_code}, {at}")
        tiny_run.assert_same_training(whole, run)
        assert survival.leftovers(run) == []
    print(f"{num_sent} signals, {num_runs} runs")


def test_signals_at_random_moments(folder: Path, whole: Path, forks: Forks) -> None:
    kill_at_random_moments(forks, folder, whole, "random", 5, seconds=1.0)


@pytest.mark.slow
def test_30_signals_at_random_moments_of_whole_processes(folder: Path, whole: Path) -> None:
    kill_at_random_moments(Processes(), folder, whole, "process", 30, seconds=12.0)


def test_a_run_stopped_at_every_delicate_place_ends_bit_by_bit_alike(
    folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder / "places"
    argv = tiny_run.arguments(folder, "places", "train.checkpoint_every_s=1e9")

    def stop_at(
        owner: Any, name: str, number: int, *, after: bool = False, when: int = 1
    ) -> Result:
        """Starts the run, which hears a signal before or after the ``when``-th call."""
        original: Callable[..., Any] = getattr(owner, name)
        num_calls = 0

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            if num_calls == when and not after:
                os.kill(os.getpid(), number)
            result = original(*args, **kwargs)
            if num_calls == when and after:
                os.kill(os.getpid(), number)
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, call)
            done = invoke(*argv)
        assert survival.leftovers(run) == []
        return done

    # Nothing to save yet: it ends at once.
    assert stop_at(stopping.Stop, "armed", signal.SIGTERM).exit_code == 143
    assert not (run / "checkpoints").exists()
    # Before the first step.
    done = stop_at(stopping.Stop, "armed", signal.SIGINT, after=True)
    assert (done.exit_code, newest_step(run)) == (130, 1)
    # Between two batches of the validation, of which there is otherwise but one.
    with monkeypatch.context() as patch:
        patch.setattr(score, "CLIPS_PER_RANK", 3)
        done = stop_at(score, "predict", signal.SIGTERM)
    assert (done.exit_code, newest_step(run)) == (143, 6)
    assert "valid:" not in done.stderr
    # While a checkpoint is being written, which then is whole: at its start, and further on.
    done = stop_at(checkpoint._Hashing, "write", signal.SIGINT)
    assert (done.exit_code, newest_step(run)) == (130, 6)
    assert "stopped after step 6" in done.stderr
    done = stop_at(checkpoint._Hashing, "write", signal.SIGTERM, when=3)
    assert (done.exit_code, newest_step(run)) == (143, 12)
    # After the last step's validation, in the scoring of the test split, and when all is done.
    done = stop_at(checkpoint.Progress, "note_score", signal.SIGINT, after=True)
    assert (done.exit_code, newest_step(run)) == (130, 18)
    done = stop_at(score, "predict", signal.SIGTERM)
    assert (done.exit_code, newest_step(run)) == (143, 18)
    assert not (run / "eval-test.json").exists()
    done = stop_at(score, "write_eval", signal.SIGINT)
    assert (done.exit_code, runs.is_finished(run)) == (0, True)
    tiny_run.assert_same_training(whole, run)


def test_reading_processes_do_not_hear_signals(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`timeout`, job managers and keyboards send them to all processes of a program at once."""
    started: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)
            send_both()

    def send_both() -> None:
        for process in started:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    loader = ShardLoader(folder / "shards", "train", batch_size=2, shuffle=False, num_workers=2)
    num_clips = 0
    for batch in loader:
        num_clips += len(batch["id"])
        send_both()
    assert num_clips == sum(tiny_run.SIZES["train"])
    loader.close()
    assert [process.returncode for process in started] == [0, 0]


def test_a_full_disk_leaves_the_old_checkpoint(folder: Path, whole: Path, forks: Forks) -> None:
    run = folder / "full"
    training = Training(forks, tiny_run.arguments(folder, "full", EVERY_STEP), run)
    training.start(signal.SIGTERM, step=2)
    before = {path.name: path.read_bytes() for path in run.glob("checkpoints/*")}
    stood = newest_step(run)
    end = training.start(max_bytes=min(len(content) for content in before.values()) // 2)
    assert end.exit_code == 1
    *_, last = end.stderr.splitlines()
    assert last.startswith("train.py: error: ")
    assert f"the checkpoint of step {stood} stays" in last
    assert "File too large" in last
    assert "Traceback" not in end.stderr
    assert {path.name: path.read_bytes() for path in run.glob("checkpoints/*")} == before
    assert survival.leftovers(run) == []
    assert f"going on with {run} at step {stood}" in training.start().stderr
    tiny_run.assert_same_training(whole, run)


def test_a_clip_of_infinities_costs_its_steps_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tiny.toml").write_text(tiny_run.CONFIG)
    samples = make_samples("train", 25, tiny_run.FEATURES)
    bad = samples[20]
    samples[20] = dataclasses.replace(bad, mel=np.full_like(bad.mel, np.inf))
    sizes = tiny_run.SIZES
    make_shards(tmp_path / "shards", sizes, tiny_run.FEATURES, samples={"train": samples})
    loader = ShardLoader(tmp_path / "shards", "train", batch_size=4, shuffle=True, num_workers=0)
    expected = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        steps = [bad.meta["id"] in batch["id"] for batch in loader]
        expected += [6 * epoch + number + 1 for number, is_bad in enumerate(steps) if is_bad]
    assert len(expected) >= 2

    assert invoke(*tiny_run.arguments(tmp_path, "lenient")).exception is None
    named = [r.getMessage() for r in caplog.records if "was not finite" in r.getMessage()]
    assert [line.split(":")[0] for line in named] == [f"step {step}" for step in expected]
    assert f"({len(expected)} of train.max_bad_steps = 10)" in named[-1]
    state = checkpoint.load_newest(tmp_path / "lenient" / "checkpoints")
    assert state is not None
    assert all(t.isfinite().all() for t in state["engine"]["model"].values())

    done = invoke(*tiny_run.arguments(tmp_path, "strict", "train.max_bad_steps=1", EVERY_STEP))
    assert isinstance(done.exception, ValueError)
    assert f"the last of them step {expected[1]}" in str(done.exception)
    stood = newest_step(tmp_path / "strict")
    assert stood < expected[1] + 2
    # A larger budget goes on from there, and ends like the run that had it from the start.
    assert invoke(*tiny_run.arguments(tmp_path, "strict")).exception is None
    tiny_run.assert_same_training(tmp_path / "lenient", tmp_path / "strict")


def test_what_a_kill_left_half_written_is_cleared_away(folder: Path, whole: Path) -> None:
    run = folder / "halves"
    names = (".config.toml.abcdefgh.tmp", ".metrics.jsonl.abcdefgh.tmp", "checkpoints", "best")
    run.mkdir()
    (run / names[0]).write_text("half")
    assert invoke(*tiny_run.arguments(folder, "halves", "train.epochs=1")).exception is None
    assert survival.leftovers(run) == []
    for name in names[:2]:
        (run / name).write_text("half")
    for name in names[2:]:
        (run / name / ".step-00000099.pt.abcdefgh.tmp").write_text("half")
    newest = checkpoint.paths(run / "checkpoints")[0]
    (run / "checkpoints" / "step-00000007.pt").write_bytes(newest.read_bytes()[:-1])
    assert invoke(*tiny_run.arguments(folder, "halves")).exception is None
    assert survival.leftovers(run) == []
    tiny_run.assert_same_training(whole, run)
    assert "step-00000007.pt" not in {p.name for p in run.glob("checkpoints/*")}


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (None, ["model.hidden_units=9"], "model.hidden_units: 8 -> 9"),
        (None, ["train.optimizer=adamw", "train.seed=3"], "train.seed: 0 -> 3"),
        ("tags", [], "the same tags in another order: number 1 was 'tag 0' and is 'tag 1'"),
        ("features", ["features.n_mels=32"], "features.n_mels: 16 -> 32"),
        ("clips", [], "the dataset of the shards differ"),
    ],
)
def test_a_run_does_not_go_on_as_something_else(
    folder: Path, whole: Path, tmp_path: Path, change: str | None, settings: list[str], message: str
) -> None:
    features = dataclasses.replace(tiny_run.FEATURES, n_mels=32 if change == "features" else 16)
    other = tmp_path / "shards"
    if change:
        make_shards(other, tiny_run.SIZES, features, seed=int(change == "clips"))
    if change == "tags":
        manifest = shards.read_manifest(other)
        first, second, *rest = manifest.tags
        shards.write_manifest(other, dataclasses.replace(manifest, tags=[second, first, *rest]))
    argv = tiny_run.arguments(folder, "whole", "train.epochs=4", *settings)
    argv[argv.index("--shards") + 1] = str(other if change else folder / "shards")
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    for option in ([], ["--dry-run"]):
        done = invoke(*argv, *option)
        assert isinstance(done.exception, ValueError)
        assert message in str(done.exception)
        assert "--fresh" in str(done.exception)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
