"""The section of a report on single tags: scores, curves, calibration, confusions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstag import curves
from mstag.show import vector
from mstag.show.page import Cell, Drawing, Fold, Grid, Heat, Item, Section, Table
from mstag.show.wording import listed, percent
from mstag.training.report_read import Run, Scores
from mstag.training.report_score import with_interval

MOST_MAPPED = 60
"""Tags on the map of confusions; more cannot be read."""
MOST_CONFUSED = 15
MOST_COMPARED = 12
"""Tags of several runs that are shown at once."""
LEAST_CLIPS = 5
"""That bear a tag and lack another, for their confusion to be listed."""
METRICS = (("roc_auc", "ROC-AUC"), ("pr_auc", "PR-AUC"))


def tags(runs: Sequence[Run]) -> Section:
    """Each tag of each run; of several runs first a table that compares them."""
    scored = [run for run in runs if run.report]
    if not scored:
        return Section("Tags", ["Nothing is scored yet."])
    if len(runs) == 1:
        return Section("Tags", of_run(scored[0]))
    folds = [Fold(run.name, of_run(run), is_open=run is scored[0]) for run in scored]
    return Section("Tags", [*(_comparison(scored) if len(scored) > 1 else []), *folds])


def of_run(run: Run) -> list[Item]:
    """All that there is to say of one run's tags."""
    report = run.report
    assert report is not None, "only what was scored has tags"
    per_tag = report["per_tag"]
    content: list[Item] = [
        f"On {report.get('split', 'test')}, {report['clips']:,} clips; lines are 95% intervals.",
        Grid([Drawing(_dots(per_tag, key, words), words) for key, words in METRICS]),
    ]
    unscored = [tag["tag"] for tag in per_tag if tag["roc_auc"] is None]
    if unscored:
        content.append(f"No score, for want of clips with or without the tag: {listed(unscored)}.")
    if run.scores is None:
        content.append(
            "Curves, calibration and confusions need the scores of each clip: "
            f"`python eval.py {run.folder}` writes them."
        )
    else:
        content += _curves(run, run.scores)
        content += _confusions(run, run.scores)
    content.append(Fold(f"All {len(per_tag)} tags in numbers", [_numbers(run, report)]))
    return content


def best_median_worst(per_tag: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Numbers of the tags with the highest, middle and lowest ROC-AUC; fewer of fewer tags."""
    scored = [n for n, tag in enumerate(per_tag) if tag["roc_auc"] is not None]
    scored.sort(key=lambda n: -per_tag[n]["roc_auc"])
    if not scored:
        return {}
    places = {"best": 0, "median": len(scored) // 2, "worst": len(scored) - 1}
    chosen: dict[str, int] = {}
    for word, place in places.items():
        if scored[place] not in chosen.values():
            chosen[word] = scored[place]
    return chosen


def _dots(per_tag: Sequence[dict[str, Any]], key: str, words: str) -> str:
    rows: list[vector.Row] = [
        (f"{tag['tag']} ({tag['positives']})", tag[key], _pair(tag[f"{key}_ci"]))
        for tag in sorted(per_tag, key=lambda tag: -(tag[key] or 0.0))
        if tag[key] is not None
    ]
    chance = 0.5 if key == "roc_auc" else None
    note = "; dashed: chance" if chance else ""
    return vector.dots(
        rows,
        xlabel=f"{words}{note}",
        alt=f"{words} per tag (positives), with 95% intervals; the table below has the numbers",
        reference=chance,
    )


def _pair(interval: Sequence[float] | None) -> tuple[float, float] | None:
    return (interval[0], interval[1]) if interval else None


def _curves(run: Run, scores: Scores) -> list[Item]:
    """ROC, PR, calibration and histogram."""
    assert run.report is not None
    per_tag = run.report["per_tag"]
    chosen = best_median_worst(per_tag)
    names = ", ".join(f"{word}: {per_tag[n]['tag']}" for word, n in chosen.items())
    drawings: list[Item] = []
    for draw, title, xlabel, ylabel in (
        (curves.roc_curve, "ROC", "false positive rate", "true positive rate"),
        (curves.pr_curve, "Precision and recall", "recall", "precision"),
    ):
        lines = {
            word: (line[0].tolist(), line[1].tolist())
            for word, n in chosen.items()
            if (line := draw(*scores.known(n))) is not None
        }
        if lines:
            svg = vector.lines(lines, xlabel=xlabel, ylabel=ylabel, alt=f"{title} of {names}")
            drawings.append(Drawing(svg, f"{title} of the tags with the {names}."))
    labels, values = scores.all_known()
    if len(labels):
        drawings.append(_calibration(labels, values))
    if len(labels) and 0 < labels.sum() < len(labels):
        drawings.append(_histogram(labels, values))
    return [Grid(drawings)]


def _calibration(labels: NDArray[np.uint8], values: NDArray[np.float32]) -> Drawing:
    found = curves.calibration(labels, values)
    error = found.expected_error
    svg = vector.lines(
        {
            "ideal": ([0.0, 1.0], [0.0, 1.0]),
            "model": (found.mean_score.tolist(), found.share_positive.tolist()),
        },
        xlabel="score",
        ylabel="share that bears the tag",
        alt=f"Calibration: expected error {error:.3f}",
    )
    words = (
        f"Calibration, all tags together: of the labels with a score, how many are true. Above "
        f"the ideal line the model is too shy, below it too sure; on average {error:.3f} off."
    )
    return Drawing(svg, words)


def _histogram(labels: NDArray[np.uint8], values: NDArray[np.float32]) -> Drawing:
    edges, positives, negatives = curves.score_histogram(labels, values)
    svg = vector.histogram(
        edges.tolist(),
        {
            "with the tag": (100 * positives / positives.sum()).tolist(),
            "without": (100 * negatives / negatives.sum()).tolist(),
        },
        xlabel="score",
        ylabel="% of labels",
        alt="Histogram of the scores, with and without the tag",
    )
    words = (
        f"Scores of the {positives.sum():,} labels that are there and of the "
        f"{negatives.sum():,} that are not: the less they overlap, the better."
    )
    return Drawing(svg, words)


def _confusions(run: Run, scores: Scores) -> list[Item]:
    """Which tags are given to clips that bear another one."""
    names, thresholds = run.tag_names, run.thresholds
    whose = "its own threshold, as found on the validation split"
    if thresholds is None:
        thresholds, whose = np.full(len(names), 0.5), "0.5, as there is no best bundle to ask"
    found = curves.confusions(scores.labels, scores.scores, thresholds, scores.mask)
    positives = scores.labels.sum(axis=0, dtype=np.int64)
    if scores.mask is not None:
        positives = (scores.labels * scores.mask).sum(axis=0, dtype=np.int64)
    kept = np.argsort(-positives, kind="stable")[:MOST_MAPPED]
    kept = kept[positives[kept] > 0]
    if len(kept) < 2:
        return []
    cells = [
        [None if np.isnan(value) else float(value) for value in row]
        for row in found[np.ix_(kept, kept)]
    ]
    left_out = len(names) - len(kept)
    how = (
        "Confusions. Read a row: of 100 clips that bear the tag on the left but not the tag above, "
        "to how many the model gives the tag above; on the diagonal, how many of the left tag's "
        "clips it finds (striped: there are no such clips). A tag is given from a score of "
        f"{whose}." + (f" Left out: the {left_out} rarest." if left_out else "")
    )
    label = "Share of clips with the row's tag, but not the column's, that get the column's"
    heat = Heat([names[n] for n in kept], cells, label)
    return [how, heat, *_most_confused(names, found, scores)]


def _most_confused(names: Sequence[str], found: NDArray[Any], scores: Scores) -> list[Item]:
    known = np.ones(scores.labels.shape) if scores.mask is None else scores.mask.astype(float)
    possible = (scores.labels * known).T @ ((1 - scores.labels) * known)
    shares = np.where(possible >= LEAST_CLIPS, np.nan_to_num(found), 0.0)
    np.fill_diagonal(shares, 0.0)
    order = np.argsort(-shares, axis=None, kind="stable")[:MOST_CONFUSED].tolist()
    rows = []
    for place in order:
        i, j = divmod(place, len(names))
        if shares[i, j] > 0:
            num = round(shares[i, j] * possible[i, j])
            rows.append(
                [
                    names[i],
                    names[j],
                    f"{num:,} of {possible[i, j]:,.0f}",
                    percent(float(shares[i, j])),
                ]
            )
    if not rows:
        return []
    header = ["clips with", "get, wrongly", "clips", "share"]
    words = "Most frequent confusions"
    return [Fold(words, [Table(header, rows, text_columns=[1])])]


def _numbers(run: Run, report: dict[str, Any]) -> Table:
    thresholds = run.thresholds
    rows: list[list[str | Cell]] = []
    for number, tag in enumerate(report["per_tag"]):
        share = tag["positives"] / max(1, report["clips"])
        rows.append(
            [
                tag["tag"],
                Cell(f"{tag['positives']:,}", min(1.0, share)),
                *(with_interval(tag[key], tag[f"{key}_ci"]) for key, _ in METRICS),
                f"{thresholds[number]:.3f}" if thresholds is not None else "unknown",
            ]
        )
    rows.sort(key=lambda row: str(row[2]), reverse=True)
    header = ["tag", "positives", "ROC-AUC (95%)", "PR-AUC (95%)", "threshold"]
    return Table(header, rows, is_pinned=True, text_columns=())


def _comparison(runs: Sequence[Run]) -> list[Item]:
    """ROC-AUC of every tag in every run, the largest differences first."""
    of_runs = [{tag["tag"]: tag for tag in run.report["per_tag"]} for run in runs if run.report]
    names = list(dict.fromkeys(name for tags_of in of_runs for name in tags_of))
    rows = []
    for name in names:
        values = [tags_of.get(name, {}).get("roc_auc") for tags_of in of_runs]
        known = [value for value in values if value is not None]
        spread = max(known) - min(known) if len(known) > 1 else -1.0
        first = values[0]
        cells = [with_interval(first, None)]
        for value in values[1:]:
            difference = None if value is None or first is None else value - first
            less = "" if difference is None else f" ({with_interval(difference, None, '+')})"
            cells.append(with_interval(value, None) + less)
        positives = next((t[name]["positives"] for t in of_runs if name in t), 0)
        rows.append((spread, [name, f"{positives:,}", *cells]))
    rows.sort(key=lambda row: -row[0])
    header = ["tag", "positives", *(run.name for run in runs)]
    cells_of = [row for _, row in rows]
    words = f"ROC-AUC per tag (in brackets: less {runs[0].name}'s), the largest differences first."
    content: list[Item] = [words, Table(header, cells_of[:MOST_COMPARED], is_pinned=True)]
    if len(cells_of) > MOST_COMPARED:
        whole = Table(header, cells_of, is_pinned=True)
        content.append(Fold(f"All {len(cells_of)} tags compared", [whole]))
    return content
