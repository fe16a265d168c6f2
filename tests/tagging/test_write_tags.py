"""Tags inside files: read by another program's eyes, and nothing else changed."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import hostile_audio
import mutagen
import numpy as np
import pytest
from hostile_audio import HAS_AV, encoded, mp3, noise, tone
from mutagen import id3

from mstag.data.audio import decode
from mstag.tagging import write_tags as room
from mstag.tagging.results import Change
from mstag.tagging.write_tags import require_mutagen, write_tags

TAGS = [("guitar", 0.91234), ("no vocals", 0.5)]
GENRES = ("guitar", "no vocals")
SCORES = ("guitar=0.912; no vocals=0.500",)
MODEL = "demo 3e7b89c6846b"

KINDS: dict[str, Callable[[], bytes]] = {
    "a.mp3": lambda: mp3(tone()),
    "b.mp3": lambda: encoded(tone(), "MP3"),
    "a.flac": lambda: encoded(tone(), "FLAC"),
    "a.ogg": lambda: encoded(tone(), "OGG", subtype="VORBIS"),
    "a.opus": lambda: encoded(tone(rate_hz=48_000), "OGG", 48_000, subtype="OPUS"),
    "a.wav": lambda: encoded(tone()),
    "a.aiff": lambda: encoded(tone(), "AIFF"),
}
if HAS_AV:
    KINDS["a.m4a"] = lambda: hostile_audio.m4a(tone(rate_hz=44_100))


def write(path: Path, tags: list[tuple[str, float]] = TAGS, **how: bool) -> tuple[Change, ...]:
    return write_tags(
        path,
        tags,
        model=MODEL,
        overwrite=how.get("overwrite", False),
        dry_run=how.get("dry_run", False),
    )


def inside(path: Path) -> dict[str, tuple[str, ...]]:
    """The three fields, by their names in each format."""
    tags = mutagen.File(path).tags or {}
    ours = "MSTAG", "MSTAG_MODEL"
    if path.suffix == ".m4a":
        names = ["\xa9gen", *(f"----:com.apple.iTunes:{name}" for name in ours)]
    elif path.suffix in (".mp3", ".wav", ".aiff"):
        names = ["TCON", *(f"TXXX:{name}" for name in ours)]
    else:
        names = ["genre", *ours]
    found = [tags.get(name) or () for name in names]
    return {
        field: tuple(v.decode() if isinstance(v, bytes) else str(v) for v in values)
        for field, values in zip(("GENRE", *ours), found, strict=True)
    }


def make(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(KINDS[name]())
    return path


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_written_once_and_sounds_the_same(tmp_path: Path, name: str) -> None:
    path = make(tmp_path, name)
    before, rate_hz = decode(path)
    content = path.read_bytes()
    expected = (
        Change("GENRE", (), GENRES),
        Change("MSTAG", (), SCORES),
        Change("MSTAG_MODEL", (), (MODEL,)),
    )
    assert write(path, dry_run=True) == expected
    assert path.read_bytes() == content
    assert write(path) == expected
    assert inside(path) == {"GENRE": GENRES, "MSTAG": SCORES, "MSTAG_MODEL": (MODEL,)}
    after, same_rate_hz = decode(path)
    assert rate_hz == same_rate_hz and np.array_equal(before, after)
    written = path.stat()
    assert write(path) == (), "a second time there is nothing to do"
    assert path.stat() == written
    assert [p.name for p in tmp_path.iterdir()] == [name], "nothing is left behind"

    # What mstag wrote, it may write anew, and take away.
    assert [c.field for c in write(path, [("a=b; c", 0.75)])] == ["GENRE", "MSTAG"]
    assert [c.field for c in write(path, [("slow", 1.0)])] == ["GENRE", "MSTAG"]
    assert inside(path)["GENRE"] == ("slow",)
    write(path, [])
    assert inside(path) == {"GENRE": (), "MSTAG": (), "MSTAG_MODEL": (MODEL,)}


@pytest.mark.parametrize("name", KINDS)
def test_what_a_person_wrote_stays_unless_told(tmp_path: Path, name: str) -> None:
    path = make(tmp_path, name)
    audio = mutagen.File(path)
    if audio.tags is None:
        audio.add_tags()
    if isinstance(audio.tags, id3.ID3):
        audio.tags.add(id3.TCON(encoding=3, text=["Jazz", "Bebop"]))
        audio.tags.add(id3.TIT2(encoding=3, text=["So\u00e9 Title"]))
    elif name.endswith("m4a"):
        audio.tags["\xa9gen"] = ["Jazz", "Bebop"]
        audio.tags["\xa9nam"] = ["So\u00e9 Title"]
    else:
        audio.tags["genre"] = ["Jazz", "Bebop"]
        audio.tags["title"] = ["So\u00e9 Title"]
    audio.save()

    first = write(path)
    assert first[0] == Change("GENRE", ("Jazz", "Bebop"), ("Jazz", "Bebop"), kept=True)
    assert inside(path) == {"GENRE": ("Jazz", "Bebop"), "MSTAG": SCORES, "MSTAG_MODEL": (MODEL,)}
    written = path.stat()
    assert write(path) == first[:1], "said again, and nothing is written"
    write(path, [], dry_run=True)
    assert path.stat() == written
    assert write(path, overwrite=True) == (Change("GENRE", ("Jazz", "Bebop"), GENRES),)
    assert inside(path)["GENRE"] == GENRES
    assert "So\u00e9 Title" in str(mutagen.File(path).tags.values())


def test_a_persons_genre_outlives_a_tagger_that_finds_none(tmp_path: Path) -> None:
    path = make(tmp_path, "a.flac")
    audio = mutagen.File(path)
    audio["genre"] = ["Jazz"]
    audio.save()
    write(path, [], overwrite=True)
    assert inside(path) == {"GENRE": ("Jazz",), "MSTAG": (), "MSTAG_MODEL": (MODEL,)}


@pytest.mark.parametrize("version", [2, 3])
def test_old_id3_keeps_its_version_and_its_frames(tmp_path: Path, version: int) -> None:
    path = make(tmp_path, "a.mp3")
    if version == 2:
        frame = b"TT2\0\0\7\0Title\0"
        path.write_bytes(b"ID3\2\0\0\0\0\0" + bytes([len(frame)]) + frame + path.read_bytes())
    else:
        tags = id3.ID3()
        tags.add(id3.TIT2(encoding=1, text=["Title"]))
        tags.add(id3.TYER(encoding=0, text=["1999"]))
        tags.add(id3.TPE1(encoding=1, text=["A/B"]))
        tags.save(path, v2_version=3)
    write(path)
    raw = id3.ID3(path, translate=False)
    assert raw.version == (2, 3, 0)
    assert raw["TCON"].text == ["guitar/no vocals"]
    assert raw["TXXX:MSTAG"].text == list(SCORES)
    assert raw["TIT2"].text == ["Title"]
    if version == 3:
        assert (raw["TYER"].text, raw["TPE1"].text) == (["1999"], ["A/B"])
    assert write(path) == ()
    assert [change.field for change in write(path, [("slow", 0.75)])] == ["GENRE", "MSTAG"]


def test_a_genre_that_is_a_number_is_not_read_as_another(tmp_path: Path) -> None:
    path = make(tmp_path, "a.mp3")
    write(path, [("80", 0.5), ("rock", 0.4)])
    assert [genre.strip() for genre in mutagen.File(path).tags["TCON"].genres] == ["80", "rock"]
    assert write(path, [("80", 0.5), ("rock", 0.4)]) == ()


def test_permissions_links_and_times(tmp_path: Path) -> None:
    path = make(tmp_path, "a.flac")
    path.chmod(0o640)
    os.utime(path, (1, 1))
    link = tmp_path / "link.flac"
    link.symlink_to("a.flac")
    write(link)
    assert link.is_symlink()
    assert inside(path)["GENRE"] == GENRES
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_mtime > 1


def test_a_write_that_fails_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path, "a.mp3")
    content = path.read_bytes()
    other = tmp_path / "other.wav"
    other.write_bytes(encoded(noise()))
    real = room._require_same_sound
    monkeypatch.setattr(room, "_require_same_sound", lambda one, copy: real(other, copy))
    with pytest.raises(ValueError, match="sounds different"):
        write(path)
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        write(path)
    assert path.read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp3", "other.wav"]


def test_what_cannot_hold_tags_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.au").write_bytes(encoded(tone(), "AU"))
    (tmp_path / "a.mp3").write_bytes(b"fLaC" + bytes(100))
    for name, why in (("a.au", "--sidecar suits any kind"), ("a.mp3", "cannot be")):
        with pytest.raises(ValueError, match=why):
            write(tmp_path / name)


def test_without_mutagen_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_mutagen()
    monkeypatch.setitem(sys.modules, "mutagen", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[write-tags\]'"):
        require_mutagen()
