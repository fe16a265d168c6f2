"""A user's own collection: tables of every format, bad rows, and folders named after tags."""

import json
from pathlib import Path

import pytest

from mstag.config import DatasetConfig
from mstag.data.clips import Catalogue, Clip
from shard_tools.catalogs import load_catalogue
from shard_tools.catalogs.report import describe, format_description


def load(tmp_path: Path, name: str, content: str | bytes, split: str = "auto") -> Catalogue:
    raw = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(raw)
    config = DatasetConfig(name="own", kind="table", table=name, split=split)
    return load_catalogue(config, tmp_path)


FULL = Clip(
    "7",
    "rock/a.mp3",
    frozenset({"rock", "slow song"}),
    track="t",
    artist="Ann, Bob",
    album="al",
    split="valid",
    start_s=1.5,
    duration_s=10.0,
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "t.csv",
            "id,path,tags,track,artist,album,split,start_s,duration_s,mood\n"
            '7,./rock//a.mp3, rock |slow  song|,t,"Ann, Bob",al,Validation,1.5,10,x\n',
        ),
        (
            "t.tsv",
            "\ufeffPath\tTags\tid\ttrack\tartist\talbum\tsplit\tstart_s\tduration_s\r\n"
            "rock/a.mp3\trock|slow song\t7\tt\tAnn, Bob\tal\tval\t1.5\t10\r\n",
        ),
        (
            "t.csv",
            "path;tags;id;track;artist;album;split;start_s;duration_s\n"
            'rock/a.mp3;rock|slow song;7;t;"Ann, Bob";al;valid;1.5;10\n',
        ),
        (
            "t.jsonl",
            '{"path": "rock/a.mp3", "tags": ["rock", "slow song"], "id": 7, "track": "t", "artist":'
            ' "Ann, Bob", "album": "al", "split": "valid", "start_s": 1.5, "duration_s": 10}\n\n',
        ),
    ],
)
def test_every_format_gives_the_same_clip(tmp_path: Path, name: str, content: str) -> None:
    catalogue = load(tmp_path, name, content)
    assert catalogue.clips == [FULL]
    assert catalogue.tag_names == ["rock", "slow song"]
    assert catalogue.split_rule == "given: as the dataset says"


def test_utf16_of_a_spreadsheet(tmp_path: Path) -> None:
    catalogue = load(
        tmp_path, "t.tsv", "path\ttags\n\u00e9\u3000\u00a0a.mp3\trock\n".encode("utf-16")
    )
    assert [clip.path for clip in catalogue.clips] == ["\u00e9\u3000\u00a0a.mp3"]


def test_bad_rows_are_named_never_the_whole_table(tmp_path: Path) -> None:
    rows = [
        b"path,tags,id,start_s,duration_s",
        b"a.mp3,rock,,,",
        b"/etc/a.mp3,rock,,,",
        b"C:\\a.mp3,rock,,,",
        b"x/../../a.mp3,rock,,,",
        b",rock,,,",
        b"b.mp3, | ,,,",
        b"./a.mp3,rock,,,",
        b"c.mp3,rock,a.mp3,,",
        b"d\xe9.mp3,latin\xe9,,,",
        b"e.mp3,rock,,soon,",
        b"f.mp3,rock,,,0",
        b"g.mp3,rock,,,nan",
        b"h.mp3,rock,too,many,fields,here",
        b"few.mp3",
        b"bell\x07.mp3,rock,,,",
        b"",
        b"a.mp3,jazz,,30,29",
    ]
    catalogue = load(tmp_path, "t.csv", b"\n".join(rows))
    assert [clip.id for clip in catalogue.clips] == ["a.mp3", "a.mp3@30"]
    reasons = {int(row.reason.split()[1][:-1]): row.reason for row in catalogue.excluded}
    assert reasons == {
        3: "line 3: absolute path: paths are relative to the data folder",
        4: "line 4: absolute path: paths are relative to the data folder",
        5: 'line 5: path leaves the data folder ("..")',
        6: "line 6: no path",
        7: "line 7: no tags",
        8: "line 8: duplicate: same path as line 2",
        9: "line 9: duplicate: same id as line 2",
        10: "line 10: not UTF-8",
        11: "line 11: start_s is 'soon', not a number of seconds",
        12: "line 12: duration_s is 0",
        13: "line 13: duration_s is 'nan', not a number of seconds",
        14: "line 14: has 6 fields, the first line has 5",
        15: "line 15: has 1 fields, the first line has 5",
        16: "line 16: path has control characters or is not UTF-8",
    }
    # Positives count all rows, but a name that is no text cannot be a tag.
    description = describe(catalogue)
    assert description["tags"] == [
        {"tag": "rock", "positives": 12},
        {"tag": "jazz", "positives": 1},
    ]
    assert json.dumps(description, ensure_ascii=False).encode()
    assert "and 4 more" in format_description(description)


def test_same_stretch_of_a_file_under_another_id(tmp_path: Path) -> None:
    catalogue = load(tmp_path, "t.csv", "id,path,tags\n1,a.mp3,x\n2,a.mp3,x\n")
    assert [row.reason for row in catalogue.excluded] == ["line 3: duplicate: same path as line 2"]


def test_bad_json_lines(tmp_path: Path) -> None:
    lines = [
        '{"path": "a.mp3", "tags": "x|y"}',
        "oops",
        "[1]",
        '{"path": "b.mp3"}',
        '{"tags": ["x"]}',
    ]
    lines.append('{"path": "c\\ud800.mp3", "tags": ["\\udce9"]}')
    catalogue = load(tmp_path, "t.jsonl", "\n".join(lines))
    assert [clip.path for clip in catalogue.clips] == ["a.mp3"]
    assert [row.reason for row in catalogue.excluded] == [
        "line 2: not a JSON object",
        "line 3: not a JSON object",
        "line 4: no tags",
        "line 5: no path",
        "line 6: not UTF-8",
    ]
    assert catalogue.tag_names == ["x", "y"]
    assert json.dumps(describe(catalogue), ensure_ascii=False).encode()


def test_a_row_without_a_split_is_excluded_where_the_table_splits(tmp_path: Path) -> None:
    content = "path,tags,split\na.mp3,x,train\nb.mp3,x,\nc.mp3,x,holdout\n"
    catalogue = load(tmp_path, "t.csv", content)
    assert [clip.split for clip in catalogue.clips] == ["train"]
    assert [row.reason for row in catalogue.excluded] == [
        "line 3: split is '', not train, valid or test",
        "line 4: split is 'holdout', not train, valid or test",
    ]
    assert len(load(tmp_path, "t.csv", content, split="random").clips) == 3


def test_without_a_split_column_artists_stay_together(tmp_path: Path) -> None:
    rows = [f"{n}.mp3,x,artist{n % 5}" for n in range(40)]
    catalogue = load(tmp_path, "t.csv", "\n".join(["path,tags,artist", *rows]))
    description = describe(catalogue)
    assert catalogue.split_rule == "artist: no artist in two splits, 0.75/0.1/0.15, seed 0"
    assert all(description["splits"].values())
    assert description["leaks"]["test"]["artist"] == 0.0
    assert description["leaks"]["test"]["track"] is None
    assert "track unknown" in format_description(description)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "file,tags\na.mp3,rock\n", r"no column 'path' \(it has: file, tags\)"),
        ("t.csv", "", r"no column 'path' and no column 'tags' \(it has: none\)"),
        ("t.csv", "path,tags\n", "it has no rows"),
        ("t.jsonl", '{"path": "a.mp3", "genre": "x"}\n', "no column 'tags'"),
        ("t.jsonl", "", "it has no rows"),
        ("t.xlsx", "path,tags\n", r"must end in \.csv, \.tsv or \.jsonl"),
        ("t.csv", "path,tags\n" + "a" * 140_000 + ",x\n", "line 2 cannot be read"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, name, content)
    assert str(tmp_path / name) in str(caught.value)


def test_rules_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no split"):
        load(tmp_path, "t.csv", "path,tags\na.mp3,x\n", split="given")
    with pytest.raises(ValueError, match="lies in none of the folders 0 to f"):
        load(tmp_path, "t.csv", "path,tags\na.mp3,x\n", split="folders")
    with pytest.raises(ValueError, match="there is no such table"):
        load_catalogue(DatasetConfig(name="own", kind="table", table="u.csv"), tmp_path)


def test_folders_are_tags(tmp_path: Path) -> None:
    config = DatasetConfig(name="own", kind="folders")
    with pytest.raises(ValueError, match="no audio file"):
        load_catalogue(config, tmp_path)
    names = ("rock/a.mp3", "rock/slow/b.WAV", "jazz/c.flac", "d.mp3", "jazz/cover.jpg", ".x/e.mp3")
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    catalogue = load_catalogue(config, tmp_path)
    assert {clip.path: clip.tags for clip in catalogue.clips} == {
        "jazz/c.flac": {"jazz"},
        "rock/a.mp3": {"rock"},
        "rock/slow/b.WAV": {"rock", "slow"},
    }
    assert [(count.tag, count.positives) for count in catalogue.tags] == [
        ("rock", 2),
        ("jazz", 1),
        ("slow", 1),
    ]
    assert {clip.split for clip in catalogue.clips} == {"train", "valid", "test"}
    assert [row.path for row in catalogue.excluded] == ["d.mp3"]


def test_an_explicit_rule_overrides_the_tables_own_split(tmp_path: Path) -> None:
    rows = "".join(f"{n}.mp3,x|y{n % 2},a{n},train\n" for n in range(40))
    content = "path,tags,artist,split\n" + rows
    assert {clip.split for clip in load(tmp_path, "t.csv", content).clips} == {"train"}
    drawn = load(tmp_path, "t.csv", content, split="artist").clips
    assert {clip.split for clip in drawn} == {"train", "valid", "test"}
