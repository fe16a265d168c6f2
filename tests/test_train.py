"""train.py as a user runs it: whole, killed, stopped, on two ranks, and by mistake."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from click.testing import CliRunner, Result
from make_shards import make_shards
from wandb_records import recorded

import train
from mstag.training import checkpoint, score
from mstag.training.display import Display

STEPS_PER_EPOCH = 25 // 4
EPOCHS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config and shards, shared: nothing writes to them."""
    path = tmp_path_factory.mktemp("tiny")
    tiny_run.make_config(path)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An uninterrupted run."""
    done = invoke(*tiny_run.arguments(folder, "whole"))
    assert done.exception is None
    return folder / "whole"


def invoke(*argv: str) -> Result:
    """train.py in this process: saves the seconds that importing torch takes."""
    threads = torch.get_num_threads()
    done = CliRunner().invoke(train.main, argv)
    torch.set_num_threads(threads)
    return done


def wait_for_checkpoint(run: Path, step: int) -> None:
    for _ in range(6000):
        newest = next(iter(checkpoint.paths(run / "checkpoints")), None)
        if newest is not None and int(newest.stem.removeprefix("step-")) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"{run} never came to step {step}")


def test_a_run_leaves_what_the_contract_says(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names == {
        *("config.toml", "metrics.jsonl", "about.json", "checkpoints", "best"),
        *("eval-test.json", "scores-test.npz", "finished.json"),
    }
    assert [path.name for path in checkpoint.paths(whole / "checkpoints")] == [
        "step-00000018.pt",
        "step-00000012.pt",
    ]
    report = json.loads((whole / "eval-test.json").read_text())
    assert report["split"] == "test"
    assert report["clips"] == sum(tiny_run.SIZES["test"])
    assert report["roc_auc_ci"][0] <= report["roc_auc"] <= report["roc_auc_ci"][1]
    assert {"checkpoint_digest", "dataset_digest", "features_digest", "tags_digest"} <= set(report)
    bundle = json.loads((whole / "best" / "tagger.json").read_text())
    kept = bundle["scores"]["test"]
    assert kept["roc_auc_ci"] == pytest.approx(report["roc_auc_ci"], abs=1e-6)
    assert [row["tag"] for row in kept["per_tag"]] == bundle["tags"]
    assert bundle["dataset"]["clips"] == {name: sum(n) for name, n in tiny_run.SIZES.items()}
    low, high = report["roc_auc_ci"]
    card = (whole / "best" / "README.md").read_text()
    assert f"{report['roc_auc']:.4f} [{low:.4f}, {high:.4f}]" in card


def test_the_lines_of_metrics(whole: Path) -> None:
    lines = tiny_run.metrics_of(whole)
    trained = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in trained] == list(range(2, STEPS_PER_EPOCH * EPOCHS + 1, 2))
    assert all(line["clips_seen"] == 4 * line["step"] for line in lines)
    assert all(line["epoch"] == line["step"] / STEPS_PER_EPOCH for line in lines)
    valid = [line for line in lines if "valid/roc_auc" in line]
    assert [line["epoch"] for line in valid] == [1, 2, 3]
    assert set(valid[0]) >= {"valid/loss", "valid/pr_auc"}
    assert set(lines[-1]) == {"step", "clips_seen", "epoch", "test/roc_auc", "test/pr_auc"}
    assert set(trained[0]) >= {"train/lr", "train/grad_norm"}


def test_a_finished_run_says_so_and_a_changed_one_is_refused(
    folder: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="mstag")
    before = (whole / "metrics.jsonl").read_bytes()
    assert invoke(*tiny_run.arguments(folder, "whole")).exit_code == 0
    assert "is finished (3 epochs)" in caplog.text
    assert "--fresh" in caplog.text
    done = invoke(*tiny_run.arguments(folder, "whole", "train.learning_rate=0.5"))
    assert isinstance(done.exception, ValueError)
    assert "train.learning_rate: 0.001 -> 0.5" in str(done.exception)
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_kill_9_and_the_same_command_end_bit_by_bit_alike(folder: Path, whole: Path) -> None:
    each_step = "train.checkpoint_every_s=0"
    argv = tiny_run.arguments(folder, "killed", each_step)
    process = tiny_run.start("train.py", *argv)
    wait_for_checkpoint(folder / "killed", STEPS_PER_EPOCH + 3)
    process.kill()
    process.communicate()
    assert not (folder / "killed" / "finished.json").exists(), "killed too late to show anything"
    # What a kill may leave besides: half a file, and lines of steps without a checkpoint.
    (folder / "killed" / "checkpoints" / "step-00000099.pt").write_bytes(b"PK")
    with (folder / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 98, "tr')
    assert invoke(*argv).exception is None
    tiny_run.assert_same_training(whole, folder / "killed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step(
    folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    run = f"stopped-by-{number}"
    argv = tiny_run.arguments(folder, run, "train.checkpoint_every_s=1e9")
    step = Display.step

    def signal_in_step_8(self: Display) -> None:
        step(self)
        if self._step == 8:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Display, "step", signal_in_step_8)
    handler = signal.getsignal(number)
    done = invoke(*argv)
    assert done.exit_code == 128 + number
    assert "stopped after step 8" in done.stderr
    assert signal.getsignal(number) == handler
    assert checkpoint.paths(folder / run / "checkpoints")[0].name == "step-00000008.pt"
    monkeypatch.undo()
    assert invoke(*argv).exception is None
    tiny_run.assert_same_training(whole, folder / run)


def test_more_epochs_go_on_and_fresh_moves_aside(folder: Path, whole: Path) -> None:
    longer = tiny_run.arguments(folder, "longer")
    short = [*longer, "--set", "train.epochs=1"]
    assert invoke(*short).exception is None
    assert invoke(*longer).exception is None
    tiny_run.assert_same_training(whole, folder / "longer")
    assert invoke(*short, "--fresh").exception is None
    assert len(tiny_run.metrics_of(folder / "longer.1")) > len(
        tiny_run.metrics_of(folder / "longer")
    )


def test_two_ranks_take_the_same_steps_and_count_each_clip_once(folder: Path) -> None:
    done = tiny_run.torchrun(2, Path(__file__).parent / "on_ranks.py", str(folder))
    assert done.returncode == 0, done.stderr
    run = folder / "ranks"
    lines = tiny_run.metrics_of(run)
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps), "only one rank writes"
    assert max(steps) == STEPS_PER_EPOCH * EPOCHS
    (offline,) = run.glob("wandb/*run-2*")
    assert [row["step"] for row in recorded(offline)] == steps, "and W&B has one run"
    report = json.loads((run / "eval-test.json").read_text())
    assert report["clips"] == sum(tiny_run.SIZES["test"])
    for text, times in (
        ("dashboard:", 1),
        ("test: ROC-AUC", 2),
        ("rank 0 ended with ValueError('no space')", 1),
        ("rank 1 ended with SystemExit(1)", 1),
    ):
        assert done.stdout.count(text) == times, done.stdout
    # The same weights score the same by eval.py on two ranks, one clip at a time, and here alone.
    again = json.loads((folder / "again.json").read_text())
    for other in (again, scored_alone(folder, "test")):
        assert other.pop("loss") == pytest.approx(report["loss"], abs=1e-6)
        assert other == {key: value for key, value in report.items() if key != "loss"}
    # Both ranks validated what rank 0 then saved: one model, BatchNorm's statistics included.
    best_epoch = json.loads((run / "finished.json").read_text())["best_epoch"]
    logged = [line["valid/loss"] for line in lines if "valid/loss" in line][best_epoch - 1]
    assert scored_alone(folder, "valid")["loss"] == pytest.approx(logged, abs=1e-6)


def scored_alone(folder: Path, split: str) -> dict[str, Any]:
    """What eval.py says of the run "ranks" in this one process."""
    places = [str(folder / "ranks" / "best"), "--shards", str(folder / "shards")]
    done = CliRunner().invoke(tiny_run.load_eval().main, [*places, "--split", split, "--json", "-"])
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.batch_size=26"], "25 training clips are less than one batch"),
        (["train.batch_size=1"], "each rank needs 2 clips or more"),
        (["train.batchsize=2"], "did you mean 'batch_size'"),
        (["features.n_mels=32"], "features.n_mels: 16 -> 32"),
        (["dataset.name=mtt"], "hold the dataset 'synthetic'"),
        (["train.precision=fp16"], "CPUs have no fast fp16"),
    ],
)
def test_mistakes_are_one_clear_error(folder: Path, settings: list[str], message: str) -> None:
    done = invoke(*tiny_run.arguments(folder, "mistake", *settings))
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)
    assert not (folder / "mistake").exists(), "a refused run leaves nothing behind"


def test_no_shards_is_one_line_on_stderr(tmp_path: Path) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(tiny_run.CONFIG)
    argv = ["--config", str(config), "--shards", str(tmp_path / "none"), "--out", str(tmp_path)]
    done = tiny_run.run_script("train.py", *argv)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("train.py: error: shards")
    assert "make shards" in done.stderr


def test_help_is_light() -> None:
    done = tiny_run.run_script("train.py", "--help")
    assert done.returncode == 0
    assert "--fresh" in done.stdout


def test_partial_labels_train_and_are_scored_where_known(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(tiny_run.CONFIG)
    content = make_shards(tmp_path / "shards", tiny_run.SIZES, tiny_run.FEATURES, partial=True)
    done = invoke(*tiny_run.arguments(tmp_path, "partial", "train.epochs=1"))
    assert done.exception is None
    report: dict[str, Any] = json.loads((tmp_path / "partial" / "eval-test.json").read_text())
    known_positives = [
        sum(int(s.tags[i]) for s in content["test"] if s.mask is not None and s.mask[i])
        for i in range(5)
    ]
    assert [tag["positives"] for tag in report["per_tag"]] == known_positives


def test_fresh_is_meant_once_and_not_at_every_restart(
    folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = tiny_run.arguments(folder, "restarted")
    assert invoke(*longer, "--set", "train.epochs=1").exception is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert invoke(*longer, "--fresh").exception is None
    assert not (folder / "restarted.1").exists()
    tiny_run.assert_same_training(whole, folder / "restarted")


def test_a_dry_run_of_a_run_that_stands_before_its_validation(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = tiny_run.arguments(folder, "before-validation")
    score_split = score.score_split

    def told(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return score_split(*args, **options)

    monkeypatch.setattr(score, "score_split", told)
    assert invoke(*argv).exit_code == 143
    monkeypatch.undo()
    done = invoke(*argv, "--dry-run")
    assert done.exception is None
    assert f"goes on at step {STEPS_PER_EPOCH}" in done.stdout
    assert "step:       none" in done.stdout
