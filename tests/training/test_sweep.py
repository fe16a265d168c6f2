"""Random search: what is drawn, that trials are run once, and how they are ranked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_run
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from shared_data import REPOSITORY

import train
from mstag import cli
from mstag.config import WandbConfig
from mstag.training import sweep, wandb_run

SWEEP = """
program: train.py
method: random
parameters:
  train.learning_rate: {distribution: log_uniform_values, min: 1.0e-4, max: 1.0e-2}
  train.batch_size: {values: [4, 6]}
  train.ema_decay: {value: 0.5}
"""


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_a_draw_is_a_function_of_seed_and_number(seed: int, number: int) -> None:
    parameters: dict[str, Any] = {
        "a": {"min": 1, "max": 3},
        "b": {"min": 0.5, "max": 2},
        "c": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1},
        "d": {"values": ["x", "y"]},
        "e": {"value": 7},
    }
    drawn = sweep.draw(parameters, seed, number)
    assert drawn == sweep.draw(dict(reversed(parameters.items())), seed, number)
    assert drawn["a"] in (1, 2, 3)
    assert isinstance(drawn["a"], int)
    assert 0.5 <= drawn["b"] <= 2
    assert 1e-5 <= drawn["c"] <= 1e-1
    assert drawn["d"] in ("x", "y")
    assert drawn["e"] == 7
    assert drawn["c"] != sweep.draw(parameters, seed, number + 1)["c"]


def test_logarithms_are_even() -> None:
    how = {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}
    drawn = [sweep.draw({"x": how}, 0, number)["x"] for number in range(400)]
    assert 0.4 < sum(value < 1e-3 for value in drawn) / 400 < 0.6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters: {train.learning_rat: {value: 1}}", "did you mean 'learning_rate'"),
        ("parameters: {train.epochs: {value: 0}}", "train.epochs = 0"),
        ("parameters: {train.epochs: {mu: 3, sigma: 1}}", "cannot be drawn from"),
        ("parameters: {train.epochs: {distribution: normal, min: 1, max: 2}}", "'normal'"),
        ("parameters: {train.learning_rate: {min: 1e-4, max: 1e-2}}", "numbers, as 3.0e-4"),
        ("method: random", "has no parameters"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"sweep .*sweep\.yaml") as error:
        sweep.read_sweep(path)
    assert message in str(error.value)


def test_the_shipped_file_can_be_drawn_from() -> None:
    parameters = sweep.read_sweep(REPOSITORY / "configs" / "sweep.yaml")
    assert len(sweep.draw(parameters, 0, 0)) == len(parameters) > 3


def test_trials_run_once_and_the_best_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run.make_config(tmp_path)
    config.write_text(config.read_text().replace("epochs = 3", "epochs = 1"))
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    parameters = sweep.read_sweep(tmp_path / "sweep.yaml")
    command = ["python", "train.py", "--config", str(config), "--shards", str(tmp_path / "shards")]
    seen: list[int] = []

    def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
        """In this process, which has torch already; others below are processes."""
        assert argv[: len(command)] == command
        done = CliRunner().invoke(train.main, argv[2:])
        return subprocess.CompletedProcess(argv, done.exit_code)

    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(run=run))

    def search(count: int) -> list[sweep.Trial]:
        return sweep.run_sweep(
            parameters,
            command,
            tmp_path / "search",
            count=count,
            seed=1,
            show=lambda trials: seen.append(len(trials)),
        )

    first = search(1)
    assert first[0].roc_auc is not None
    written = (first[0].run / "finished.json").stat().st_mtime_ns
    trials = search(2)
    assert (first[0].run / "finished.json").stat().st_mtime_ns == written, "not run again"
    assert seen == [1, 1, 2]
    scores = [trial.roc_auc or 0 for trial in trials]
    assert scores == sorted(scores, reverse=True)
    table = (tmp_path / "search" / "sweep.tsv").read_text().splitlines()
    assert table[0].split("\t")[:3] == ["valid/roc_auc", "epoch", "run"]
    assert [line.split("\t")[2] for line in table[1:]] == [trial.run.name for trial in trials]
    from mstag.training import runs

    settings = runs.read_config(trials[0].run)
    assert settings.train.learning_rate == trials[0].settings["train.learning_rate"]
    assert settings.wandb.group == "search"


def test_trials_that_fail_are_ranked_last_and_all_of_them_is_an_error(tmp_path: Path) -> None:
    failing = [sys.executable, "-c", "raise SystemExit(1)"]
    with pytest.raises(ValueError, match="none of its 2 trials has ended"):
        sweep.run_sweep({}, failing, tmp_path, count=2, seed=0, show=lambda _: None)
    lost = sweep.Trial(0, {}, tmp_path / "a")
    assert "none\t-\ta" in sweep.as_table([lost])


def test_with_a_key_wandb_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    config = tiny_run.make_config(tmp_path)
    config.write_text(config.read_text().replace('mode = "disabled"', 'mode = "auto"'))
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    calls: list[Any] = []
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "sweep", lambda content, **_: calls.append(content) or "id7")
    monkeypatch.setattr(wandb, "agent", lambda *a, **k: calls.append((a, k["count"])))
    argv = ["sweep", str(tmp_path / "sweep.yaml"), "--config", str(config), "--shards", "s"]
    done = CliRunner().invoke(cli.cli, [*argv, "--out", str(tmp_path / "o"), "--count", "3"])
    assert done.exception is None, done.output
    assert calls[0]["parameters"]["train.ema_decay"] == {"value": 0.5}
    command = ["train.py", "--config", str(config), "--shards", "s", "${args_no_hyphens}"]
    assert calls[0]["command"][1:] == command, "not the file's, which knows the demo only"
    assert calls[1] == (("id7",), 3)
    assert not wandb_run.can_go_online(WandbConfig(mode="offline"))


def test_a_trial_of_wandb_has_a_folder_and_an_id_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mstag.training import runs

    assert runs.default_folder("demo") == Path("runs/demo")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "r2")
    assert runs.default_folder("demo") == Path("runs/demo-sweep/r2")
    assert wandb_run._run_id(tmp_path) == "r2"
