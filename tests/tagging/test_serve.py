"""The page, over real loopback."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator
from html import escape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tagger import TAGS, make_bundle, make_wav

from mstag.tagging.serve import TagServer, uploaded_file
from mstag.tagging.tagger import Tagger

FORM = "multipart/form-data; boundary=xyz"
MAX_BYTES = 200_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TagServer]:
    tagger = Tagger.load(make_bundle(tmp_path_factory.mktemp("bundle")), "cpu")
    with TagServer(tagger, 0, MAX_BYTES) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def form(name: str, content: bytes) -> bytes:
    head = f'Content-Disposition: form-data; name="audio"; filename="{name}"'
    return b"--xyz\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n--xyz--\r\n"


def ask(
    server: TagServer,
    method: str = "GET",
    path: str = "/",
    body: bytes | None = None,
    **headers: str,
) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, named)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    assert "default-src 'none'" in str(answer.getheader("Content-Security-Policy"))
    return answer.status, text


def test_an_upload_gets_its_tags_as_bars(server: TagServer, tmp_path: Path) -> None:
    path = make_wav(tmp_path / "a.wav", 2)
    status, text = ask(server, "POST", body=form("<b>&.wav", path.read_bytes()), Content_Type=FORM)
    assert status == 200
    shown = re.findall(r'<meter value="([\d.]+)">', text)
    assert [float(value) for value in shown] == pytest.approx(
        [score for _, score in server.tagger.tag(path)], abs=1e-4
    )
    assert "&lt;b&gt;&amp;.wav" in text
    assert "<b>&" not in text
    for tag in TAGS:
        assert escape(tag) in text


def test_the_page_has_a_form_and_nothing_else_is_there(server: TagServer) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    status, text = ask(server)
    assert status == 200
    assert 'type="file"' in text
    assert ask(server, path="/etc/passwd")[0] == 404


@pytest.mark.parametrize(
    ("body", "content_type", "status", "why"),
    [
        (form("a.mp3", b"not music"), FORM, 400, "cannot be decoded"),
        (form("a.mp3", b""), FORM, 400, "empty"),
        (form("", b""), FORM, 400, "no file was chosen"),
        (b"", FORM, 400, "no file was chosen"),
        (b"x", "text/plain", 400, "no file was chosen"),
        (bytes(100 * MAX_BYTES), FORM, 413, "files above"),
    ],
)
def test_what_cannot_be_tagged_is_said(
    server: TagServer, body: bytes, content_type: str, status: int, why: str
) -> None:
    found, text = ask(server, "POST", body=body, Content_Type=content_type)
    assert found == status
    assert why in text


@pytest.mark.parametrize("length", ["", "-1", "9" * 400])
def test_a_length_that_is_none_is_refused(server: TagServer, length: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest("POST", "/")
    connection.putheader("Content-Length", length)
    connection.endheaders()
    assert connection.getresponse().status == 411
    connection.close()


def test_a_port_that_is_taken_is_said(server: TagServer) -> None:
    with pytest.raises(ValueError, match="name another with --port"):
        TagServer(server.tagger, server.server_port)


def test_a_foreign_page_cannot_reach_it(server: TagServer) -> None:
    assert ask(server, Host="evil.example:80")[0] == 403
    assert ask(server, "POST", body=b"", Host="evil.example")[0] == 403
    assert ask(server, Host=f"localhost:{server.server_port}")[0] == 200


@given(st.binary(max_size=200))
def test_uploads_arrive_byte_by_byte(content: bytes) -> None:
    if b"\r\n--xyz" not in content:
        assert uploaded_file(FORM, form("a b.mp3", content)) == ("a b.mp3", content)


def test_line_ends_in_an_upload_stay_as_they_are() -> None:
    content = bytes(range(256)) + b"\r\n\r\n\n\r\r\n"
    assert uploaded_file(FORM, form("a", content)) == ("a", content)
