"""Downloads from a real server on loopback that can be told to misbehave."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mstag.data.remote import download

CONTENT = bytes(range(256)) * 4000
DATE = "Wed, 01 Jan 2020 00:00:00 GMT"


class Server(ThreadingHTTPServer):
    """Serves one file, understands ranges, and misbehaves as its queue of moods says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.date = DATE
        self.moods: list[str] = []
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/clip.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        mood = server.moods.pop(0) if server.moods else ""
        wanted = self.headers["Range"]
        server.ranges.append(wanted)
        if mood.isdigit():
            self.send_error(int(mood))
            return
        if mood.startswith(("file:", "ftp:")):
            self.send_response(302)
            self.send_header("Location", mood)
            self.end_headers()
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if mood == "no ranges" or self.headers["If-Range"] != server.date:
            start = 0
        if start >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            start = 0 if mood == "wrong range" else start
            end = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        self.send_header("Last-Modified", server.date)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        body = server.content[start:]
        self.wfile.write(body[: len(body) // 2] if mood == "cut" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server: Server, path: Path, num_tries: int = 3, sha256: str | None = None) -> None:
    download(server.url, path, sha256=sha256, progress=False, num_tries=num_tries, backoff_s=0.001)


def test_download(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "clip.bin"
    fetch(server, path, sha256=hashlib.sha256(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["clip.bin"]
    fetch(server, path, sha256=hashlib.sha256(CONTENT).hexdigest())
    assert len(server.ranges) == 1  # what is whole is not fetched again


def test_a_cut_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.moods = ["cut", "503", "cut"]
    fetch(server, tmp_path / "clip.bin")
    assert (tmp_path / "clip.bin").read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert server.ranges == [None, f"bytes={half}-", f"bytes={half}-", f"bytes={half * 3 // 2}-"]


def test_the_next_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.moods = ["cut"]
    with pytest.raises(OSError, match=r"ended after 512000 of 1024000 bytes, .*run the command"):
        fetch(server, tmp_path / "clip.bin", num_tries=1)
    assert not (tmp_path / "clip.bin").exists()
    fetch(server, tmp_path / "clip.bin", num_tries=1)
    assert (tmp_path / "clip.bin").read_bytes() == CONTENT
    assert server.ranges[1] == "bytes=512000-"


def test_a_file_that_changed_meanwhile_is_not_mixed(server: Server, tmp_path: Path) -> None:
    server.moods = ["cut"]
    with pytest.raises(OSError, match="ended after"):
        fetch(server, tmp_path / "clip.bin", num_tries=1)
    server.content, server.date = b"new" * 300_000, "Thu, 02 Jan 2020 00:00:00 GMT"
    fetch(server, tmp_path / "clip.bin")
    assert (tmp_path / "clip.bin").read_bytes() == server.content


@pytest.mark.parametrize("mood", ["no ranges", "wrong range"])
def test_a_server_that_resumes_badly(server: Server, tmp_path: Path, mood: str) -> None:
    server.moods = ["cut", mood]
    fetch(server, tmp_path / "clip.bin")
    assert (tmp_path / "clip.bin").read_bytes() == CONTENT


def test_a_part_longer_than_the_file(server: Server, tmp_path: Path) -> None:
    server.moods = ["416"]
    (tmp_path / "clip.bin.part").write_bytes(CONTENT * 2)
    fetch(server, tmp_path / "clip.bin")
    assert (tmp_path / "clip.bin").read_bytes() == CONTENT


def test_refusals(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "clip.bin"
    server.moods = ["404", "503", "503", "503"]
    with pytest.raises(OSError, match="answers 404"):
        fetch(server, path)
    assert len(server.ranges) == 1  # there is no use in asking again
    with pytest.raises(OSError, match=r"503 .* 3 times in a row"):
        fetch(server, path)
    with pytest.raises(ValueError, match=r"sha256 is .* thrown away"):
        fetch(server, path, sha256="0" * 64)
    with pytest.raises(ValueError, match="has 1024000 bytes instead of 7"):
        download(server.url, path, num_bytes=7, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_only_the_web_is_reached(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("local")
    with pytest.raises(ValueError, match="only http and https"):
        download(secret.as_uri(), tmp_path / "clip.bin", progress=False)
    server.moods = [secret.as_uri(), "ftp://127.0.0.1:1/secret"]
    with pytest.raises(OSError, match=r"302|redirect"):
        fetch(server, tmp_path / "clip.bin", num_tries=1)
    with pytest.raises(OSError, match="unknown url type: ftp"):
        fetch(server, tmp_path / "clip.bin", num_tries=1)
    assert not (tmp_path / "clip.bin").exists()
