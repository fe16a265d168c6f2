"""MagnaTagATune from a server on loopback that holds a small copy of its layout."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from fetch_site import CLIPS, Site, mtt_site, serving_site
from hypothesis import given
from hypothesis import strategies as st

from shard_tools.catalogs import mtt
from shard_tools.fetch import downloads
from shard_tools.fetch.joined import JoinedFile
from shard_tools.fetch.mtt import PARTS, fetch_mtt


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(downloads, "BACKOFF_S", 0.001)
    with serving_site(mtt_site()) as site:
        yield site


def fetch(site: Site, data_dir: Path) -> int:
    return fetch_mtt(data_dir, [site.url], progress=False)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".csv" and path.name != ".fetch.lock"
    }


def test_fetch_unpacks_the_clips_and_nothing_else(site: Site, tmp_path: Path) -> None:
    data = tmp_path / "in" / "data"
    assert fetch(site, data) == 0
    assert files(data) == CLIPS
    assert not list(tmp_path.glob("**/evil*"))
    assert [clip.path for clip in mtt.read(data).clips] == list(CLIPS)
    num_requests = len(site.requests)
    assert num_requests == 8  # two tables, three parts, and how long the parts are
    assert fetch(site, data) == 0
    assert len(site.requests) == num_requests  # nothing to do the second time


def test_a_clip_that_is_missing_comes_back(site: Site, tmp_path: Path) -> None:
    fetch(site, tmp_path)
    (tmp_path / next(iter(CLIPS))).unlink()
    assert fetch(site, tmp_path) == 0
    assert files(tmp_path) == CLIPS


def test_a_damaged_archive_leaves_no_damaged_clip(site: Site, tmp_path: Path) -> None:
    part = bytearray(site.files[PARTS[0]])
    part[60] ^= 0xFF
    site.files[PARTS[0]] = bytes(part)
    with pytest.raises(ValueError, match="no whole zip file"):
        fetch(site, tmp_path)
    assert not [name for name in files(tmp_path) if name.endswith(".mp3")]


def test_an_error_page_does_not_stay_as_the_table(site: Site, tmp_path: Path) -> None:
    table = site.files["annotations_final.csv"]
    site.files["annotations_final.csv"] = b"<html>busy</html>"
    with pytest.raises(ValueError, match="not MagnaTagATune's table"):
        fetch(site, tmp_path)
    site.files["annotations_final.csv"] = table
    assert fetch(site, tmp_path) == 0


def test_five_cuts_of_each_part(site: Site, tmp_path: Path) -> None:
    site.cuts = [10_000, 20_000, 30_000, 40_000, 50_000]
    assert fetch(site, tmp_path) == 0
    assert files(tmp_path) == CLIPS
    for part in PARTS:
        starts = [start for path, start in site.requests if path == part]
        assert starts == [0, 0, *site.cuts]  # the first asked for the length only


def test_the_server_goes_away_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "BACKOFF_S", 0.001)
    grown = [tmp_path / f"{part}.part" for part in PARTS]

    def is_there(*_: object) -> bool:
        return not any(path.is_file() and path.stat().st_size >= 30_000 for path in grown)

    with serving_site(mtt_site()) as first:
        first.cuts = [30_000]
        first.verify_request = is_there  # type: ignore[method-assign]
        with pytest.raises(OSError, match=r"mp3.zip.00\d: .*what has arrived .* is kept"):
            fetch(first, tmp_path)
    with serving_site(mtt_site(), first.server_address[1]) as second:
        assert second.url == first.url
        assert fetch(second, tmp_path) == 0
        starts = {start for path, start in second.requests if path in PARTS}
    assert files(tmp_path) == CLIPS
    assert 30_000 in starts


def test_unpacking_goes_on_without_the_server(site: Site, tmp_path: Path) -> None:
    content = site.files[PARTS[1]]
    middle = len(content) // 2
    site.files[PARTS[1]] = content[:middle] + b"?" + content[middle + 1 :]
    with pytest.raises(ValueError, match="no whole zip file"):
        fetch(site, tmp_path)
    leftover = tmp_path / "7" / ".x.mp3.abcdefgh.tmp"  # as a killed process leaves it
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_bytes(b"half")
    (tmp_path / PARTS[1]).write_bytes(content)
    num_requests = len(site.requests)
    assert fetch(site, tmp_path) == 0
    assert files(tmp_path) == CLIPS
    assert len(site.requests) == num_requests


def test_clips_that_the_archive_lacks_are_counted(site: Site, tmp_path: Path) -> None:
    site.files["annotations_final.csv"] += b'"9"\t"1"\t"3/a-b-01-c-0-29.mp3"\n'
    assert fetch(site, tmp_path) == 1


def test_no_room(site: Site, tmp_path: Path) -> None:
    site.claims[PARTS[2]] = 10**18
    with pytest.raises(ValueError, match=r"2,000,000,000\.\d GB are needed .* GB are free, .*--to"):
        fetch(site, tmp_path)
    assert not files(tmp_path)


@given(
    st.lists(st.binary(max_size=20), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 90), st.integers(-1, 90)), max_size=8),
)
def test_joined_files_read_like_one(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], reads: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    paths = [folder / str(number) for number in range(len(parts))]
    for path, content in zip(paths, parts, strict=True):
        path.write_bytes(content)
    one = io.BytesIO(b"".join(parts))
    with JoinedFile(paths) as joined:
        for position, size in reads:
            assert joined.seek(position) == one.seek(position)
            assert joined.read(size) == one.read(size)
            assert joined.tell() == one.tell()
        assert joined.seek(0, io.SEEK_END) == one.seek(0, io.SEEK_END)
