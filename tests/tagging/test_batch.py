"""Files and folders -> results and their text."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
from tiny_tagger import LONGER, TAGS, make_bundle, make_wav

from mstag.tagging import batch, results
from mstag.tagging.batch import Result, find_files, newest_bundle, tag_files
from mstag.tagging.tagger import Tagger

SOME = [("guitar", 0.9), ("slow", 0.5), ("rock", 0.2)]
OWN = {"guitar": 0.95, "slow": 0.5, "rock": 0.1}


def test_folders_are_searched_and_files_are_taken_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("m/b.mp3", "m/a/z.FLAC", "m/a/q.m4a", "m/cover.jpg", "m/._b.mp3", "m/.x/c.mp3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    found = find_files(["./m", "m/cover.jpg", "empty", "none"])
    paths = [item.path for item in found]
    assert paths == [
        "./m/a/q.m4a",
        "./m/a/z.FLAC",
        "./m/b.mp3",
        "m/cover.jpg",
        "empty",
        "none",
    ]
    assert [item.error is None for item in found] == [True] * 4 + [False] * 2
    assert "no audio file in this folder" in str(found[4].error)
    assert "no such file" in str(found[5].error)


def test_a_file_that_fails_does_not_stop_the_rest(tmp_path: Path) -> None:
    tagger = Tagger.load(make_bundle(tmp_path / "bundle"), "cpu")
    files = [make_wav(tmp_path / f"{i}.wav", 1.7, seed=i) for i in range(6)]
    files[1].write_text("not music")
    foreign = files[3].rename(tmp_path / "3.ape")
    foreign.write_bytes(b"MAC \x96\x0f")
    files[3] = foreign
    done = list(tag_files(tagger, find_files([*map(str, files), str(tmp_path / "none")])))
    assert [item.path for item in done] == [*map(str, files), str(tmp_path / "none")]
    assert [item.error is not None for item in done] == [
        False,
        True,
        False,
        True,
        False,
        False,
        True,
    ]
    assert "convert it" in str(done[3].error)
    assert "convert it" not in str(done[1].error)
    for number in (0, 2, 4, 5):
        assert done[number].duration_s == pytest.approx(1.7 * 64 * 128 / 8000, abs=1e-3)
        assert tagger.ranked(done[number].scores) == tagger.tag(files[number])


def test_json_of_a_tagger_that_hears_in_chunks(tmp_path: Path) -> None:
    tagger = Tagger.load(make_bundle(tmp_path / "b", features=LONGER, chunk_frames=64), "cpu")
    path = make_wav(tmp_path / "a.wav", 5.0)  # 320 frames: two windows of 150
    (done,) = tag_files(tagger, find_files([str(path)]))
    assert done.over_time is not None and done.over_time.shape == (6, len(TAGS))
    shown = json.loads(results.as_text(done, tagger.ranked(done.scores), "json"))
    assert shown["duration_s"] == 5 * 64 * 128 / 8000
    scores = {entry["tag"]: entry["score"] for entry in shown["tags"]}
    assert [scores[tag] for tag in TAGS] == pytest.approx(done.over_time.mean(axis=0), abs=1e-6)
    assert list(scores) == [tag for tag, _ in tagger.tag(path)]


def test_more_audio_than_memory_is_an_error_of_that_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(path: Path, rate_hz: int) -> None:
        raise MemoryError

    monkeypatch.setattr(batch, "load_audio", too_much)
    assert "memory" in str(batch._read("a.wav", 8000))


def test_the_newest_bundle_is_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train one"):
        newest_bundle(tmp_path)
    for age, name in enumerate(("new", "old", "older")):
        path = make_bundle(tmp_path / name / "best") / "tagger.json"
        os.utime(path, (10_000 - age, 10_000 - age))
    assert newest_bundle(tmp_path) == tmp_path / "new" / "best"


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
    shown = results.chosen(SOME, top=top, threshold=threshold, own_thresholds=OWN)  # type: ignore[arg-type]
    assert [tag for tag, _ in shown] == expected


def test_json_is_one_object_a_line() -> None:
    good = json.loads(results.as_text(Result("a\nb\udce9.mp3", 61.23456), SOME[:1], "json"))
    assert good == {
        "path": "a\nb\udce9.mp3",
        "duration_s": 61.235,
        "tags": [{"tag": "guitar", "score": 0.9}],
        "error": None,
    }
    text = results.as_text(Result("a.mp3", error="why"), [], "json")
    assert text.count("\n") == 1
    assert json.loads(text) == {"path": "a.mp3", "duration_s": None, "tags": [], "error": "why"}


def test_csv_survives_commas_quotes_and_line_ends() -> None:
    text = results.CSV_HEADER + results.as_text(Result('a,"b"\n.mp3', 1.0), SOME, "csv")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["tag"] for row in rows] == ["guitar", "slow", "rock"]
    assert rows[0] == {"path": 'a,"b"\n.mp3', "tag": "guitar", "score": "0.900000"}
    assert results.as_text(Result("a", error="why"), [], "csv") == ""


def test_a_table_cannot_steer_the_terminal() -> None:
    text = results.as_table(Result("a\x1b[2J\n.mp3", 61.0), [("gui\rtar", 0.5), (TAGS[1], 0.01)])
    assert text == "a\\x1b[2J\\n.mp3  (1:01)\n  gui\\rtar  0.500  ==========\n  slow     0.010"
    assert "no tag reaches" in results.as_table(Result("a", 1.0), [])
    assert results.as_text(Result("a", error="why"), [], "table") == ""
