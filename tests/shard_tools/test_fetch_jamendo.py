"""MTG-Jamendo from a server on loopback that holds a small copy of its layout."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fetch_site import TRACKS, Site, jamendo_site, serving_site, sha256, tar_of

from shard_tools.catalogs import mtg_jamendo
from shard_tools.fetch import downloads
from shard_tools.fetch.jamendo import fetch_jamendo, unpack

TAR = "raw_30s/audio-low/raw_30s_audio-low-01.tar"
TARS = sorted(name for name in jamendo_site() if name.endswith(".tar"))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(downloads, "BACKOFF_S", 0.001)
    with serving_site(jamendo_site()) as site:
        yield site


def fetch(site: Site, data_dir: Path, subset: str = "top50tags", full: bool = False) -> int:
    return fetch_jamendo(data_dir, [site.url], subset=subset, full=full, progress=False)


def audio(data_dir: Path) -> dict[str, bytes]:
    folder = data_dir / "audio"
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_whole_fetch(site: Site, tmp_path: Path) -> None:
    assert fetch(site, tmp_path) == 0
    assert audio(tmp_path) == TRACKS  # and no tar, no notes.txt
    for name, content in site.files.items():
        if name.startswith("data/"):
            assert (tmp_path / name).read_bytes() == content
    assert all(site.count(tar) == 2 for tar in TARS)  # the first asks for the length
    num_requests = len(site.requests)
    assert fetch(site, tmp_path) == 0
    assert len(site.requests) == num_requests


def test_every_clip_of_the_tables_is_there(site: Site, tmp_path: Path) -> None:
    fetch(site, tmp_path)
    rows = mtg_jamendo.read(tmp_path, "top50tags", 3)
    assert len(rows.clips) == len(TRACKS)
    assert {clip.split for clip in rows.clips} == {"train", "valid", "test"}
    found = {clip.path.removeprefix("audio/"): tmp_path / clip.path for clip in rows.clips}
    assert {name: path.read_bytes() for name, path in found.items()} == TRACKS


def test_a_server_that_says_no_length(site: Site, tmp_path: Path) -> None:
    site.says_length = False
    assert fetch(site, tmp_path) == 0
    assert audio(tmp_path) == TRACKS
    assert sum(site.count(tar) for tar in TARS) < 2 * len(TARS)  # not asked for each file


@pytest.mark.parametrize(
    ("subset", "stem", "tracks"),
    [("moodtheme", "_moodtheme", "autotagging_moodtheme"), ("all", "", "raw_30s")],
)
def test_subsets_in_full_quality(tmp_path: Path, subset: str, stem: str, tracks: str) -> None:
    full = {path.replace(".low", ""): content for path, content in TRACKS.items()}
    with serving_site(jamendo_site(full, stem, tracks)) as site:
        assert fetch(site, tmp_path, subset, full=True) == 0
    assert audio(tmp_path) == full
    assert (tmp_path / f"data/autotagging{stem}.tsv").is_file()


def test_both_qualities_lie_side_by_side(site: Site, tmp_path: Path) -> None:
    full = {path.replace(".low", ""): content[:99] for path, content in TRACKS.items()}
    fetch(site, tmp_path)
    site.files |= jamendo_site(full)
    assert fetch(site, tmp_path, full=True) == 0
    assert audio(tmp_path) == TRACKS | full


def test_only_what_is_missing_is_fetched(site: Site, tmp_path: Path) -> None:
    fetch(site, tmp_path)
    (tmp_path / "audio/01/301.low.mp3").unlink()
    (tmp_path / "audio/01/.301.low.mp3.abcdefgh.tmp").write_bytes(b"half")  # of a killed call
    kept = (tmp_path / "audio/01/401.low.mp3").stat()
    done = tmp_path / "audio" / Path(TARS[0]).name  # as a call leaves it that is killed late
    done.write_bytes(site.files[TARS[0]])
    site.requests.clear()
    assert fetch(site, tmp_path) == 0
    assert {path for path, _ in site.requests} == {TAR}
    assert audio(tmp_path) == TRACKS
    assert (tmp_path / "audio/01/401.low.mp3").stat().st_ino == kept.st_ino  # not written again


def test_five_cuts_of_each_tar(site: Site, tmp_path: Path) -> None:
    site.cuts = [5_000, 10_000, 15_000, 20_000, 25_000]
    assert fetch(site, tmp_path) == 0
    assert audio(tmp_path) == TRACKS
    for tar in TARS:
        whole = len(site.files[tar])
        starts = [start for path, start in site.requests if path == tar]
        assert starts == [0, 0, *(cut for cut in site.cuts if cut < whole)]


def test_files_come_in_parallel(site: Site, tmp_path: Path) -> None:
    site.block_s = 0.02
    fetch(site, tmp_path)
    assert site.most > 1


@pytest.mark.parametrize("num_at_once", [1, 2])
def test_a_server_that_takes_few_at_a_time(site: Site, tmp_path: Path, num_at_once: int) -> None:
    site.num_at_once, site.block_s = num_at_once, 0.01
    assert fetch(site, tmp_path) == 0
    assert audio(tmp_path) == TRACKS


def test_a_tar_with_a_wrong_checksum(site: Site, tmp_path: Path) -> None:
    good = site.files[TAR]
    site.files[TAR] = good[:700] + b"?" + good[701:]
    with pytest.raises(ValueError, match=r"audio-low-01.tar: its sha256 is .* twice"):
        fetch(site, tmp_path)
    assert not any(path.startswith("01") for path in audio(tmp_path))
    site.files[TAR] = good
    assert fetch(site, tmp_path) == 0
    assert audio(tmp_path) == TRACKS


def test_the_next_mirror_is_tried(site: Site, tmp_path: Path) -> None:
    tables = {name: site.files.pop(name) for name in list(site.files) if name.startswith("data/")}
    damaged = {TAR: site.files[TAR][:-1] + b"?"}
    with serving_site(tables | damaged) as other:
        assert fetch_jamendo(tmp_path, [other.url, site.url], progress=False) == 0
    assert audio(tmp_path) == TRACKS


def test_no_mirror_has_it(site: Site, tmp_path: Path) -> None:
    del site.files[TAR]
    with serving_site({}) as other:
        message = rf"{TAR}: no mirror gives it: http\S+ the server answers 404 .*; http\S+ the serv"
        with pytest.raises(OSError, match=message) as error:
            fetch_jamendo(tmp_path, [other.url, site.url], progress=False)
        assert other.url in str(error.value)
        assert site.url in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data/autotagging_top50tags.tsv", b"<html>busy</html>", "not a table"),
        ("data/splits/split-4/autotagging_top50tags-test.tsv", b"", "not a table"),
        ("data/download/raw_30s_audio-low_sha256_tars.txt", b"<html>", "not a list"),
        ("data/download/raw_30s_audio-low_sha256_tracks.txt", b"", "not a list"),
        (
            "data/download/raw_30s_audio-low_sha256_tracks.txt",
            jamendo_site()["data/download/raw_30s_audio-low_sha256_tracks.txt"]
            + f"{sha256(b'x')} ../../evil.mp3\n".encode(),
            "not a list",
        ),
        (
            "data/download/raw_30s_audio-low_sha256_tracks.txt",
            f"{sha256(b'x')} 55/55.low.mp3\n".encode(),
            "no raw_30s_audio-low-55.tar: they are of two versions",
        ),
    ],
    ids=["page", "empty table", "page for tars", "empty list", "evil line", "two versions"],
)
def test_tables_that_are_none(
    site: Site, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    good = site.files[name]
    site.files[name] = content
    with pytest.raises(ValueError, match=message):
        fetch(site, tmp_path)
    if "two versions" in message:
        (tmp_path / name).unlink()
    site.files[name] = good
    assert fetch(site, tmp_path) == 0


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


GOOD, SECOND = "01/301.low.mp3", "01/401.low.mp3"


@pytest.mark.parametrize(
    "hostile",
    [
        member(GOOD, tarfile.SYMTYPE, "/etc/passwd"),
        member(GOOD, tarfile.LNKTYPE, SECOND),
        member(GOOD, tarfile.CHRTYPE),
        member(GOOD, tarfile.FIFOTYPE),
        member(GOOD, tarfile.GNUTYPE_SPARSE),
        member("01", tarfile.SYMTYPE, "/tmp"),
        member("/01/301.low.mp3", tarfile.REGTYPE),
        member("../01/301.low.mp3", tarfile.REGTYPE),
        member("01/../../evil", tarfile.DIRTYPE),
        member("..\\evil", tarfile.REGTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type!r}",
)
def test_hostile_members_end_the_unpacking(tmp_path: Path, hostile: tarfile.TarInfo) -> None:
    tar = tmp_path / "in" / "x.tar"
    tar.parent.mkdir()
    tar.write_bytes(tar_of({SECOND: b"second", "hostile": hostile, GOOD: b"good"}))
    sums = {GOOD: sha256(b"good"), SECOND: sha256(b"second")}
    with pytest.raises(ValueError, match=r"x.tar: its member .* (leads out|is a link)|not a whole"):
        unpack(tar, tmp_path / "in", sums)
    assert audio_files(tmp_path) == ["in/01/401.low.mp3", "in/x.tar"]


def audio_files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )


def test_only_listed_names_land(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    other = dict.fromkeys(("02/301.low.mp3", "01/301.mp3", "01/x/301.low.mp3", "a"), b"x")
    tar.write_bytes(tar_of({f"./{GOOD}": b"good", **other}))
    unpack(tar, tmp_path, {GOOD: sha256(b"good")})
    assert audio_files(tmp_path) == [GOOD, "x.tar"]


def test_a_track_with_a_wrong_checksum_does_not_land(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    tar.write_bytes(tar_of({GOOD: b"good", SECOND: b"bad"}))
    with pytest.raises(ValueError, match=rf"sha256 of {SECOND} is .* not the published one"):
        unpack(tar, tmp_path, {GOOD: sha256(b"good"), SECOND: sha256(b"good")})
    assert audio_files(tmp_path) == [GOOD, "x.tar"]


@pytest.mark.parametrize("num_bytes", [0, 100, 600, 1030])
def test_a_tar_that_is_cut_short(tmp_path: Path, num_bytes: int) -> None:
    tar = tmp_path / "x.tar"
    tar.write_bytes(tar_of({GOOD: b"good" * 300, SECOND: b"second"})[:num_bytes])
    with pytest.raises(ValueError, match="not a whole tar"):
        unpack(tar, tmp_path, {GOOD: sha256(b"good" * 300)})
    assert audio_files(tmp_path) == ["x.tar"]


def test_no_room(site: Site, tmp_path: Path) -> None:
    site.claims[TAR] = 10**18
    with pytest.raises(ValueError, match=r" GB are needed .* nothing was begun"):
        fetch(site, tmp_path)
    assert audio(tmp_path) == {}


def test_a_full_disk(site: Site, tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / f"{Path(TAR).name}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"{tmp_path}: the disk is full; .* make room"):
        fetch_jamendo(tmp_path, [site.url] * 2, progress=False)  # no mirror can help
    assert fetch(site, tmp_path) == 0
    assert audio(tmp_path) == TRACKS
