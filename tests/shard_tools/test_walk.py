"""Folders with whatever lies in them: found, or left out with a reason; never a hang or a crash."""

import os
import socket
from pathlib import Path

import pytest

from mstag.config import DatasetConfig
from shard_tools.catalogs import load_catalogue
from shard_tools.catalogs.walk import find_files


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rock = tmp_path / "music" / "rock"
    (rock / "album.flac").mkdir(parents=True)
    (rock / "empty.mp3").mkdir()
    for name in (
        "a.mp3",
        "b.M4A",
        "album.flac/c.wav",
        ".hidden.mp3",
        "notes.txt",
        "two\nlines.mp3",
    ):
        (rock / name).touch()
    (rock / os.fsdecode(b"caf\xe9.mp3")).touch()
    (rock / os.fsdecode(b"\xff")).mkdir()
    (rock / os.fsdecode(b"\xff") / "d.mp3").touch()
    os.mkfifo(rock / "fifo.mp3")
    (rock / "dangling.mp3").symlink_to("nowhere.mp3")
    (rock / "itself.mp3").symlink_to("itself.mp3")
    (rock / "link.mp3").symlink_to("a.mp3")
    (rock / "around").symlink_to(rock, target_is_directory=True)
    (rock / "folder.mp3").symlink_to(rock, target_is_directory=True)
    monkeypatch.chdir(rock)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.mp3")
    deep = tmp_path / "music" / "/".join(["d"] * 400)
    deep.mkdir(parents=True)
    (deep / "e.ogg").touch()
    return tmp_path / "music"


def test_whatever_lies_in_a_folder(hostile: Path) -> None:
    found = find_files(hostile)
    deep = "d/" * 400 + "e.ogg"
    assert found.audio == [
        deep,
        *(f"rock/{n}" for n in ("a.mp3", "album.flac/c.wav", "b.M4A", "link.mp3")),
    ]
    assert found.others == ["rock/notes.txt"]
    stray = "path has control characters or is not UTF-8"
    assert {row.path: row.reason for row in found.excluded} == {
        "rock/caf\ufffd.mp3": stray,
        "rock/\ufffd/d.mp3": stray,
        "rock/two\nlines.mp3": stray,
        "rock/empty.mp3": "an empty folder, not an audio file",
        "rock/fifo.mp3": "not a file (a fifo, socket or device)",
        "rock/socket.mp3": "not a file (a fifo, socket or device)",
        "rock/dangling.mp3": "a link that leads to no file",
        "rock/itself.mp3": "a link that cannot be followed (Too many levels of symbolic links)",
        "rock/folder.mp3": "a link to a folder",
    }


def test_the_catalogue_of_such_a_folder(hostile: Path) -> None:
    catalogue = load_catalogue(DatasetConfig(name="own", kind="folders"), hostile)
    assert len(catalogue.clips) == 5
    assert len(catalogue.excluded) == 9
    assert {clip.path: clip.tags for clip in catalogue.clips}["rock/album.flac/c.wav"] == {
        "rock",
        "album.flac",
    }


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path is longer than the system allows; a lack of permission is met in the same place."""
    (tmp_path / "a.mp3").touch()
    monkeypatch.chdir(tmp_path)
    for _ in range(20):
        Path("x" * 250).mkdir()
        os.chdir("x" * 250)
    found = find_files(tmp_path)
    assert found.audio == ["a.mp3"]
    assert [row.reason for row in found.excluded] == ["folder cannot be read (File name too long)"]
