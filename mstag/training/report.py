"""Runs -> one HTML page: scores with intervals, what the split is worth, curves, tags."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mstag import files
from mstag.show import plots
from mstag.show.page import Picture, Section, Table, html_page

CURVES = (
    ("train/loss", "clips_seen", "Training loss", "binary cross-entropy"),
    ("valid/loss", "epoch", "Validation loss", "binary cross-entropy"),
    ("valid/roc_auc", "epoch", "Validation ROC-AUC", "macro ROC-AUC"),
    ("valid/pr_auc", "epoch", "Validation PR-AUC", "macro PR-AUC"),
    ("train/lr", "clips_seen", "Learning rate", "learning rate"),
    ("train/clips_per_s", "clips_seen", "Throughput", "clips/s"),
)
"""Metric, its step axis, title, unit: the keys of metrics.jsonl and W&B."""


def write_report(runs: Sequence[Path], out: Path) -> None:
    """Writes one self-contained page on one or several runs.

    Raises:
        ValueError: a folder is not a run (no metrics.jsonl), or its numbers are damaged.
    """
    metrics = {run.name: read_metrics(run) for run in runs}
    evals = {run.name: report for run in runs if (report := read_eval(run, "test"))}
    sections = [_scores(evals)] if evals else []
    pictures = []
    for key, axis, title, unit in CURVES:
        lines = {name: _points(rows, axis, key) for name, rows in metrics.items()}
        lines = {name: points for name, points in lines.items() if points[0]}
        if lines:
            png = plots.curves(lines, xlabel=axis.replace("_", " "), ylabel=unit, title=title)
            pictures.append(Picture(png, f"{title} over {axis} of {', '.join(lines)}"))
    sections.append(Section("Curves", pictures or ["Nothing was logged yet."]))
    sections += [_tags(name, report) for name, report in evals.items()]
    settings = [(run / "config.toml").read_text(encoding="utf-8") for run in runs]
    sections.append(Section("Settings", [Table(["setting", *metrics], _settings_rows(settings))]))
    files.write_text(out, html_page(f"mstag: {', '.join(metrics)}", sections))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line cut short is left out."""
    path = run / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        raise ValueError(
            f"{run}: no metrics.jsonl, so it is not a run; name a folder such as runs/demo"
        ) from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ValueError(f"{path}: line {number} is damaged (not JSON)") from None
    return rows


def read_eval(run: Path, split: str) -> dict[str, Any] | None:
    """A run's eval report on a split, or None when it was not scored."""
    path = run / f"eval-{split}.json"
    if not path.exists():
        return None
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); run eval.py again") from None
    return report


def _scores(evals: dict[str, dict[str, Any]]) -> Section:
    rows = [
        [
            name,
            str(report["clips"]),
            _with_interval(report["roc_auc"], report["roc_auc_ci"]),
            _with_interval(report["pr_auc"], report["pr_auc_ci"]),
            _with_interval(report.get("oracle_roc_auc"), None),
            str(report.get("split_rule", "")),
        ]
        for name, report in evals.items()
    ]
    header = ["run", "test clips", "ROC-AUC (95%)", "PR-AUC (95%)", "no-audio oracle", "split"]
    note = (
        "The oracle hears nothing: it predicts from the training labels of the same track, album "
        "and artist. What a run scores above it is what it has learnt from sound."
    )
    return Section("Test scores", [Table(header, rows), note])


def _tags(name: str, report: dict[str, Any]) -> Section:
    per_tag = sorted(report["per_tag"], key=lambda tag: -(tag["roc_auc"] or 0))
    rows = [
        [
            tag["tag"],
            str(tag["positives"]),
            _with_interval(tag["roc_auc"], tag["roc_auc_ci"]),
            _with_interval(tag["pr_auc"], tag["pr_auc_ci"]),
        ]
        for tag in per_tag
    ]
    picture = Picture(plots.tag_bars(per_tag, title=name), f"ROC-AUC per tag of {name}")
    return Section(
        f"Tags of {name}", [picture, Table(["tag", "positives", "ROC-AUC", "PR-AUC"], rows)]
    )


def _points(rows: list[dict[str, Any]], axis: str, key: str) -> tuple[list[float], list[float]]:
    found = [(r[axis], r[key]) for r in rows if r.get(key) is not None and axis in r]
    return [x for x, _ in found], [y for _, y in found]


def _settings_rows(texts: list[str]) -> list[list[str]]:
    """One row per setting, one column per run."""
    import tomllib

    tables = [tomllib.loads(text) for text in texts]
    names = {f"{s}.{k}": (s, k) for table in tables for s, fields in table.items() for k in fields}
    return [
        [name, *(str(table.get(section, {}).get(key, "")) for table in tables)]
        for name, (section, key) in names.items()
    ]


def _with_interval(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "none"
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")
