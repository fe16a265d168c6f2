"""Run folders: opened, refused, moved aside, ended; and what the keyboard sees."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from make_shards import TINY, make_shards

from mstag import config
from mstag.data import shards
from mstag.training import display, runs

SETTINGS = config.Config(
    dataset=config.DatasetConfig(name="synthetic"),
    features=TINY,
    train=config.TrainConfig(batch_size=4),
)


def test_a_run_is_moved_aside_under_the_next_free_name(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    for _ in range(3):
        runs.open_run(run, SETTINGS, fresh=True)
    assert {path.name for path in tmp_path.iterdir()} == {"demo", "demo.1", "demo.2"}
    runs.open_run(run, SETTINGS, fresh=False)
    assert runs.read_config(run) == SETTINGS
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds files but no config\.toml"):
        runs.open_run(tmp_path, SETTINGS, fresh=fresh)
    with pytest.raises(ValueError, match="is a file"):
        runs.open_run(tmp_path / "thesis.tex", SETTINGS, fresh=fresh)
    assert (tmp_path / "thesis.tex").exists()


def test_a_finished_run_that_starts_again_is_not_finished(tmp_path: Path) -> None:
    runs.open_run(tmp_path, SETTINGS, fresh=False)
    assert not runs.is_finished(tmp_path)
    runs.finish(tmp_path, {"epoch": 3})
    assert runs.is_finished(tmp_path)
    runs.open_run(tmp_path, SETTINGS, fresh=False)
    assert not runs.is_finished(tmp_path)


@pytest.mark.parametrize(
    ("settings", "sizes", "message"),
    [
        (
            dataclasses.replace(SETTINGS, dataset=config.DatasetConfig(name="mtt")),
            {"train": [8], "valid": [2]},
            "hold the dataset 'synthetic', the config says dataset.name = 'mtt'",
        ),
        (
            dataclasses.replace(SETTINGS, features=dataclasses.replace(TINY, n_mels=9)),
            {"train": [8], "valid": [2]},
            "features.n_mels: 8 -> 9",
        ),
        (SETTINGS, {"train": [8]}, "no clips in split 'valid'"),
        (SETTINGS, {"train": [8], "valid": []}, "no clips in split 'valid'"),
        (SETTINGS, {"train": [3], "valid": [2]}, "3 training clips are less than one batch"),
    ],
)
def test_shards_that_do_not_fit_are_refused(
    tmp_path: Path, settings: config.Config, sizes: dict[str, list[int]], message: str
) -> None:
    make_shards(tmp_path, sizes)
    with pytest.raises(ValueError, match=message):
        runs.check_shards(tmp_path, shards.read_manifest(tmp_path), settings)


def test_shards_that_fit(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [8], "valid": [2]})
    runs.check_shards(tmp_path, shards.read_manifest(tmp_path), SETTINGS)


def test_the_ending_says_scores_and_places() -> None:
    report = {
        **{"split": "test", "clips": 9, "roc_auc": 0.9, "roc_auc_ci": [0.8, 0.95]},
        **{"pr_auc": None, "pr_auc_ci": None, "loss": 0.2, "skipped_tags": [{}]},
        **{"oracle_roc_auc": 0.5, "split_rule": "artist"},
    }
    text = runs.ending(Path("runs/x"), report, "wandb sync there", TINY)
    for part in (
        "test: ROC-AUC 0.9000 [0.8000, 0.9500]  PR-AUC undefined",
        "(1 tags without a score)",
        "0.5000 on this split (artist)",
        "wandb sync there",
        "--model runs/x/best",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"), (11_100, "3 h 05 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert display.duration(seconds) == words


def test_the_clock_counts_the_loop_and_what_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(display.time, "perf_counter", lambda: now)

    def slow_batches():  # type: ignore[no-untyped-def]
        nonlocal now
        for _ in range(4):
            now += 1.0
            yield None

    clock = display.Clock()
    for number, _ in enumerate(clock.watch(slow_batches())):
        now += 3.0
        if number == 1:
            assert clock.lap() == (pytest.approx(2 / 8), pytest.approx(0.25))
    now += 100.0  # a validation, which is no step
    outside = display.Clock()
    for _ in outside.watch(clock.watch(slow_batches())):
        now += 1.0
    assert clock.lap()[1] == pytest.approx((2 + 4) / (2 * 4 + 4 * 2), rel=0.01)


def test_the_clock_believes_a_loader_that_counts_its_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = waited = 0.0
    monkeypatch.setattr(display.time, "perf_counter", lambda: now)

    def batches() -> Iterator[None]:
        nonlocal now, waited
        for _ in range(4):
            now += 1.0
            waited += 0.5  # of that second; the rest is the loader's own work
            yield None

    clock = display.Clock(lambda: waited)
    for _ in clock.watch(batches()):
        now += 3.0
        waited += 100.0  # of another loop over the same loader
    assert clock.lap() == (pytest.approx(4 / 16), pytest.approx(2 / 16))


def test_without_a_terminal_there_is_a_line_per_logging_step(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="mstag")
    now = 0.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    metrics = {
        "train/loss": 0.25,
        "train/lr": 1e-3,
        "train/clips_per_s": 17.25,
        "train/data_wait": 0.002,
    }
    with display.Display(total_steps=100, done_steps=20, shown=True) as shown:
        assert shown.eta() == "ETA unknown"
        for _ in range(40):
            now += 2.0
            shown.step()
        shown.line(3, metrics)
    assert caplog.messages == [
        "step 60/100  epoch 3  loss 0.2500  lr 0.001  17.2 clips/s  data wait 0.2%  ETA 80 s"
    ]
    with display.Display(total_steps=100, done_steps=20, shown=False) as hidden:
        hidden.line(3, metrics)
    assert len(caplog.messages) == 1, "other ranks say nothing"


def test_how_busy_the_device_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = used = 0.0
    monkeypatch.setattr(display.time, "perf_counter", lambda: now)
    monkeypatch.setattr(display.time, "process_time", lambda: used)
    monkeypatch.setattr(display.os, "cpu_count", lambda: 4)
    busy = display.Busy(torch.device("cpu"))
    now, used = 10.0, 20.0
    assert busy.lap() == 0.5, "two of four cores"
    now = 20.0
    assert busy.lap() == 0.0
    assert busy.lap() == 0.0, "no time has gone by"

    def without_the_package(_: torch.device) -> int:
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    gpu = display.Busy(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "utilization", without_the_package)
    assert gpu.lap() is None
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 87)
    now += display.DRIVER_PERIOD_S / 2
    assert gpu.lap() is None, "the driver is not asked again so soon"
    now += display.DRIVER_PERIOD_S / 2
    assert gpu.lap() == 0.87
