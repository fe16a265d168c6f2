from __future__ import annotations

import json
from pathlib import Path

import pytest

from mstag.training.report import read_metrics, write_report


def make_run(folder: Path, epochs: int = 3) -> Path:
    folder.mkdir()
    (folder / "config.toml").write_text(f"[train]\nepochs = {epochs}\n")
    lines = [
        {"clips_seen": 10 * e, "epoch": e, "train/loss": 1 / e, "valid/roc_auc": 0.5 + 0.1 * e}
        for e in range(1, epochs + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tag = {"positives": 3, "pr_auc": 0.5, "pr_auc_ci": None, "roc_auc_ci": [0.7, 0.9]}
    report = {
        "clips": 12,
        "roc_auc": 0.8765,
        "roc_auc_ci": [0.81, 0.92],
        "pr_auc": None,
        "pr_auc_ci": None,
        "oracle_roc_auc": 0.5,
        "split_rule": "artist: no artist in two splits",
        "per_tag": [
            {"tag": "<guitar>", "roc_auc": 0.8, **tag},
            {
                "tag": "sax",
                "positives": 0,
                "roc_auc": None,
                "roc_auc_ci": None,
                "pr_auc": None,
                "pr_auc_ci": None,
            },
        ],
    }
    (folder / "eval-test.json").write_text(json.dumps(report))
    return folder


def test_a_report_shows_scores_curves_tags_and_settings_of_several_runs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", epochs=5)]
    (runs[1] / "eval-test.json").unlink()
    write_report(runs, tmp_path / "out" / "report.html")
    html = (tmp_path / "out" / "report.html").read_text()
    for words in (
        "0.876",
        "0.810 to 0.920",
        "0.500",
        "&lt;guitar&gt;",
        "none",
        "train.epochs",
        "two",
    ):
        assert words in html, words
    assert html.count("data:image/png") == 3, "two curves and the bars of the scored run"


def test_a_run_that_is_still_going_on_has_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    (run / "eval-test.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"clips_seen": 99, "tra')
    assert len(read_metrics(run)) == 3
    write_report([run], tmp_path / "r.html")


def test_what_is_not_a_run_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run"):
        write_report([tmp_path], tmp_path / "r.html")
    run = make_run(tmp_path / "one")
    (run / "metrics.jsonl").write_text('{"epoch": 1\n{"epoch": 2}\n')
    with pytest.raises(ValueError, match="line 1 is damaged"):
        read_metrics(run)
    run = make_run(tmp_path / "two")
    (run / "eval-test.json").write_text("{")
    with pytest.raises(ValueError, match=r"eval-test\.json: damaged"):
        write_report([run], tmp_path / "r.html")
