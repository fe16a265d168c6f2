"""metrics.jsonl and W&B: the same numbers, and nothing that stops a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mstag.config import WandbConfig
from mstag.training import tracking
from mstag.training.tracking import Tracker, has_api_key, wanted_mode

OFF = WandbConfig(mode="disabled")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))  # so that Tracker's own is undone


def written(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_written_at_once_and_are_json(tmp_path: Path) -> None:
    with Tracker(tmp_path, OFF, {}) as tracker:
        tracker.log({"step": 1, "train/loss": 0.5, "valid/roc_auc": None})
        assert len(written(tmp_path)) == 1, "a killed run must have what it logged"
        tracker.log({"step": 2, "train/loss": float("nan"), "train/grad_norm": float("inf")})
    assert written(tmp_path) == [
        {"step": 1, "train/loss": 0.5, "valid/roc_auc": None},
        {"step": 2, "train/loss": None, "train/grad_norm": None},
    ]


def test_a_resumed_run_drops_the_lines_of_steps_that_it_repeats(tmp_path: Path) -> None:
    with Tracker(tmp_path, OFF, {}) as tracker:
        for step in range(5):
            tracker.log({"step": step})
    with Tracker(tmp_path, OFF, {}, num_lines=3) as tracker:
        assert tracker.num_lines == 3
        tracker.log({"step": 3})
        assert tracker.num_lines == 4
    assert [line["step"] for line in written(tmp_path)] == [0, 1, 2, 3]
    with Tracker(tmp_path, OFF, {}):
        pass
    assert written(tmp_path) == [], "a new run starts with none"


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with Tracker(tmp_path, WandbConfig(mode="offline"), {}, active=False) as tracker:
        tracker.log({"step": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", None, "auto"),
        ("auto", "online", "online"),
        ("auto", "Offline", "offline"),
        ("auto", "dryrun", "offline"),
        ("auto", "disabled", "disabled"),
        ("auto", "nonsense", "auto"),
        ("offline", "online", "offline"),
        ("disabled", "online", "disabled"),
        ("online", "disabled", "online"),
    ],
)
def test_the_config_decides_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, mode: str, environment: str | None, expected: str
) -> None:
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    assert wanted_mode(WandbConfig(mode=mode)) == expected


def test_where_keys_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud, own = "https://api.forge.coreweave.com", "https://wandb.example.org:8080"
    assert not has_api_key(cloud)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    assert has_api_key(cloud)
    assert has_api_key("https://api.wandb.ai")
    assert not has_api_key(own)
    (tmp_path / "netrc").write_text("machine wandb.example.org:8080 login user password key\n")
    assert has_api_key(own)
    assert not has_api_key(cloud)
    (tmp_path / "netrc").write_text("not a netrc\n")
    assert not has_api_key(cloud)
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert has_api_key(cloud)


def test_online_without_a_key_says_so_and_goes_on_offline(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Tracker(tmp_path, WandbConfig(mode="online"), {}) as tracker:
        assert tracker.dashboard.startswith("wandb sync ")
    assert "no API key" in caplog.text


def test_without_wandb_the_numbers_are_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with Tracker(tmp_path, WandbConfig(), {}) as tracker:
        tracker.log({"step": 1})
        assert tracker.dashboard == str(tmp_path / "metrics.jsonl")
    assert len(written(tmp_path)) == 1
    assert caplog.text.count("W&B: off (") == 1


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The history that W&B has of an offline run, read back by its own viewer."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return [
        {k: v for k, v in record["history"]["item"].items() if not k.startswith("_")}
        for record in records
        if record["type"] == "history"
    ]


def test_wandb_offline_has_the_same_numbers_also_after_a_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    lines = [
        {"step": s, "clips_seen": 20 * s, "epoch": s / 4, "train/loss": 1 / (s + 1)}
        for s in range(6)
    ]
    offline = WandbConfig(mode="offline")
    with Tracker(run, offline, {"train": {"seed": 0}}) as tracker:
        for line in lines[:5]:
            tracker.log(line)
        assert os.environ["WANDB_DATA_DIR"] == str(run / "wandb"), "staged files go there"
    run_id = (run / "wandb" / "run-id").read_text()
    with Tracker(run, offline, {}, num_lines=3) as tracker:
        for line in lines[3:]:
            tracker.log(line)
        command = tracker.dashboard
    assert written(run) == lines
    assert (run / "wandb" / "run-id").read_text() == run_id
    assert command.startswith("wandb sync ")
    folder = Path(command.removeprefix("wandb sync "))
    assert folder.parent == run / "wandb"
    assert recorded(folder) == lines, "the newest folder has the whole run"
    assert {path.name for path in tmp_path.iterdir()} == {"run"}, "nothing outside the run"


def test_online_without_a_network_goes_on_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "INIT_TIMEOUT_S", 2.0)
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # it read its environment once, for an earlier test
    with Tracker(tmp_path, WandbConfig(mode="online"), {}) as tracker:
        tracker.log({"step": 1})
        assert tracker.dashboard.startswith("wandb sync ")
    assert "cannot go online" in caplog.text
    assert len(written(tmp_path)) == 1
