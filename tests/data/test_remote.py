"""Downloads over http from a real server on loopback that can be told to misbehave."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import CONTENT, DATE, Server, serving, sha256

from mstag.data import answers
from mstag.data.remote import (
    BusyError,
    check_scheme,
    download,
    is_remote,
    join,
    num_bytes_arrived,
    num_bytes_at,
    read_bytes,
)
from mstag.data.together import StoppedError, Together

HALF = len(CONTENT) // 2


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def fetch(
    server: Server,
    path: Path,
    num_tries: int = 3,
    sha256: str | None = None,
    num_bytes: int | None = None,
    together: Together | None = None,
) -> None:
    download(
        server.url,
        path,
        num_bytes=num_bytes,
        sha256=sha256,
        progress=False,
        num_tries=num_tries,
        backoff_s=0.001,
        together=together,
    )


class Noting(Together):
    """Notes what it is told, and can stop after so many bytes."""

    def __init__(self, max_bytes: int = 1 << 60) -> None:
        super().__init__("", progress=False)
        self.num_bytes = 0
        self.max_bytes = max_bytes
        self.pauses: list[float] = []

    def moved(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        if self.num_bytes > self.max_bytes:
            self.stop()

    def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.check()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_download(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "clip.bin"
    fetch(server, path, sha256=sha256(CONTENT))
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["clip.bin"]
    fetch(server, path, sha256=sha256(CONTENT))
    assert len(server.ranges) == 1  # what is whole is not fetched again


def test_a_cut_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.moods = ["cut", "503", "cut"]
    fetch(server, tmp_path / "clip.bin")
    assert (tmp_path / "clip.bin").read_bytes() == CONTENT
    assert server.ranges == [
        None,
        f"bytes={HALF}-",
        f"bytes={HALF}-",
        f"bytes={HALF * 3 // 2}-",
    ]


def test_the_next_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.moods = ["cut"]
    with pytest.raises(OSError, match=r"ended after 512000 of 1024000 bytes, .*run the command"):
        fetch(server, tmp_path / "clip.bin", num_tries=1)
    assert names(tmp_path) == ["clip.bin.part", "clip.bin.part.version"]
    fetch(server, tmp_path / "clip.bin", num_tries=1)
    assert (tmp_path / "clip.bin").read_bytes() == CONTENT
    assert server.ranges[1] == "bytes=512000-"
    assert server.if_ranges == [None, DATE]
    assert names(tmp_path) == ["clip.bin"]


@pytest.mark.parametrize("etags", [("", ""), ('"1"', '"2"')])
@pytest.mark.parametrize("mood", ["", "any version"])
def test_a_file_that_changed_meanwhile_is_not_mixed(
    server: Server, tmp_path: Path, etags: tuple[str, str], mood: str
) -> None:
    server.moods, server.etag = ["cut"], etags[0]
    with pytest.raises(OSError, match="ended after"):
        fetch(server, tmp_path / "clip.bin", num_tries=1)
    server.moods, server.etag = [mood], etags[1]
    server.content = b"new" * 300_000
    if not any(etags):
        server.date = "Thu, 02 Jan 2020 00:00:00 GMT"
    fetch(server, tmp_path / "clip.bin")
    assert (tmp_path / "clip.bin").read_bytes() == server.content


@pytest.mark.parametrize(
    ("mood", "then"),
    [
        ("no ranges", []),
        ("wrong range", [None]),
        ("cut, no total", [f"bytes={HALF * 3 // 2}-"]),
    ],
)
def test_a_server_that_resumes_badly(
    server: Server, tmp_path: Path, mood: str, then: list[str | None]
) -> None:
    server.moods = ["cut", mood]
    fetch(server, tmp_path / "clip.bin")
    assert (tmp_path / "clip.bin").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-", *then]


def test_a_server_that_names_no_version(server: Server, tmp_path: Path) -> None:
    server.moods = ["nameless", "nameless"]
    path = tmp_path / "clip.bin"
    path.with_name("clip.bin.part").write_bytes(CONTENT[:1000])
    fetch(server, path)  # nothing says that the bytes belong together
    path.unlink()
    path.with_name("clip.bin.part").write_bytes(CONTENT[:1000])
    fetch(server, path, sha256=sha256(CONTENT))  # here the checksum will
    assert server.ranges == [None, "bytes=1000-"]
    assert path.read_bytes() == CONTENT


def test_a_part_of_another_address_is_not_used(server: Server, tmp_path: Path) -> None:
    server.moods = ["cut"]
    with pytest.raises(OSError, match="ended after"):
        fetch(server, tmp_path / "clip.bin", num_tries=1)
    download(f"{server.base}/other", tmp_path / "clip.bin", progress=False)
    assert server.ranges == [None, None]


def test_a_part_longer_than_the_file(server: Server, tmp_path: Path) -> None:
    server.moods = ["416"]
    (tmp_path / "clip.bin.part").write_bytes(CONTENT * 2)
    fetch(server, tmp_path / "clip.bin")
    assert (tmp_path / "clip.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("num_bytes", [None, len(CONTENT)])
def test_a_part_is_only_trusted_with_its_checksum(
    server: Server, tmp_path: Path, num_bytes: int | None
) -> None:
    (tmp_path / "clip.bin.part").write_bytes(bytes(1000))
    fetch(server, tmp_path / "clip.bin", sha256=sha256(CONTENT), num_bytes=num_bytes)
    assert server.ranges == ["bytes=1000-", None]
    assert (tmp_path / "clip.bin").read_bytes() == CONTENT
    assert names(tmp_path) == ["clip.bin"]


def test_a_whole_part_needs_no_network(server: Server, tmp_path: Path) -> None:
    (tmp_path / "clip.bin.part").write_bytes(CONTENT)
    fetch(server, tmp_path / "clip.bin", sha256=sha256(CONTENT), num_bytes=len(CONTENT))
    assert server.ranges == []
    (tmp_path / "clip.bin").unlink()
    (tmp_path / "clip.bin.part").write_bytes(CONTENT + b"x")
    fetch(server, tmp_path / "clip.bin", sha256=sha256(CONTENT), num_bytes=len(CONTENT))
    assert server.ranges == [None]


def test_a_server_that_stalls(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "TIMEOUT_S", 0.3)
    server.moods = ["stall"]
    fetch(server, tmp_path / "clip.bin")
    assert (tmp_path / "clip.bin").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-"]
    server.moods = ["stall"]
    with pytest.raises(OSError, match="timed out"):
        fetch(server, tmp_path / "other.bin", num_tries=1)


@pytest.mark.parametrize("digest", [None, sha256(CONTENT)])
def test_a_length_that_is_too_short(server: Server, tmp_path: Path, digest: str | None) -> None:
    server.moods = ["short", "short"]
    fetch(server, tmp_path / "clip.bin", sha256=digest, num_bytes=len(CONTENT))
    assert (tmp_path / "clip.bin").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-", f"bytes={HALF * 3 // 2}-"]


def test_a_length_that_is_too_long(server: Server, tmp_path: Path) -> None:
    server.moods = ["long"] * 9
    with pytest.raises(OSError, match=r"times in a row"):
        fetch(server, tmp_path / "clip.bin")
    server.moods = ["long"]
    with pytest.raises(ValueError, match="has 2048000 bytes instead of 1024000"):
        fetch(server, tmp_path / "other.bin", num_bytes=len(CONTENT))
    assert not list(tmp_path.glob("*.bin"))


def test_more_bytes_than_expected_are_never_written(server: Server, tmp_path: Path) -> None:
    server.moods = ["no length"]
    with pytest.raises(ValueError, match=r"at least \d+ bytes instead of 1024000"):
        fetch(server, tmp_path / "clip.bin", num_bytes=len(CONTENT))
    assert names(tmp_path) == []
    assert len(server.ranges) == 1


def test_a_file_that_is_shorter_than_expected_ends(server: Server, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"clip.bin: .*3 times in a row"):
        fetch(server, tmp_path / "clip.bin", num_bytes=len(CONTENT) + 1, sha256=sha256(b"x"))
    assert len(server.ranges) < 9
    assert not (tmp_path / "clip.bin").exists()


def test_a_server_that_always_starts_over_and_cuts_ends(server: Server, tmp_path: Path) -> None:
    server.moods = ["cut"] + ["no ranges", "cut"] * 2  # ends: whole at the second try
    fetch(server, tmp_path / "clip.bin")
    server.ranges.clear()

    class Dice(list[str]):
        def __bool__(self) -> bool:
            server.date = f"Wed, 01 Jan 2020 00:00:{len(server.ranges) % 60:02} GMT"
            server.content = CONTENT[: 1000 if len(server.ranges) % 2 else 2000]
            return True

        def pop(self, _: object = 0) -> str:
            return "cut"

    server.moods = Dice()
    with pytest.raises(OSError, match="3 times in a row"):
        fetch(server, tmp_path / "other.bin")
    assert len(server.ranges) < 9


def test_wrong_bytes_are_fetched_once_more(server: Server, tmp_path: Path) -> None:
    server.moods = ["garbage"]
    fetch(server, tmp_path / "clip.bin", sha256=sha256(CONTENT), num_bytes=len(CONTENT))
    assert (tmp_path / "clip.bin").read_bytes() == CONTENT
    server.moods = ["garbage"] * 9
    with pytest.raises(ValueError, match=r"sha256 is .* instead of .*, twice"):
        fetch(server, tmp_path / "other.bin", sha256=sha256(CONTENT), num_bytes=len(CONTENT))
    assert len(server.ranges) == 4
    assert names(tmp_path) == ["clip.bin"]


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


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x?token=SECRET"
        with pytest.raises(OSError, match=r"/x: .*refused, 2 times in a row") as error:
            download(url, tmp_path / "x", progress=False, num_tries=2, backoff_s=0.001)
    assert "SECRET" not in str(error.value)
    assert names(tmp_path) == []


def test_a_full_disk_is_not_the_servers_fault(server: Server, tmp_path: Path) -> None:
    (tmp_path / "clip.bin.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        fetch(server, tmp_path / "clip.bin")
    assert error.value.errno == errno.ENOSPC
    assert len(server.ranges) == 1


def test_only_the_web_is_reached(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("local")
    with pytest.raises(ValueError, match="only http, https and s3"):
        download(secret.as_uri(), tmp_path / "clip.bin", progress=False)
    server.moods = [secret.as_uri(), "ftp://127.0.0.1:1/secret?token=SECRET"]
    with pytest.raises(OSError, match=r"302|redirect"):
        fetch(server, tmp_path / "clip.bin", num_tries=1)
    with pytest.raises(OSError, match="unknown url type: ftp"):
        fetch(server, tmp_path / "clip.bin", num_tries=9)
    assert len(server.ranges) == 2
    assert not (tmp_path / "clip.bin").exists()


def test_tokens_stay_out_of_messages(server: Server, tmp_path: Path) -> None:
    def told(*moods: str) -> str:
        server.moods = list(moods)
        url = f"{server.url}?sig=SECRET"
        with pytest.raises((OSError, ValueError)) as error:
            download(url, tmp_path / "x", num_bytes=7, progress=False, num_tries=1, backoff_s=0.001)
        return str(error.value)

    assert "answers 403 Forbidden; does it need a (newer) token" in told("403")
    for mood in ("403", "503", "", "file:///x?sig=SECRET", "ftp://h/x?sig=SECRET"):
        message = told(mood)
        assert "SECRET" not in message
        assert message.startswith(f"{server.url}: ")
        assert "\n" not in message
    assert server.paths[-1] == "/clip.bin?sig=SECRET"


def test_read_bytes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.moods = ["503", "cut"]
    assert read_bytes(server.url, backoff_s=0.001) == CONTENT
    assert server.ranges == [None, None, f"bytes={HALF}-"]
    with pytest.raises(ValueError, match=r"clip.bin: it has 1024000 bytes; no more than 1000 "):
        read_bytes(server.url, max_bytes=1000)
    server.moods = ["no length"]
    with pytest.raises(ValueError, match=r"at least \d+ bytes; no more than 1024000 are read"):
        read_bytes(server.url, max_bytes=len(CONTENT))
    server.moods = ["404"]
    with pytest.raises(OSError, match="404"):
        read_bytes(server.url)


def test_the_bytes_of_several_downloads_are_counted(server: Server, tmp_path: Path) -> None:
    noting = Noting()
    server.moods = ["cut", "no ranges", "garbage", ""]
    fetch(server, tmp_path / "a", together=noting)
    assert noting.num_bytes == len(CONTENT)  # what was thrown away is taken off again
    fetch(server, tmp_path / "b", together=noting, sha256=sha256(CONTENT))
    assert noting.num_bytes == 2 * len(CONTENT)


def test_a_stop_keeps_what_has_arrived(server: Server, tmp_path: Path) -> None:
    noting = Noting(max_bytes=HALF)
    with pytest.raises(StoppedError):
        fetch(server, tmp_path / "x", together=noting)
    arrived = num_bytes_arrived(tmp_path / "x")
    assert HALF < arrived < len(CONTENT)
    with pytest.raises(StoppedError):  # one that is told so late touches nothing
        server.moods = ["no ranges"]
        fetch(server, tmp_path / "x", together=noting)
    assert num_bytes_arrived(tmp_path / "x") == arrived
    fetch(server, tmp_path / "x")
    assert server.ranges[-1] == f"bytes={arrived}-"
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert num_bytes_arrived(tmp_path / "x") == len(CONTENT)


def test_a_busy_server_says_how_long_to_wait(server: Server, tmp_path: Path) -> None:
    noting = Noting()
    server.moods = ["429 after 7", "503 after 99999999", "503 after Wed", "429", "500"]
    fetch(server, tmp_path / "x", together=noting, num_tries=9)
    assert noting.pauses == [7, 60, 0.004, 0.008, 0.016]
    server.moods = ["503"] * 3
    with pytest.raises(BusyError, match=r"503 .* 3 times in a row"):
        fetch(server, tmp_path / "y")
    server.moods = ["500"] * 3
    with pytest.raises(OSError, match="500") as error:
        fetch(server, tmp_path / "y")
    assert not isinstance(error.value, BusyError)


def test_joined_bytes_of_two_addresses_have_no_version(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "x"
    server.moods = ["cut"]
    with pytest.raises(OSError, match="ended after"):
        download(f"{server.base}/other", path, progress=False, num_tries=1)
    server.moods, server.content = ["cut"], bytes(len(CONTENT))
    with pytest.raises(OSError, match="ended after"):
        fetch(server, path, sha256=sha256(CONTENT), num_tries=1)
    server.content = CONTENT
    download(f"{server.base}/other", path, progress=False)  # knows no checksum: starts over
    assert server.ranges == [None, f"bytes={HALF}-", None]
    assert path.read_bytes() == CONTENT


def test_asking_for_a_length_only(server: Server) -> None:
    assert num_bytes_at(server.url) == len(CONTENT)
    server.moods = ["no length", "404", "503"]
    assert num_bytes_at(server.url) is None
    for code in ("404", "503"):
        with pytest.raises(OSError, match=f"clip.bin: .*{code}"):
            num_bytes_at(server.url)


def test_threads_do_not_disturb_each_other(server: Server, tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=fetch, args=(server, tmp_path / f"{i}.bin")) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((tmp_path / f"{i}.bin").read_bytes() == CONTENT for i in range(8))


@pytest.mark.parametrize(
    "address",
    ["http://h/p", "HTTPS://h:8000/p/a@b?x=y@z", "s3://bucket/a b/c@d#e?", "https://[::1]/"],
)
def test_addresses_that_are_opened(address: str) -> None:
    assert is_remote(address)
    check_scheme(address)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("pipe:curl http://h/SECRET", "pipe: only http, https and s3"),
        ("pipe://curl SECRET", "pipe: only http, https and s3"),
        ("file:///etc/SECRET", "file: only"),
        ("ftp://user:SECRET@h/x", "ftp: only"),
        ("gs://SECRET/x", "gs: only"),
        ("/SECRET", "address: only"),
        ("http:/h/SECRET", "no whole address"),
        ("http:SEC/x", "no whole address"),
        ("http://", "no whole address"),
        ("http://h:x/SECRET", "no whole address"),
        ("http://h/SECRET x", "no whole address"),
        ("http://h/SECRET\nx", "no whole address"),
        ("https://user:SECRET@h/x", "user name or password"),
        ("https://user:SEC/RET@h/x", "no whole address"),
        ("https://SECRET@h", "user name or password"),
        ("s3://key:SECRET@bucket/x", "user name or password"),
        ("s3:///SECRET", "no whole address"),
        ("s3://bucket/SECRET\x00", "no whole address"),
    ],
)
def test_addresses_that_are_refused(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_scheme(address)
    assert "SEC" not in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        read_bytes(address)


def test_local_paths_are_not_remote() -> None:
    assert not any(map(is_remote, ["shards/demo", "/a/b", "C:\\shards", "a:b", "://x", ""]))
    assert is_remote("gs://bucket/x")  # and check_scheme refuses it


@pytest.mark.parametrize(
    ("address", "joined"),
    [
        ("https://h/p/?token=x/y", "https://h/p/a-000.tar?token=x/y"),
        ("https://h/p", "https://h/p/a-000.tar"),
        ("https://h", "https://h/a-000.tar"),
        ("https://h?t#f", "https://h/a-000.tar?t"),
        ("s3://bucket", "s3://bucket/a-000.tar"),
        ("s3://bucket/p?/", "s3://bucket/p?/a-000.tar"),
    ],
)
def test_join(address: str, joined: str) -> None:
    assert join(address, "a-000.tar") == joined


def test_join_quotes_for_http_only() -> None:
    assert join("https://h/p", "a b?#%.tar") == "https://h/p/a%20b%3F%23%25.tar"
    assert join("s3://b/p", "a b?#%.tar") == "s3://b/p/a b?#%.tar"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a\\b", "a\nb"])
def test_join_takes_plain_names_only(name: str) -> None:
    with pytest.raises(ValueError, match="plain file name"):
        join("https://h/p", name)


@given(st.text())
def test_any_text_is_opened_or_refused_in_one_line(text: str) -> None:
    for address in (text, f"http://{text}", f"s3://{text}"):
        try:
            check_scheme(address)
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert is_remote(address)
