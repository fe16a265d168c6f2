"""`mstag tag`, in this process, where torch is there already."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import mutagen
import numpy as np
import pytest
from hostile_audio import cut, encoded, garbage, mp3, noise, tone
from shared_data import REPOSITORY
from tiny_tagger import FEATURES, TAGS, WINDOW_SAMPLES, make_bundle, make_wav, music

from mstag.cli import entry
from mstag.tagging import batch, results
from mstag.tagging.tagger import Tagger

WINDOW_S = WINDOW_SAMPLES / 8000


class Tag(Protocol):
    """Runs `mstag tag` with the tiny bundle."""

    def __call__(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_bundle(tmp_path / "runs" / "new" / "best")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tag(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tag:
    def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["mstag", "tag", "--model", "runs/new", *arguments])
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as end:
            entry()
        assert isinstance(end.value.code, int)
        return subprocess.CompletedProcess(arguments, end.value.code, *capsys.readouterr())

    return run


def no_listening(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """From here on, files that are heard are counted, and cannot be."""
    heard: list[Path] = []

    def listen(tagger: Tagger, source: Path, **_: object) -> None:
        heard.append(source)
        raise ValueError("must not be heard")

    monkeypatch.setattr(batch, "listen", listen)
    return heard


# ---- a folder of many files --------------------------------------------------------------------


def make_hundred(folder: Path) -> tuple[set[str], dict[str, str]]:
    """80 good files and 20 that are not: the good, and of the others what is said of them."""
    short = noise(0.3)
    kinds = {
        "wav": encoded(short),
        "flac": encoded(short, "FLAC"),
        "mp3": mp3(short),
        "ogg": encoded(short, "OGG", subtype="VORBIS"),
        "opus": encoded(tone(0.3, 48_000), "OGG", 48_000, subtype="OPUS"),
        "aiff": encoded(short, "AIFF"),
        "AU": encoded(short, "AU"),
        "caf": encoded(short, "CAF"),
    }
    good = set()
    for number in range(80):
        suffix = list(kinds)[number % len(kinds)]
        path = folder / f"artist {number % 7}" / f"{number:02d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kinds[suffix])
        good.add(str(path.relative_to(folder)))

    bad_sample = tone(0.3)
    bad_sample[1000] = np.nan
    infinite = tone(0.3)
    infinite[1000] = -np.inf
    loud = tone(0.3)
    loud[1000] = 1e30
    contents: dict[str, tuple[bytes, str]] = {
        "empty.mp3": (b"", "empty"),
        "text.mp3": (b"This is a text, not music.\n" * 40, "it is text"),
        "page.ogg": (b"<!DOCTYPE html><html>gone</html>" * 30, "a web page"),
        "picture.flac": (b"\x89PNG\r\n\x1a\n" + garbage(900), "an image"),
        "album.mp3": (b"PK\3\4" + garbage(900), "an archive"),
        "random.mp3": (garbage(5000, 3), "cannot be decoded"),
        "zeros.wav": (bytes(5000), "nothing but zeros"),
        "header.wav": (kinds["wav"][:44], "holds no audio"),
        "stump.wav": (cut(kinds["wav"], 0.3), "only"),
        "stump.flac": (cut(kinds["flac"], 0.3), "only"),
        "stump.mp3": (cut(encoded(noise(2), "MP3"), 0.3), "only"),
        "silence.wav": (encoded(np.zeros(4000)), "is silent"),
        "silence.mp3": (mp3(np.zeros(8000, np.float32)), "is silent"),
        "nan.wav": (encoded(bad_sample, subtype="FLOAT"), "not finite"),
        "inf.wav": (encoded(infinite, subtype="FLOAT"), "not finite"),
        "loud.wav": (encoded(loud, subtype="FLOAT"), "no sound"),
        "song.ape": (b"MAC \x96\x0f" + garbage(900), "convert it to flac"),
    }
    for name, (content, _) in contents.items():
        (folder / "artist 3" / name).write_bytes(content)
    (folder / "artist 3" / "folder.mp3").mkdir()
    (folder / "artist 3" / "dangling.mp3").symlink_to("nowhere")
    os.mkfifo(folder / "artist 3" / "pipe.wav")
    (folder / "artist 3" / "cover.jpg").write_bytes(b"\xff\xd8\xff")  # no audio, nor meant to be
    bad = {f"artist 3/{name}": why for name, (_, why) in contents.items()}
    bad |= {
        "artist 3/folder.mp3": "it is a folder",
        "artist 3/dangling.mp3": "no such file",
        "artist 3/pipe.wav": "named pipe",
    }
    assert (len(good), len(bad)) == (80, 20)
    return good, bad


def test_a_hundred_mixed_files(folder: Path, tag: Tag, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = make_hundred(folder / "music")
    done = tag("music", "--format", "json", "--threshold", "0", "--sidecar")
    assert done.returncode == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 100
    by_path = {row["path"].removeprefix("music/"): row for row in rows}
    assert {path for path, row in by_path.items() if row["error"] is None} == good
    assert {path for path, row in by_path.items() if row["error"] is not None} == set(bad)
    for path in good:
        assert list(by_path[path]) == ["path", "duration_s", "tags", "error"]
        assert len(by_path[path]["tags"]) == len(TAGS)
        assert by_path[path]["duration_s"] == pytest.approx(0.3, abs=0.15)
    for path, why in bad.items():
        assert why in by_path[path]["error"], path
        assert (by_path[path]["tags"], by_path[path]["duration_s"]) == ([], None)

    said = done.stderr.splitlines()
    assert said[-21] == "mstag: 80 tagged, 20 not:"
    expected = [f"music/{path}: {by_path[path]['error']}" for path in sorted(bad)]
    assert sorted(line.removeprefix("mstag: error: ") for line in said[-20:]) == expected
    sidecars = {str(p.relative_to(folder / "music")) for p in folder.rglob("*.tags.json")}
    assert sidecars == {f"{path}.tags.json" for path in good}

    heard = no_listening(monkeypatch)
    again = tag("music", "--format", "json", "--threshold", "0", "--sidecar")
    unheard = {"artist 3/folder.mp3", "artist 3/dangling.mp3"}  # are seen to be no files
    assert {str(p.relative_to("music")) for p in heard} == set(bad) - unheard
    assert "mstag: note: 80 of 80 were done: --overwrite does them again" in again.stderr
    rows_again = [json.loads(line) for line in again.stdout.splitlines()]
    assert [r for r in rows_again if not r["error"]] == [r for r in rows if not r["error"]]


# ---- what is shown -----------------------------------------------------------------------------


def test_stretches_of_less_than_two_frames_are_refused(folder: Path, tag: Tag) -> None:
    make_wav(folder / "a.wav", 6)
    make_bundle(folder / "coarse", features=dataclasses.replace(FEATURES, hop_length=512))
    done = tag("a.wav", "--model", "coarse", "--every", "0.1s")
    assert done.returncode == 2 and "must be at least 0.128 s" in done.stderr
    assert tag("a.wav", "--model", "coarse", "--every", "0.128s", "--top", "1").returncode == 0
    assert tag("a.wav", "--model", "coarse", "--taggram", "a.png").returncode == 0


def test_tags_over_time_in_every_format(folder: Path, tag: Tag) -> None:
    make_wav(folder / "a.wav", 2.5)
    row = json.loads(tag("a.wav", "--every", "500ms", "--format", "json", "--top", "2").stdout)
    spans = [(one["start_s"], one["end_s"]) for one in row["over_time"]]
    assert spans == [(0.5 * i, 0.5 * i + 0.5) for i in range(5)] + [(2.5, 2.56)]
    assert all(len(one["tags"]) == 2 for one in row["over_time"])
    assert len(row["tags"]) == 2
    text = tag("a.wav", "--every", "0.5s", "--format", "csv", "--top", "2").stdout
    table = list(csv.DictReader(io.StringIO(text)))
    assert [(line["start_s"], line["tag"]) for line in table] == [
        (f"{one['start_s']:g}", tag["tag"]) for one in row["over_time"] for tag in one["tags"]
    ]
    lines = tag("a.wav", "--every", ".5", "--top", "2").stdout.splitlines()
    assert [line.split()[0] for line in lines[3:]] == [f"0:0{0.5 * i:.1f}" for i in range(6)]
    assert "over_time" not in json.loads(tag("a.wav", "--format", "json").stdout)


def test_lists_and_patterns(folder: Path, tag: Tag) -> None:
    for name in ("m/a.wav", "m/b c.wav", "m/[x].wav"):
        make_wav(folder / name)

    def paths(*arguments: str, stdin: bytes = b"") -> list[str]:
        done = tag(*arguments, "--format", "json", stdin=stdin)
        return [json.loads(line)["path"] for line in done.stdout.splitlines()]

    assert paths("-", stdin=b"m/b c.wav\nm/[x].wav\n") == ["m/b c.wav", "m/[x].wav"]
    assert paths("-", "m/a.wav", stdin=b"m/a.wav\0m\0") == [
        "m/a.wav",
        "m/[x].wav",
        "m/a.wav",
        "m/b c.wav",
        "m/a.wav",
    ]
    assert paths("m/[ab]*.wav") == ["m/a.wav", "m/b c.wav"]
    assert paths("m/[x].wav") == ["m/[x].wav"]
    nothing = tag("-")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "nothing to tag" in nothing.stderr


def test_damage_is_noted(folder: Path, tag: Tag) -> None:
    (folder / "cut.flac").write_bytes(cut(encoded(noise(), "FLAC"), 0.7))
    done = tag("cut.flac")
    assert done.returncode == 0
    assert "mstag: note: cut.flac: cut off or damaged" in done.stderr


def test_a_demo_tagger_says_what_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mstag.cli_model import limits_in_one_line

    for dataset in ({"name": "demo"}, {"name": "mine", "kind": "demo"}):
        assert "weak on real recordings" in limits_in_one_line(dataset)
    assert limits_in_one_line({"name": "mtt", "kind": "mtt"}).startswith("trained on mtt: ")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--every", "soon"], "not a time"),
        (["--every", "0.01s"], "at least 0.1 s"),
        (["--every", "-5s"], "not a time"),
        (["--every", "5 parsecs"], "not a time"),
        (["--overwrite"], "goes with --sidecar"),
        (["--dry-run"], "goes with --write-tags"),
        (["--overwrite-tags"], "goes with --write-tags"),
        (["-", "-"], "name it once"),
    ],
)
def test_bad_usage(tag: Tag, folder: Path, arguments: list[str], why: str) -> None:
    make_wav(folder / "a.wav")
    done = tag("a.wav", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr.splitlines()[-1]


# ---- what is kept ------------------------------------------------------------------------------


def test_taggrams_of_several_files_go_into_a_folder(folder: Path, tag: Tag) -> None:
    for name in ("m/x/a.wav", "m/y/a.wav", "n/x/a.wav"):
        make_wav(folder / name)
    assert tag("m", "n", "m/x/a.wav", "--taggram", "out").returncode == 0
    made = {str(path.relative_to("out")) for path in Path("out").rglob("*.png")}
    assert made == {"x/a.wav.png", "y/a.wav.png", "x/a.wav-2.png", "a.wav.png"}
    assert Path("out/a.wav.png").read_bytes().startswith(b"\x89PNG")


def test_tags_are_written_once_and_never_in_a_dry_run(folder: Path, tag: Tag) -> None:
    path = folder / "m" / "a.flac"
    path.parent.mkdir()
    path.write_bytes(encoded(music(2 * WINDOW_SAMPLES), "FLAC", 8000))
    content = path.read_bytes()
    dry = tag("m", "--write-tags", "--dry-run", "--sidecar", "--threshold", "0", "--top", "2")
    assert dry.returncode == 0
    assert "  GENRE: (none) -> " in dry.stdout
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["a.flac"]
    how = ("m", "--write-tags", "--sidecar", "--format", "json", "--top", "2")
    first = json.loads(tag(*how).stdout)
    assert [change["field"] for change in first["changes"]] == ["GENRE", "MSTAG", "MSTAG_MODEL"]
    named = [entry["tag"] for entry in first["tags"]]
    assert mutagen.File(path)["genre"] == named
    kept = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in path.parent.iterdir()}
    assert set(kept) == {"a.flac", "a.flac.tags.json"}
    second = json.loads(tag(*how).stdout)
    assert second == first | {"changes": []}
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in path.parent.iterdir()} == kept


def test_a_file_that_takes_no_tags_is_an_error_of_that_file(folder: Path, tag: Tag) -> None:
    (folder / "a.au").write_bytes(encoded(noise(), "AU"))
    (folder / "b.flac").write_bytes(encoded(noise(), "FLAC"))
    done = tag("a.au", "b.flac", "--write-tags", "--format", "csv", "--top", "1")
    assert done.returncode == 1
    assert "mstag: error: a.au: its tags cannot be written" in done.stderr
    assert "mstag: b.flac: GENRE: (none) -> " in done.stderr
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == ["path", "b.flac"]


def test_without_mutagen_nothing_is_loaded(
    folder: Path, tag: Tag, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wav(folder / "a.wav")
    monkeypatch.setitem(sys.modules, "mutagen", None)
    monkeypatch.setattr(Tagger, "load", None)
    done = tag("a.wav", "--write-tags")
    assert (done.returncode, done.stdout) == (1, "")
    assert "[write-tags]" in done.stderr


# ---- interruptions -----------------------------------------------------------------------------


def test_the_same_command_goes_on_after_an_interruption(
    folder: Path, tag: Tag, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [make_wav(folder / "m" / f"{i}.wav", seed=i) for i in range(8)]
    real: Callable[..., str] = results.as_text
    shown: list[str] = []

    def interrupted(result: results.Result, *rest: object) -> str:
        if len(shown) == 3:
            raise KeyboardInterrupt
        shown.append(result.path)
        return real(result, *rest)

    monkeypatch.setattr(results, "as_text", interrupted)
    done = tag("m", "--sidecar", "--format", "json")
    assert done.returncode == 130
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()] == shown
    assert done.stderr.splitlines()[-1] == "mstag: interrupted"
    kept = {p: p.stat().st_mtime_ns for p in folder.rglob("*.tags.json")}
    assert 3 <= len(kept) <= 8
    monkeypatch.setattr(results, "as_text", real)
    again = tag("m", "--sidecar", "--format", "json")
    assert again.returncode == 0
    assert len(again.stdout.splitlines()) == 8
    for path in files:
        sidecar = path.with_name(f"{path.name}.tags.json")
        assert sidecar.exists()
        assert kept.get(sidecar, sidecar.stat().st_mtime_ns) == sidecar.stat().st_mtime_ns


def test_ctrl_c_ends_it_at_once(folder: Path) -> None:
    make_wav(folder / "m" / "0.wav")
    make_wav(folder / "m" / "1.wav", 500)  # 9 minutes, in stretches of 0.1 s
    process = subprocess.Popen(
        [sys.executable, "-m", "mstag", "tag", "m", "--format", "json", "--every", "0.1s"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert first["path"] == "m/0.wav"
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "mstag: interrupted"
    assert "Traceback" not in err
