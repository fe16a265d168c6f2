"""The laid-out W&B page, built with the real package; nothing is sent."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from mstag.training import workspace

URL = "https://wandb.example.org/ann/mstag-runs/runs/ab12cd34"


def test_the_project_of_a_run() -> None:
    assert workspace.project_of(URL) == ("ann", "mstag-runs")
    assert workspace.project_of(URL + "?nw=1") == ("ann", "mstag-runs")
    with pytest.raises(ValueError, match="is not the address of a W&B run"):
        workspace.project_of("https://wandb.example.org/ann")


def test_its_sections_and_what_they_show() -> None:
    built = workspace.build("ann", "mstag-runs")
    assert [section.name for section in built.sections] == [
        *("Score", "Loss", "Tags", "Listen", "Speed", "Data")
    ]
    text = json.dumps(built._to_model().spec.model_dump(mode="json"))
    for key in ("valid/roc_auc", "train/loss", "train/data_wait", "data/refused"):
        assert f'"{key}"' in text, key
    logged = set(re.findall(r'"((?:tags|listen)/test/\w+)"', text))
    curves = {f"tags/test/{name}_table" for name in ("roc", "pr", "calibration", "scores")}
    assert curves < logged
    assert {"tags/test/table", "tags/test/confusion_map", "listen/test/clips"} < logged


def test_without_the_package_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb_workspaces", "wandb_workspaces.reports", "wandb_workspaces.reports.v2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"\.\[dashboard\]"):
        workspace.save(tmp_path, URL)


def test_what_wandb_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def save(self) -> None:
            raise RuntimeError("not\nlogged in")

    monkeypatch.setattr(workspace, "build", lambda *_: Refused())
    with pytest.raises(ValueError, match=r"cannot save the workspace \(not logged in\)"):
        workspace.save(tmp_path, URL)
