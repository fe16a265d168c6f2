"""MagnaTagATune from a server on loopback that holds a small copy of its layout."""

import functools
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_tools.fetch import MTT_PARTS, JoinedFile, fetch_mtt

CLIPS = {
    "0/joram-moments-08-solipsism-59-88.mp3": bytes(range(256)) * 40,
    "f/yongen-moonrise-01-moonrise-0-29.mp3": b"moonrise" * 999,
}
EVIL = {"../evil.mp3": b"x", "/evil.mp3": b"x", "0/../../evil.mp3": b"x", "readme.txt": b"x"}


class QuietHandler(SimpleHTTPRequestHandler):
    requests: list[str]

    def log_message(self, *_: object) -> None:
        self.requests.append(self.path)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """(address, folder that is served, log of requests)."""
    folder = tmp_path / "site"
    folder.mkdir()
    rows = "".join(f'"{n}"\t"1"\t"{path}"\n' for n, path in enumerate(CLIPS))
    (folder / "annotations_final.csv").write_text(f'"clip_id"\t"piano"\t"mp3_path"\n{rows}')
    (folder / "clip_info_final.csv").write_text('"clip_id"\t"title"\n')
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (CLIPS | EVIL).items():
            archive.writestr(name, content)
    content = packed.getvalue()
    third = len(content) // 3
    for number, name in enumerate(MTT_PARTS):
        end = None if number == 2 else (number + 1) * third
        (folder / name).write_bytes(content[number * third : end])
    requests: list[str] = []
    handler = type("LoggedHandler", (QuietHandler,), {"requests": requests})
    serve = functools.partial(handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", folder, requests
        server.shutdown()
        thread.join()


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".csv"
    }


def test_fetch_unpacks_the_clips_and_nothing_else(
    site: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    url, _, requests = site
    data = tmp_path / "in" / "data"
    assert fetch_mtt(data, url, progress=False) == 0
    assert files(data) == CLIPS
    assert not list(tmp_path.glob("**/evil*"))
    assert len(requests) == 5
    assert fetch_mtt(data, url, progress=False) == 0
    assert len(requests) == 5  # nothing to do the second time


def test_a_clip_that_is_missing_comes_back(
    site: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    url, _, _ = site
    fetch_mtt(tmp_path / "data", url, progress=False)
    (tmp_path / "data" / next(iter(CLIPS))).unlink()
    assert fetch_mtt(tmp_path / "data", url, progress=False) == 0
    assert files(tmp_path / "data") == CLIPS


def test_a_damaged_archive_leaves_no_damaged_clip(
    site: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    url, folder, _ = site
    part = bytearray((folder / MTT_PARTS[0]).read_bytes())
    part[60] ^= 0xFF
    (folder / MTT_PARTS[0]).write_bytes(part)
    with pytest.raises(ValueError, match="no whole zip file"):
        fetch_mtt(tmp_path / "data", url, progress=False)
    assert not [name for name in files(tmp_path / "data") if name.endswith(".mp3")]


def test_an_error_page_does_not_stay_as_the_table(
    site: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    url, folder, _ = site
    table = (folder / "annotations_final.csv").read_bytes()
    (folder / "annotations_final.csv").write_text("<html>busy</html>")
    with pytest.raises(ValueError, match="not MagnaTagATune's table"):
        fetch_mtt(tmp_path / "data", url, progress=False)
    (folder / "annotations_final.csv").write_bytes(table)
    assert fetch_mtt(tmp_path / "data", url, progress=False) == 0


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
