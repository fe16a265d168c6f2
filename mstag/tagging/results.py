"""Tags of a file -> text: a table for people, JSON lines and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Literal

from mstag.tagging.batch import Result

Tags = Sequence[tuple[str, float]]

CSV_HEADER = "path,tag,score\n"
TABLE_TOP = 10
"""Tags in a table when neither --top nor --threshold says how many."""
BAR_WIDTH = 20


def chosen(
    tags: Tags,
    *,
    top: int | None,
    threshold: float | Literal["own"] | None,
    own_thresholds: Mapping[str, float],
) -> list[tuple[str, float]]:
    """The tags to show.

    Args:
        tags: all of them, highest score first.
        top: at most that many.
        threshold: the least score; "own": each tag's own, at which its F1 on the validation
            split was best.
        own_thresholds: per tag.
    """
    if threshold is not None:
        limits = own_thresholds if threshold == "own" else dict.fromkeys(own_thresholds, threshold)
        tags = [(tag, score) for tag, score in tags if score >= limits[tag]]
    return list(tags[:top])


def as_text(result: Result, tags: Tags, output: Literal["table", "json", "csv"]) -> str:
    """What goes to stdout for one file, its line ends included; "" for none."""
    if output == "csv":
        return as_csv(result, tags)
    if output == "json":
        return as_json(result, tags) + "\n"
    return "" if result.error else as_table(result, tags) + "\n"


def as_json(result: Result, tags: Tags) -> str:
    """One line: path, duration_s, tags, error."""
    return json.dumps(
        {
            "path": result.path,
            "duration_s": None if result.duration_s is None else round(result.duration_s, 3),
            "tags": [{"tag": tag, "score": round(score, 6)} for tag, score in tags],
            "error": result.error,
        },
        allow_nan=False,
    )


def as_csv(result: Result, tags: Tags) -> str:
    """A line per tag, for :data:`CSV_HEADER`; none for a file that failed."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows((result.path, tag, f"{score:.6f}") for tag, score in tags)
    return text.getvalue()


def as_table(result: Result, tags: Tags) -> str:
    """The path, and below it a line per tag: name, score, bar."""
    assert result.duration_s is not None
    minutes, seconds = divmod(round(result.duration_s), 60)
    width = max((len(tag) for tag, _ in tags), default=0)
    lines = [f"{printable(result.path)}  ({minutes}:{seconds:02d})"]
    lines += [
        f"  {printable(tag):{width}}  {score:.3f}  {'=' * round(score * BAR_WIDTH)}".rstrip()
        for tag, score in tags
    ]
    return "\n".join(lines if tags else [*lines, "  no tag reaches the threshold"])


def printable(text: str) -> str:
    """One line that cannot steer a terminal: what is not printable stands as its escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
