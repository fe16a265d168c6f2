"""The first section of a report: what runs reach, what their split is worth, who is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mstag import metrics
from mstag.show.page import Item, Points, Section, Table
from mstag.show.wording import LEAK_SHARE, Point, leaks_in_words, listed, oracle_in_words
from mstag.training.report_read import SPLITS, Run, Scores, number

NUM_RESAMPLES = 300
"""Of the intervals of differences."""
MOST_CELLS = 5e7
"""Clips times tags times resamples, above which differences get no intervals: some seconds."""
METRICS = (("roc_auc", "ROC-AUC"), ("pr_auc", "PR-AUC"))

Interval = tuple[float, float]


def score(runs: Sequence[Run]) -> Section:
    """Scores with intervals, and first of all whether they can be believed."""
    points = [(True, words) for run in runs for words in run.damage]
    points += _worth(runs)
    scored = [run for run in runs if run.report]
    content: list[Item] = [Points(points)] if points else []
    if scored:
        content.append(_per_split(runs[0]) if len(runs) == 1 else _comparison(runs))
        note = (
            "In brackets: the 95% interval over clips. The oracle hears nothing: it predicts from "
            "the training labels of the same track, album and artist. What a run scores above it "
            "is what it has learnt from sound."
        )
        content.append(note)
    else:
        content.append("Nothing is scored yet.")
    content += [words for run in runs if (words := _state(run))]
    return Section("Score", content)


def paired_differences(one: Scores, other: Scores) -> dict[str, Interval]:
    """How much better ``other`` is: 95% intervals of the differences, both on the same resamples.

    Much narrower than what the two runs' own intervals suggest, as the clips that are hard for
    one are hard for the other (the paired bootstrap of Efron and Tibshirani, 1993).

    Returns:
        roc_auc, pr_auc -> interval; nothing where the two did not score the same labels.
    """
    if one.ids != other.ids or not np.array_equal(one.labels, other.labels):
        return {}
    if one.scores.size * NUM_RESAMPLES > MOST_CELLS or not one.ids:
        return {}
    weights = metrics.resampling_weights(len(one.ids), NUM_RESAMPLES, 0).astype(np.float64)
    differences = []
    for tag in range(one.labels.shape[1]):
        aucs = []
        for run in (one, other):
            mask = None if one.mask is None else one.mask[:, tag]
            ranking = metrics.rank(one.labels[:, tag], run.scores[:, tag], mask)
            aucs.append(np.array(metrics.weighted_aucs(ranking, weights)))
        differences.append(aucs[1] - aucs[0])
    stacked = np.array(differences)
    is_defined = ~np.isnan(stacked)
    if not is_defined.any(axis=0).all():
        return {}
    means = np.where(is_defined, stacked, 0.0).sum(axis=0) / is_defined.sum(axis=0)
    low, high = np.percentile(means, [2.5, 97.5], axis=1)
    return {key: (float(low[n]), float(high[n])) for n, (key, _) in enumerate(METRICS)}


def with_interval(value: float | None, interval: Sequence[float] | None, sign: str = "") -> str:
    """A score for people, such as "0.912 (0.901 to 0.923)"."""
    if value is None:
        return "none"
    shown, *ends = (f"{number:{sign}.3f}" for number in (value, *(interval or ())))
    # Neither "-0.000" nor "+0.000" says anything.
    shown, *ends = ("0.000" if text[1:] == "0.000" else text for text in (shown, *ends))
    # On a phone a line may break before the bracket, not within.
    bracket = "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}".join(ends)
    return f"{shown} ({bracket})" if ends else shown


def best_valid(run: Run) -> dict[str, Any] | None:
    """The line of metrics.jsonl with the best validation ROC-AUC that the training has seen."""
    seen = [row for row in run.rows if number(row.get("valid/roc_auc")) is not None]
    return max(seen, key=lambda row: float(row["valid/roc_auc"]), default=None)


def _worth(runs: Sequence[Run]) -> list[Point]:
    """What the scores of the runs are worth; what several runs share is said once."""
    points: dict[Point, list[str]] = {}
    for run in runs:
        report = run.report
        if report is None:
            continue
        found: list[Point] = []
        if report.get("leaks") is not None:
            split = report.get("split", "test")
            own = {name: kinds for name, kinds in report["leaks"].items() if name == split}
            loudly = "This split leaks! " if _worst_leak(report) >= LEAK_SHARE else ""
            found += [(is_bad, f"{loudly}{words}") for is_bad, words in leaks_in_words(own)]
        oracle = report["oracle_roc_auc"]
        if oracle is not None:
            is_warning, words = oracle_in_words(oracle)
            if report["roc_auc"] is not None:
                words += f" This run: {report['roc_auc'] - oracle:+.3f} above it."
            found.append((is_warning, words))
        for point in found:
            points.setdefault(point, []).append(run.name)
    several = len(runs) > 1
    said = [
        (is_warning, f"{listed(names)}: {words}" if several else words)
        for (is_warning, words), names in points.items()
    ]
    first = next((run for run in runs if run.report), None)
    others = [run for run in runs if run.report and first and not _same_data(first, run)]
    if first and others:
        names = listed([run.name for run in others])
        words = f"{names}: scored on other data than {first.name}; the difference says little."
        said.append((True, words))
    return sorted(said, key=lambda point: not point[0])


def _same_data(one: Run, other: Run) -> bool:
    a, b = one.report or {}, other.report or {}
    keys = ("clips", "split", "split_rule", "dataset_digest")
    return all(a.get(key) == b.get(key) for key in keys) and one.tag_names == other.tag_names


def _per_split(run: Run) -> Table:
    """A column a split, which leaves room for the intervals on a phone."""
    columns = [
        [split, *_scores(report), _above(report), f"{report['clips']:,}"]
        for split in SPLITS
        if (report := run.evals.get(split))
    ]
    best = best_valid(run)
    if best and "valid" not in run.evals:
        cells = {key: number(best.get(f"valid/{key}")) for key in ("roc_auc", "pr_auc", "loss")}
        shown = [f"{value:.4f}" if value is not None else "none" for value in cells.values()]
        columns.append([f"valid{_epoch(best)}", *shown, "", ""])
    words = ["", "ROC-AUC (95%)", "PR-AUC (95%)", "loss", "above the oracle", "clips"]
    header, *rows = [list(row) for row in zip(words, *columns, strict=True)]
    return Table(header, rows)


def _epoch(row: dict[str, Any]) -> str:
    epoch = number(row.get("epoch"))
    return "" if epoch is None else f", epoch {epoch:g}"


def _scores(report: dict[str, Any]) -> list[str]:
    cells = [with_interval(report[key], report.get(f"{key}_ci")) for key, _ in METRICS]
    loss = report.get("loss")
    return [*cells, f"{loss:.4f}" if isinstance(loss, int | float) else "unknown"]


def _above(report: dict[str, Any]) -> str:
    if report["oracle_roc_auc"] is None or report["roc_auc"] is None:
        return "unknown"
    return f"{report['roc_auc'] - report['oracle_roc_auc']:+.3f}"


def _comparison(runs: Sequence[Run]) -> Table:
    first = next(run for run in runs if run.report)
    rows = []
    for run in runs:
        valid = best_valid(run)
        of_valid = f"{valid['valid/roc_auc']:.3f}" if valid else "none"
        if run.report is None:
            rows.append([run.name, "not scored", *[""] * 7, of_valid, ""])
            continue
        (roc, pr, loss), (roc_less, pr_less) = _scores(run.report), _differences(first, run)
        clips, split = f"{run.report['clips']:,}", str(run.report.get("split", ""))
        oracle = with_interval(run.report["oracle_roc_auc"], None)
        numbers = [roc, roc_less, pr, pr_less, loss, clips, split, oracle, of_valid]
        rows.append([run.name, *numbers, _rule(run.report)])
    header = [
        *("run", "ROC-AUC (95%)", "less the first's", "PR-AUC (95%)", "less the first's"),
        *("loss", "clips", "split", "oracle", "best on valid", "split rule"),
    ]
    return Table(header, rows, text_columns=[len(header) - 1], is_pinned=True)


def _differences(first: Run, run: Run) -> list[str]:
    """Of both metrics to the first run's; an interval that leaves out 0 is no chance."""
    if run is first or first.report is None or run.report is None:
        return ["", ""]
    intervals: dict[str, Interval] = {}
    if first.scores and run.scores and first.tag_names == run.tag_names:
        intervals = paired_differences(first.scores, run.scores)
    cells = []
    for key, _ in METRICS:
        one, other = first.report[key], run.report[key]
        difference = None if one is None or other is None else other - one
        cells.append(with_interval(difference, intervals.get(key), "+"))
    return cells


def _rule(report: dict[str, Any]) -> str:
    """The split rule, with what must not be overlooked."""
    leaks = " - it leaks!" if _worst_leak(report) >= LEAK_SHARE else ""
    return f"{report.get('split_rule', 'unknown')}{leaks}"


def _worst_leak(report: dict[str, Any]) -> float:
    """Of the split that was scored: the largest share of clips whose track, ... is in train."""
    leaks = (report.get("leaks") or {}).get(report.get("split", "test"), {})
    return max((share for share in leaks.values() if share is not None), default=0.0)


def _state(run: Run) -> str:
    """What is to be said of a training that has not come to its end."""
    valid = best_valid(run)
    at = ""
    if valid:
        at = f" Best validation ROC-AUC: {valid['valid/roc_auc']:.4f}{_epoch(valid)}."
    if "test" not in run.evals:
        return (
            f"{run.name} has no test scores: "
            + (
                "its data has no test split, or it was not scored."
                if run.is_finished
                else "its training is going on, or was cut short."
            )
            + f"{at} `python eval.py {run.folder}` scores the best weights so far."
        )
    return "" if run.is_finished else f"{run.name}: its training goes on, or was cut short.{at}"
