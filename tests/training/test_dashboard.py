"""Where a run that logged online is found again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mstag.config import WandbConfig
from mstag.training import tracking, wandb_run
from mstag.training.dashboard import View, find_view

PAGE = "https://wandb.example.org/me/mstag/runs/abc"


def test_an_online_run_leaves_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # There is no W&B server to go online with: its run alone is not the real one.
    def go_online(run: Path, *_: Any) -> Any:
        (run / "wandb" / "run-20260101_120000-abc").mkdir(parents=True)
        return SimpleNamespace(
            url=PAGE,
            starting_step=0,
            offline=False,
            summary={},
            log=lambda _, **__: None,
            finish=lambda **_: None,
        )

    monkeypatch.setattr(wandb_run, "_init", go_online)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))  # so that Tracker's own is undone
    with tracking.Tracker(tmp_path, WandbConfig(mode="online"), {}) as tracker:
        tracker.log({"step": 1})
        assert tracker.dashboard == PAGE
    assert wandb_run.read_url(tmp_path) == PAGE
    assert find_view(tmp_path) == View("online", PAGE)


def test_a_run_continued_offline_is_looked_at_offline(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    assert find_view(tmp_path) == View("local", str(tmp_path / "metrics.jsonl"))
    for name in ("run-20260101_120000-abc", "offline-run-20260102_080000-abc"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    (tmp_path / "wandb" / "url").write_text(PAGE)
    newest = tmp_path / "wandb" / "offline-run-20260102_080000-abc"
    assert find_view(tmp_path) == View("offline", str(newest))
