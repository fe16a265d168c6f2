"""What a user names -> the files to tag."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mstag.tagging.find import find_files, find_named, listed


@pytest.fixture
def music(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("m/b.mp3", "m/a/z.FLAC", "m/a/q.m4a", "m/cover.jpg", "m/._b.mp3", "m/.x/c.mp3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def paths(*named: str) -> list[str]:
    found = find_files(named)
    assert all(item.error is None for item in found), found
    return [item.path for item in found]


def test_folders_are_searched_and_files_are_taken_as_they_are(music: Path) -> None:
    (music / "empty").mkdir()
    found = find_files(["./m", "m/cover.jpg", "empty", "none"])
    assert [item.path for item in found] == [
        "./m/a/q.m4a",
        "./m/a/z.FLAC",
        "./m/b.mp3",
        "m/cover.jpg",
        "empty",
        "none",
    ]
    assert [item.inner for item in found[:4]] == ["a/q.m4a", "a/z.FLAC", "b.mp3", "cover.jpg"]
    assert [item.error is None for item in found] == [True] * 4 + [False] * 2
    assert "no audio file in this folder" in str(found[4].error)
    assert "no such file" in str(found[5].error)


def test_patterns_that_no_shell_expanded(music: Path) -> None:
    assert paths("m/*.mp3") == ["m/b.mp3"]
    assert paths("m/**/*.[mF]*") == ["m/a/q.m4a", "m/a/z.FLAC", "m/b.mp3"]
    assert paths("?") == ["m/a/q.m4a", "m/a/z.FLAC", "m/b.mp3"]
    (none,) = find_files(["m/*.wav"])
    assert "none fits the pattern" in str(none.error)


def test_a_file_of_that_very_name_wins_over_the_pattern(music: Path) -> None:
    (music / "m" / "[ab].mp3").touch()
    assert paths("m/[ab].mp3") == ["m/[ab].mp3"]
    (music / "m" / "*").mkdir()
    (music / "m" / "*" / "x.wav").touch()
    assert paths("m/*") == ["m/*/x.wav"]


def test_names_from_a_program_are_no_patterns(music: Path) -> None:
    (found,) = find_named(["m/*.mp3"])
    assert "no such file" in str(found.error)
    assert [item.path for item in find_named(["m/b.mp3", "m/a"])] == [
        "m/b.mp3",
        "m/a/q.m4a",
        "m/a/z.FLAC",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n\n", []),
        (b"a.mp3\nb c.mp3", ["a.mp3", "b c.mp3"]),
        (b"a.mp3\r\nb.mp3\r\n", ["a.mp3", "b.mp3"]),
        (b"a\nb.mp3\0c.mp3\0", ["a\nb.mp3", "c.mp3"]),
        (b"a\r\0", ["a\r"]),
        (b"\xe9.mp3\n", [os.fsdecode(b"\xe9.mp3")]),
    ],
)
def test_lists(content: bytes, expected: list[str]) -> None:
    assert listed(content) == expected


def test_what_is_no_file_is_said(music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (music / "m" / "folder.mp3").mkdir()
    (music / "m" / "album.mp3").mkdir()
    (music / "m" / "album.mp3" / "one.mp3").touch()
    (music / "m" / "dangling.mp3").symlink_to("nowhere")
    (music / "m" / "elsewhere").symlink_to(music / "m" / "a", target_is_directory=True)
    found = {item.path: item.error for item in find_files(["m"])}
    assert "it is a folder" in str(found.pop("m/folder.mp3"))
    assert found == dict.fromkeys(
        ["m/a/q.m4a", "m/a/z.FLAC", "m/album.mp3/one.mp3", "m/b.mp3", "m/dangling.mp3"]
    )
    (dangling,) = find_files(["m/dangling.mp3"])
    assert "a link to what is not there" in str(dangling.error)

    real = os.listdir

    def listdir(folder: str) -> list[str]:
        if folder.endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "listdir", listdir)
    errors = [item for item in find_files(["m"]) if item.path == "m/a"]
    assert [item.error for item in errors] == ["cannot be read: permission denied"]
