"""Tags of a file -> text: a table for people, JSON lines and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Tags = Sequence[tuple[str, float]]
Output = Literal["table", "json", "csv"]

CSV_HEADER = "path,tag,score\n"
CSV_HEADER_OVER_TIME = "path,start_s,end_s,tag,score\n"
TABLE_TOP = 10
"""Tags in a table when neither --top nor --threshold says how many."""
TABLE_TOP_OVER_TIME = 4
"""The same for a stretch."""
NEAREST = 3
"""Tags in a table when none reaches its threshold."""
BAR_WIDTH = 20


@dataclass(frozen=True, slots=True)
class Change:
    """What writing tags does to a field of a file."""

    field: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    kept: bool = False
    """It stays as it is, because a person seems to have written it."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one path: scores, or an error."""

    path: str
    """As it was given; of a file in a folder: folder/inner path."""
    inner: str = ""
    """The path within the folder that was given, or the name of the file."""
    duration_s: float | None = None
    scores: NDArray[np.float32] | None = None
    """(num_tags,), of the whole piece: the mean over its windows."""
    over_time: NDArray[np.float32] | None = None
    """(num_stretches, num_tags); NaN where there is silence."""
    every_s: float | None = None
    """Length of a stretch."""
    truncated: bool = False
    """Less could be decoded than the file promises."""
    identity: tuple[int, int] | None = None
    """Size in bytes and time of change (ns) of the file when it was opened; None: not asked for."""
    was_done: bool = False
    """It comes from a sidecar: the file was not heard again."""
    changes: tuple[Change, ...] | None = None
    """Of the tags inside the file; None: they were not to be written."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tags to show.

    Attributes:
        top: at most that many; None: all.
        threshold: the least score; "own": each tag's own, at which its F1 on the validation
            split was best; None: any.
    """

    top: int | None
    threshold: float | Literal["own"] | None


def ranked(tag_names: Sequence[str], scores: NDArray[np.float32]) -> list[tuple[str, float]]:
    """Tags with their scores as they are shown, highest first; equal ones in vector order.

    Of silence, whose scores are NaN, there are none.
    """
    if np.isnan(scores).any():
        return []
    shown = [round(float(score), 6) for score in scores]
    order = sorted(range(len(shown)), key=lambda i: -shown[i])
    return [(tag_names[i], shown[i]) for i in order]


def chosen(
    tags: Tags, choice: Choice, own_thresholds: Mapping[str, float]
) -> list[tuple[str, float]]:
    """The tags to show, of all of them, which come highest score first."""
    if choice.threshold == "own":
        tags = [(tag, score) for tag, score in tags if score >= own_thresholds[tag]]
    elif choice.threshold is not None:
        tags = [(tag, score) for tag, score in tags if score >= choice.threshold]
    return list(tags[: choice.top])


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of a result: tags, and those that come nearest when there are none."""

    tags: Tags
    nearest: Tags = ()
    stretches: Sequence[Shown] | None = None


def shown(
    result: Result,
    tag_names: Sequence[str],
    own_thresholds: Mapping[str, float],
    choice: Choice,
    over_time: Choice,
) -> Shown:
    """What is shown of a result.

    Args:
        result: a file's.
        tag_names: in vector order.
        own_thresholds: per tag.
        choice: of the tags of the whole.
        over_time: the same of a stretch.
    """
    if result.scores is None:
        return Shown([])

    def select(scores: NDArray[np.float32], choice: Choice) -> tuple[Tags, Tags]:
        every = ranked(tag_names, scores)
        found = chosen(every, choice, own_thresholds)
        return found, () if found else every[:NEAREST]

    stretches = None
    if result.over_time is not None:
        stretches = [Shown(*select(row, over_time)) for row in result.over_time]
    return Shown(*select(result.scores, choice), stretches)


def as_text(result: Result, shown: Shown, output: Output) -> str:
    """What goes to stdout for one file, its line ends included; "" for none."""
    if output == "csv":
        return as_csv(result, shown)
    if output == "json":
        return as_json(result, shown) + "\n"
    return "" if result.error else as_table(result, shown) + "\n"


def as_json(result: Result, shown: Shown) -> str:
    """One line: path, duration_s, tags, error; over_time and changes where they were asked for."""
    row: dict[str, Any] = {
        "path": result.path,
        "duration_s": None if result.duration_s is None else round(result.duration_s, 3),
        "tags": _as_objects(shown.tags),
        "error": result.error,
    }
    if shown.stretches is not None:
        row["over_time"] = [
            {"start_s": start_s, "end_s": end_s, "tags": _as_objects(stretch.tags)}
            for (start_s, end_s), stretch in zip(_spans(result), shown.stretches, strict=True)
        ]
    if result.changes is not None:
        row["changes"] = [
            {
                "field": change.field,
                "before": list(change.before),
                "after": list(change.after),
                "kept": change.kept,
            }
            for change in result.changes
        ]
    return json.dumps(row, allow_nan=False)


def as_csv(result: Result, shown: Shown) -> str:
    """A line per tag, for :data:`CSV_HEADER`; with stretches, per tag of each.

    None for a file that failed.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    if shown.stretches is None:
        rows.writerows((result.path, tag, f"{score:.6f}") for tag, score in shown.tags)
        return text.getvalue()
    for (start_s, end_s), stretch in zip(_spans(result), shown.stretches, strict=True):
        rows.writerows(
            (result.path, f"{start_s:g}", f"{end_s:g}", tag, f"{score:.6f}")
            for tag, score in stretch.tags
        )
    return text.getvalue()


def as_table(result: Result, shown: Shown) -> str:
    """The path, and below it a line per tag (name, score, bar), per stretch, per change."""
    assert result.duration_s is not None
    lines = [f"{printable(result.path)}  ({_clock(result.duration_s)})"]
    tags = shown.tags or shown.nearest
    if not shown.tags:
        lines.append("  no tag reaches the threshold; nearest to it are")
    width = max((len(printable(tag)) for tag, _ in tags), default=0)
    lines += [
        f"  {printable(tag):{width}}  {score:.3f}  {'=' * round(score * BAR_WIDTH)}".rstrip()
        for tag, score in tags
    ]
    if shown.stretches is not None:
        spans = _spans(result)
        lines += [
            f"  {_clock(start_s, result.every_s):>8}  {_in_a_row(stretch)}"
            for (start_s, _), stretch in zip(spans, shown.stretches, strict=True)
        ]
    return "\n".join([*lines, *(f"  {line}" for line in changes_in_words(result))])


def changes_in_words(result: Result) -> list[str]:
    """What is written into the file, a line per field."""
    if result.changes is None:
        return []
    return [
        f"{change.field}: {_values(change.before)} (kept: --overwrite-tags replaces it)"
        if change.kept
        else f"{change.field}: {_values(change.before)} -> {_values(change.after)}"
        for change in result.changes
    ] or ["the tags inside the file are these already"]


def printable(text: str) -> str:
    """One line that cannot steer a terminal: what is not printable stands as its escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _as_objects(tags: Tags) -> list[dict[str, Any]]:
    return [{"tag": tag, "score": round(score, 6)} for tag, score in tags]


def _spans(result: Result) -> list[tuple[float, float]]:
    """Start and end of each stretch, in seconds."""
    assert result.over_time is not None
    assert result.every_s is not None and result.duration_s is not None
    starts = [round(i * result.every_s, 3) for i in range(len(result.over_time))]
    return list(zip(starts, [*starts[1:], round(result.duration_s, 3)], strict=True))


def _in_a_row(stretch: Shown) -> str:
    if not (stretch.tags or stretch.nearest):
        return "silence"
    if stretch.tags:
        return ", ".join(f"{printable(tag)} {score:.2f}" for tag, score in stretch.tags)
    tag, score = stretch.nearest[0]
    return f"(nearest: {printable(tag)} {score:.2f})"


def _clock(time_s: float, step_s: float | None = None) -> str:
    """Hours, minutes, seconds; with tenths where whole seconds would repeat themselves."""
    tenths = step_s is not None and step_s != round(step_s)
    whole = round(10 * time_s) / 10 if tenths else round(time_s)
    minutes, seconds = divmod(whole, 60)
    hours, minutes = divmod(int(minutes), 60)
    shown = f"{seconds:04.1f}" if tenths else f"{seconds:02.0f}"
    return f"{hours}:{minutes:02d}:{shown}" if hours else f"{minutes}:{shown}"


def _values(values: Sequence[str]) -> str:
    return "; ".join(map(printable, values)) or "(none)"
