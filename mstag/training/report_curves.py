"""The sections of a report that show numbers over time: Loss and Speed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mstag.show import vector
from mstag.show.page import Drawing, Facts, Fold, Grid, Item, Section
from mstag.show.wording import percent
from mstag.training.report_read import Run, number

MOST_POINTS = 400
"""Of a line on the page."""
MOST_OTHERS = 40
"""Curves of numbers that have no place of their own."""
LEGEND_LETTERS = 34
"""That fit above a plot, beside its unit."""

Line = tuple[list[float], list[float]]


@dataclass(frozen=True, slots=True)
class Chart:
    """What stands in one plot; of several runs each key gets its own."""

    title: str
    unit: str
    keys: Mapping[str, str]
    """Key -> what it is called in the legend."""


LOSS = (
    Chart("Loss", "binary cross-entropy", {"train/loss": "training", "valid/loss": "validation"}),
    Chart("ROC-AUC on the validation split", "macro ROC-AUC", {"valid/roc_auc": "validation"}),
    Chart("PR-AUC on the validation split", "macro PR-AUC", {"valid/pr_auc": "validation"}),
    Chart("Learning rate", "learning rate", {"train/lr": "training"}),
    Chart("Norm of the gradient", "L2 norm", {"train/grad_norm": "training"}),
    Chart("Norm of the weights", "L2 norm", {"train/weight_norm": "training"}),
    Chart("Distance of the averaged weights", "share", {"train/ema_distance": "training"}),
)
SPEED = (
    Chart("Throughput", "clips/s", {"train/clips_per_s": "training"}),
    Chart("Waiting for data", "share of step time", {"train/data_wait": "training"}),
    Chart("Memory in use, at most", "GB", {"train/memory_gb": "training"}),
    Chart("The device in use", "share", {"train/utilisation": "training"}),
    Chart("What tracking takes", "share of the time", {"track/share": "training"}),
)
IS_SPEED = re.compile(r"per_s\b|wait|memory|mem\b|util|_gb\b|_mb\b|seconds|_s\b|time|power_w")
AXES = ("step", "clips_seen", "epoch")
FEW = {"data/seen", "data/dropped", "data/refused"}
"""Counts that belong to the data, not to the curves."""


def loss(runs: Sequence[Run]) -> Section:
    """Losses, scores, learning rate, norms, and whatever else was logged."""
    content = _charts(runs, LOSS)
    named = {key for chart in (*LOSS, *SPEED) for key in chart.keys} | FEW
    others = [key for key in _keys(runs) if key not in named and not is_speed(key)]
    if found := _charts(runs, [Chart(key, key, {key: key}) for key in others[:MOST_OTHERS]]):
        content.append(Fold(f"Everything else that was logged ({len(others)})", found))
    return Section("Loss", content or ["Nothing was logged yet."])


def speed(runs: Sequence[Run]) -> Section:
    """How fast the training went, and what held it up."""
    told: list[Item] = []
    for run in runs:
        facts = {}
        rates, waits = (values(run, f"train/{key}")[1] for key in ("clips_per_s", "data_wait"))
        if rates:
            facts["Throughput"] = f"{np.median(rates):,.1f} clips/s (median)"
        if waits:
            facts["Waiting for data"] = (
                f"{percent(min(1.0, max(0.0, float(np.mean(waits)))))} of the time (mean); on a "
                "GPU an upper bound"
            )
        if facts:
            told.append(Facts({"Run": run.name, **facts} if len(runs) > 1 else facts))
    named = {key for chart in SPEED for key in chart.keys}
    others = [key for key in _keys(runs) if is_speed(key) and key not in named]
    charts = [*SPEED, *(Chart(key, key, {key: key}) for key in others[:MOST_OTHERS])]
    content: list[Item] = [Grid(told)] if told else []
    content += _charts(runs, charts)
    return Section("Speed", content or ["Nothing was logged yet."])


def is_speed(key: str) -> bool:
    """Whether a key tells of speed or of the machine."""
    return IS_SPEED.search(key) is not None


def values(run: Run, key: str) -> Line:
    """Epochs and values of a key, as far as both are finite numbers."""
    x, y = [], []
    for row in run.rows:
        at, value = number(row.get("epoch", row.get("step"))), number(row.get(key))
        if at is not None and value is not None:
            x.append(at)
            y.append(value)
    return x, y


def thinned(line: Line) -> Line:
    """At most MOST_POINTS points; the first and last are kept."""
    if len(line[0]) <= MOST_POINTS:
        return line
    kept = np.linspace(0, len(line[0]) - 1, MOST_POINTS).round().astype(int).tolist()
    return [line[0][n] for n in kept], [line[1][n] for n in kept]


def legend(names: Sequence[str]) -> tuple[list[str], str]:
    """Names as they fit above a plot: themselves, or numbers and the words that explain them."""
    if sum(len(name) + 5 for name in names) <= LEGEND_LETTERS:
        return list(names), ""
    numbers = [str(number) for number in range(1, len(names) + 1)]
    return numbers, ", ".join(f"{n}: {name}" for n, name in zip(numbers, names, strict=True))


def _keys(runs: Sequence[Run]) -> list[str]:
    """Everything that was logged as a number at two places at least."""
    keys = dict.fromkeys(key for run in runs for row in run.rows for key in row)
    return [
        key for key in keys if key not in AXES and any(len(values(run, key)[0]) > 1 for run in runs)
    ]


def _charts(runs: Sequence[Run], charts: Sequence[Chart]) -> list[Item]:
    shown, explained = legend([run.name for run in runs])
    drawings: list[Item] = []
    for chart in charts:
        if len(runs) == 1:
            lines = {chart.keys[key]: values(runs[0], key) for key in chart.keys}
            drawings += _drawing(lines, chart.title, chart.unit)
            continue
        for key, word in chart.keys.items():
            lines = {name: values(run, key) for name, run in zip(shown, runs, strict=True)}
            title = f"{chart.title}, {word}" if len(chart.keys) > 1 else chart.title
            drawings += _drawing(lines, title, chart.unit)
    if not drawings:
        return []
    return [*([f"Runs by their numbers: {explained}."] if explained else []), Grid(drawings)]


def _drawing(lines: Mapping[str, Line], title: str, unit: str) -> list[Item]:
    """A plot of the lines that have a point; every line keeps its colour from plot to plot."""
    if not any(x for x, _ in lines.values()):
        return []
    ends = ", ".join(f"{name} ends at {y[-1]:.4g}" for name, (_, y) in lines.items() if y)
    svg = vector.lines(
        {name: thinned(line) for name, line in lines.items()},
        xlabel="epoch",
        ylabel=unit if len(unit) <= 24 else "",
        alt=f"{title} over epochs: {ends}",
    )
    return [Drawing(svg, title)]
