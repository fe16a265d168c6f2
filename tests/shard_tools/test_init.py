"""`shard-tools init`: what it finds in a collection, and that what it writes can be used."""

import dataclasses
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny_tagger
from shared_data import REPOSITORY

from mstag.config import load_config
from mstag.models.bundle import read_tagger
from shard_tools import init as starting
from shard_tools.catalogs import load_catalogue


def command(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from shard_tools.cli import entry; sys.argv[0] = 'shard-tools'; entry()"
    return subprocess.run(
        [sys.executable, "-c", code, *argv],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
        check=False,
    )


def write_audio(path: Path, seconds: float = 0.5, rate_hz: int = 8000, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros((round(seconds * rate_hz), channels)), rate_hz)


def settings_of(path: Path) -> tuple[dict[str, Any], str]:
    """The settings, and the comments as one line."""
    text = path.read_text()
    load_config(path)
    comments = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    return tomllib.loads(text), comments


def make(folder: Path, out: Path) -> tuple[dict[str, Any], str]:
    starting.init(folder, out)
    return settings_of(out)


def test_from_init_to_catalog_by_the_real_commands(tmp_path: Path) -> None:
    music = tmp_path / "My Music"
    for number in range(24):
        write_audio(music / ("rock", "jazz")[number % 2] / f"{number}.wav", 1.0, 8000, 2)
    (music / "rock" / "broken.wav").write_bytes(b"no audio")
    (music / "stray.mp3").touch()
    done = command(tmp_path, "init", "My Music")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "configs/my-music.toml: written; look at it, then",
        "  shard-tools catalog --config configs/my-music.toml --data 'My Music'",
        "  make train DATASET=my-music DATA='My Music'",
    ]
    settings, comments = settings_of(tmp_path / "configs" / "my-music.toml")
    assert settings == {
        "dataset": {"name": "my-music", "kind": "folders", "num_tags": 2},
        "features": {"num_frames": 64},
        "shards": {"max_skipped": 0.1},
        "model": starting.NETWORK | {"chunk_frames": 0},
        "train": starting.TRAINING,
    }
    assert "The network is mscnn2, which hears whole windows" in comments
    assert "26 audio files (25 wav, 1 mp3)" in comments
    assert "Headers of 25 drawn files: 1.0 to 1.0 s" in comments
    assert "8000 Hz, channels 2; 1 cannot be read, e.g. rock/broken.wav" in comments
    assert "Left out: 1 of 26, e.g. stray.mp3: no tag" in comments
    assert "jazz (12)" in comments and "rock (13)" in comments
    assert "neither artist nor track is known" in comments
    argv = ("catalog", "--config", "configs/my-music.toml", "--data", "My Music", "--json")
    catalog = command(tmp_path, *argv)
    assert catalog.returncode == 0, catalog.stderr
    assert json.loads(catalog.stdout)["clips"] == 25
    again = command(tmp_path, "init", "My Music")
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1 and "is not overwritten" in again.stderr


def test_of_several_tables_the_one_whose_paths_are_there(tmp_path: Path) -> None:
    music = tmp_path / "m"
    for number in range(20):
        write_audio(music / "audio" / f"{number}.wav", 40.0, 8000)
    good = ["path,tags,artist", *(f"audio/{n}.wav,rock|t{n},A{n % 7}" for n in range(22))]
    (music / "tracks.csv").write_text("\n".join(good))
    (music / "a-elsewhere.csv").write_text("path,tags\n/mnt/x.wav,rock\n")
    (music / "a-few.csv").write_text("path,tags\naudio/1.wav,rock\n")
    (music / "almost.tsv").write_text("File_Name\tGenres\naudio/1.wav\trock\n")
    (music / "prices.csv").write_text("item,price\nx,1\n")
    settings, comments = make(music, tmp_path / "m.toml")
    assert settings["dataset"] == {
        "name": "m",
        "kind": "table",
        "table": "tracks.csv",
        "num_tags": 1,
    }
    assert settings["shards"] == {"max_skipped": 0.11}
    assert (
        "Taken: tracks.csv: 22 rows, 20 of their paths are there. It is taken because" in comments
    )
    assert "a-elsewhere.csv: 1 rows, 0 of their paths are there" in comments
    assert "rename its column 'file_name' to 'path' and 'genres' to 'tags'" in comments
    assert "prices" not in comments
    assert "No such file: 2 of 22 paths, e.g. audio/20.wav" in comments
    assert "22 tags have fewer than 10 clips" in comments
    assert "Split: by artist (7 of them, 22 clips)" in comments
    catalogue = load_catalogue(load_config(tmp_path / "m.toml").dataset, music)
    assert catalogue.tag_names == ["rock"]


@pytest.mark.parametrize(("seconds", "rule"), [(80.0, "windows"), (900.0, "centre")])
def test_long_files(tmp_path: Path, seconds: float, rule: str) -> None:
    for number in range(10):
        write_audio(tmp_path / "m" / "rock" / f"{number}.wav", seconds, 1000)
    settings, comments = make(tmp_path / "m", tmp_path / "m.toml")
    assert settings["shards"] == {"long_clips": rule}
    assert "features" not in settings
    assert f"A clip has about {seconds / 29.12:.0f} windows" in comments


def test_a_split_of_the_tables_own_and_tracks(tmp_path: Path) -> None:
    for number in range(3):
        write_audio(tmp_path / "m" / f"{number}.wav", 29.0)
    table = tmp_path / "m" / "t.jsonl"
    row = '{"path": "%d.wav", "tags": ["a", "b"], "track": "t"%s}\n'
    table.write_text("".join(row % (n, ', "split": "train"') for n in range(3)))
    assert "Split: the dataset's own." in make(tmp_path / "m", tmp_path / "a.toml")[1]
    table.write_text("".join(row % (n, "") for n in range(3)))
    settings, comments = make(tmp_path / "m", tmp_path / "b.toml")
    assert "Split: by track (1 of them)" in comments
    assert settings == {
        "dataset": {"name": "m", "kind": "table", "table": "t.jsonl", "num_tags": 2},
        "model": starting.NETWORK,
        "train": starting.TRAINING,
    }
    assert "which hears chunks of 21.9 s" in comments


def test_the_network_is_the_one_that_was_measured() -> None:
    measured = tomllib.loads((REPOSITORY / "configs" / "demo-large-mscnn2.toml").read_text())
    assert measured["model"] == starting.NETWORK
    # Longer, and so with what makes clips harder.
    assert measured["train"] | starting.TRAINING == starting.TRAINING


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("mtt", "annotations_final.csv", '"clip_id"\t"rock"\t"mp3_path"\n"1"\t"1"\t"0/a.mp3"\n'),
        (
            "mtg-jamendo",
            "data/splits/split-0/autotagging_top50tags-{}.tsv",
            "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\nt{}\ta\tb\t00/{}.mp3\t1\tgenre---x\n",
        ),
    ],
)
def test_known_datasets(tmp_path: Path, kind: str, name: str, content: str) -> None:
    for part in ("train", "validation", "test"):
        path = tmp_path / "m" / name.format(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content.format(part, part))
    if kind == "mtg-jamendo":
        (tmp_path / "m" / "data" / "autotagging_top50tags.tsv").write_text(content)
    settings, comments = make(tmp_path / "m", tmp_path / "m.toml")
    assert settings["dataset"]["kind"] == kind
    assert f"It holds the tables of {kind}: see also configs/{kind}.toml" in comments
    assert "No audio is there yet" in comments


def test_names_that_toml_or_a_terminal_could_stumble_over(tmp_path: Path) -> None:
    music = tmp_path / "m"
    for number in range(10):
        write_audio(music / 'say "hi" \\' / f"{number}.wav")
    (music / 'say "hi" \\' / "two\nlines = [.wav").touch()
    settings, comments = make(music, tmp_path / "m.toml")
    assert settings["dataset"]["kind"] == "folders"
    assert "two\ufffdlines = [.wav" in comments


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "the folder is empty; put your audio there first"),
        (["notes.txt"], "no audio file in it, and no table of path and tags"),
        (["a.mp3", "b.ogg"], "2 audio files but no tags: write a table"),
        (
            ["a.mp3", "t.csv"],
            r"1 audio files but no tags \(t\.csv could be a table of clips: rename",
        ),
        (["dir.mp3/"], r"no audio file in it that can be used \('dir\.mp3': an empty folder"),
    ],
)
def test_what_cannot_be_started_from(tmp_path: Path, names: list[str], message: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for name in names:
        if name.endswith("/"):
            (folder / name).mkdir()
        else:
            (folder / name).write_text("path,genre\n" if name == "t.csv" else "")
    with pytest.raises(ValueError, match=message) as caught:
        starting.init(folder, tmp_path / "out.toml")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.toml").exists()


def test_like_a_bundle_it_is_a_fine_tuning(tmp_path: Path) -> None:
    """Features and network are the bundle's, whatever the clips would suggest."""
    bundle = tiny_tagger.make_bundle(tmp_path / "runs" / "demo" / "best").parent
    for number in range(24):
        write_audio(tmp_path / "music" / ("rock", "jazz")[number % 2] / f"{number}.wav", 0.2)
    starting.init(tmp_path / "music", tmp_path / "a.toml", like=bundle)
    tables, comments = settings_of(tmp_path / "a.toml")
    settings, tagger = load_config(tmp_path / "a.toml"), read_tagger(bundle)
    assert dataclasses.asdict(settings.features) == tables["features"] == tagger["features"]
    assert dataclasses.asdict(settings.model) == tables["model"] == tagger["model"]
    assert (settings.train.init_from, settings.train.freeze_epochs) == (str(bundle), -1)
    assert f"For fine-tuning {bundle}, a tagger of synthetic:" in comments
    assert "a window lasts 1.0 s, as the bundle's: shorter clips are padded" in comments


def test_like_what_is_no_bundle_or_cannot_hear(tmp_path: Path) -> None:
    write_audio(tmp_path / "music" / "rock" / "1.wav")
    features = dataclasses.replace(tiny_tagger.FEATURES, recipe="unknown")
    deaf = tiny_tagger.make_bundle(tmp_path / "deaf", features=features)
    for like, message in ((tmp_path, "not a trained model"), (deaf, "no audio can be packed")):
        with pytest.raises(ValueError, match=message):
            starting.init(tmp_path / "music", tmp_path / "a.toml", like=like)
    assert not (tmp_path / "a.toml").exists()


def test_no_folder_and_one_whose_files_are_all_unusable(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such folder"):
        starting.init(tmp_path / "none", tmp_path / "out.toml")
    (tmp_path / "m" / "rock").mkdir(parents=True)
    (tmp_path / "m" / "rock" / "a\n.mp3").touch()
    with pytest.raises(ValueError, match="no audio file in it that can be used") as caught:
        starting.init(tmp_path / "m", tmp_path / "out.toml")
    assert "\n" not in str(caught.value)


def test_names_fit_for_make() -> None:
    assert starting.plain_name(Path("/x/My  Music (2)!")) == "my-music-2"
    assert starting.plain_name(Path("/")) == "music"
