"""Results -> text."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_tagger import TAGS

from mstag.tagging import results
from mstag.tagging.results import Change, Choice, Result, Shown

SOME = [("guitar", 0.9), ("slow", 0.5), ("rock", 0.2)]
OWN = {"guitar": 0.95, "slow": 0.5, "rock": 0.1}
NAN = float("nan")
TIMED = Result(
    "a.mp3",
    duration_s=12.5,
    scores=np.array([0.9, 0.5, 0.2], np.float32),
    over_time=np.array([[0.96, 0.1, 0.0], [NAN] * 3, [0.3, 0.2, 0.05]], np.float32),
    every_s=5.0,
)
NAMES = list(OWN)


@pytest.mark.parametrize(
    ("top", "threshold", "expected"),
    [
        (None, None, ["guitar", "slow", "rock"]),
        (2, None, ["guitar", "slow"]),
        (None, 0.0, ["guitar", "slow", "rock"]),
        (None, 0.5, ["guitar", "slow"]),
        (1, 0.5, ["guitar"]),
        (None, "own", ["slow", "rock"]),
        (1, "own", ["slow"]),
        (None, 1.0, []),
    ],
)
def test_which_tags_are_shown(top: int | None, threshold: object, expected: list[str]) -> None:
    shown = results.chosen(SOME, Choice(top, threshold), OWN)  # type: ignore[arg-type]
    assert [tag for tag, _ in shown] == expected


def test_equal_scores_keep_the_order_of_the_vector_and_silence_has_none() -> None:
    scores = np.array([0.5, 0.7, 0.5, 0.7, 0.1], np.float32)
    assert results.ranked("abcde", scores) == [
        ("b", 0.7),
        ("d", 0.7),
        ("a", 0.5),
        ("c", 0.5),
        ("e", 0.1),
    ]
    assert results.ranked("ab", np.array([NAN, NAN], np.float32)) == []


def test_json_is_one_object_a_line() -> None:
    good = json.loads(
        results.as_text(Result("a\nb\udce9.mp3", duration_s=61.23456), Shown(SOME[:1]), "json")
    )
    assert good == {
        "path": "a\nb\udce9.mp3",
        "duration_s": 61.235,
        "tags": [{"tag": "guitar", "score": 0.9}],
        "error": None,
    }
    text = results.as_text(Result("a.mp3", error="why"), Shown([]), "json")
    assert text.count("\n") == 1
    assert json.loads(text) == {"path": "a.mp3", "duration_s": None, "tags": [], "error": "why"}


def test_csv_survives_commas_quotes_and_line_ends() -> None:
    text = results.CSV_HEADER + results.as_text(
        Result('a,"b"\n.mp3', duration_s=1.0), Shown(SOME), "csv"
    )
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["tag"] for row in rows] == ["guitar", "slow", "rock"]
    assert rows[0] == {"path": 'a,"b"\n.mp3', "tag": "guitar", "score": "0.900000"}
    assert results.as_text(Result("a", error="why"), Shown([]), "csv") == ""


def test_a_table_cannot_steer_the_terminal() -> None:
    result = Result("a\x1b[2J\n.mp3", duration_s=61.0)
    text = results.as_table(result, Shown([("gui\rtar", 0.5), (TAGS[1], 0.01)]))
    assert text == ("a\\x1b[2J\\n.mp3  (1:01)\n  gui\\rtar  0.500  ==========\n  slow      0.010")
    assert results.as_text(Result("a", error="why"), Shown([]), "table") == ""


def test_a_table_is_never_empty() -> None:
    choice = Choice(None, 0.95)
    shown = results.shown(replace(TIMED, over_time=None), NAMES, OWN, choice, choice)
    assert shown.tags == []
    assert [tag for tag, _ in shown.nearest] == ["guitar", "slow", "rock"]
    lines = results.as_table(TIMED, shown).splitlines()
    assert lines[1] == "  no tag reaches the threshold; nearest to it are"
    assert [line.split()[0] for line in lines[2:]] == ["guitar", "slow", "rock"]
    assert json.loads(results.as_json(TIMED, shown))["tags"] == []


def test_tags_over_time_in_every_format() -> None:
    shown = results.shown(TIMED, NAMES, OWN, Choice(None, 0.0), Choice(None, "own"))
    row = json.loads(results.as_json(TIMED, shown))
    assert list(row) == ["path", "duration_s", "tags", "error", "over_time"]
    assert [(one["start_s"], one["end_s"]) for one in row["over_time"]] == [
        (0.0, 5.0),
        (5.0, 10.0),
        (10.0, 12.5),
    ]
    assert [one["tags"] for one in row["over_time"]] == [
        [{"tag": "guitar", "score": 0.96}],
        [],
        [],
    ]
    rows = results.CSV_HEADER_OVER_TIME + results.as_csv(TIMED, shown)
    assert list(csv.DictReader(io.StringIO(rows))) == [
        {"path": "a.mp3", "start_s": "0", "end_s": "5", "tag": "guitar", "score": "0.960000"}
    ]
    assert results.as_table(TIMED, shown).splitlines()[4:] == [
        "      0:00  guitar 0.96",
        "      0:05  silence",
        "      0:10  (nearest: guitar 0.30)",
    ]


@pytest.mark.parametrize(
    ("time_s", "step_s", "expected"),
    [(0, 5, "0:00"), (3725, 5, "1:02:05"), (59.96, 0.1, "1:00.0"), (7.25, 7.25, "0:07.2")],
)
def test_clocks(time_s: float, step_s: float, expected: str) -> None:
    assert results._clock(time_s, step_s) == expected


def test_changes_are_said() -> None:
    changes = (Change("GENRE", ("Jazz",), ("Jazz",), True), Change("MSTAG", (), ("slow=0.500",)))
    result = replace(TIMED, over_time=None, changes=changes)
    table = results.as_table(result, Shown(SOME[:1]))
    assert table.splitlines()[2:] == [
        "  GENRE: Jazz (kept: --overwrite-tags replaces it)",
        "  MSTAG: (none) -> slow=0.500",
    ]
    row = json.loads(results.as_json(result, Shown([])))
    assert row["changes"][1] == {
        "field": "MSTAG",
        "before": [],
        "after": ["slow=0.500"],
        "kept": False,
    }
    assert results.changes_in_words(replace(result, changes=())) == [
        "the tags inside the file are these already"
    ]
