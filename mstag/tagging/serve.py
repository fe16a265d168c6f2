"""A page on this machine alone: upload a piece, see its tags. Nothing is kept."""

from __future__ import annotations

import sys
import threading
from email.message import Message
from email.parser import BytesParser
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from mstag.show import page

if TYPE_CHECKING:
    from mstag.tagging.tagger import Tagger

MAX_BYTES = 100 * 2**20
"""Largest upload: an hour of mp3, or ten minutes of WAV at CD quality."""
TOP, TIMEOUT_S = 15, 30.0
STYLE = page.STYLE + "table, meter { width: 100%; } th { font-weight: normal; }"
FORM = """<form method="post" enctype="multipart/form-data">
<label>A piece of music <input type="file" name="audio" accept="audio/*" required></label>
<button>Tag it</button></form>"""


class TagServer(ThreadingHTTPServer):
    """Serves one tagger on the loopback interface; port 0 takes any that is free.

    A port that cannot be had is a ValueError.
    """

    daemon_threads = True

    def __init__(self, tagger: Tagger, port: int, max_bytes: int = MAX_BYTES) -> None:
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise ValueError(
                f"port {port} cannot be had ({error.strerror}): name another with --port, 0 for any"
            ) from None
        self.tagger = tagger
        self.max_bytes = max_bytes
        self.one_at_a_time = threading.Lock()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that left is no error; a defect keeps its traceback."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def uploaded_file(content_type: str, body: bytes) -> tuple[str, bytes]:
    """The name and the content of the first file of a form (multipart/form-data, RFC 7578).

    Raises:
        ValueError: there is none in it.
    """
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    if header.get_content_type() == "multipart/form-data" and isinstance(boundary, str):
        # The library's own parser reads line by line, which for audio takes seconds.
        for part in (b"\r\n" + body).split(b"\r\n--" + boundary.encode())[1:]:
            head, _, content = part.partition(b"\r\n\r\n")
            name = BytesParser().parsebytes(head.lstrip()).get_filename()
            if name:
                return name, content
    raise ValueError("no file was chosen")


def html(result: str = "") -> bytes:
    """The page; ``result`` is HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>mstag</title><style>{STYLE}</style></head>\n"
        f"<body><h1>Tag a piece of music</h1>\n{FORM}\n{result}</body></html>\n"
    ).encode(errors="replace")


def bars(name: str, tags: list[tuple[str, float]]) -> str:
    """The strongest tags as bars."""
    rows = "".join(
        f'<tr><th scope="row">{escape(tag)}</th><td><meter value="{score:.4f}">{score:.2f}</meter>'
        f"</td><td>{score:.3f}</td></tr>\n"
        for tag, score in tags[:TOP]
    )
    return f"<h2>{escape(name)}</h2>\n<table>{rows}</table>"


class _Handler(BaseHTTPRequestHandler):
    server: TagServer
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        if self._is_ours():
            self._answer(HTTPStatus.OK if self.path == "/" else HTTPStatus.NOT_FOUND, "")

    def do_POST(self) -> None:
        if not self._is_ours():
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isdecimal() and len(length) < 16):
            self._fail(HTTPStatus.LENGTH_REQUIRED, "the upload does not say how long it is")
            return
        if int(length) > self.server.max_bytes:
            # Read to its end all the same: a browser shows no answer that interrupts it.
            left = int(length)
            while left and (block := self.rfile.read(min(left, 2**20))):
                left -= len(block)
            limit = f"{self.server.max_bytes / 2**20:.0f} MB"
            self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"files above {limit} are not taken")
            return
        try:
            body = self.rfile.read(int(length))
            name, content = uploaded_file(self.headers.get("Content-Type", ""), body)
            with self.server.one_at_a_time:
                tags = self.server.tagger.tag(content)
        except ValueError as error:
            self._fail(HTTPStatus.BAD_REQUEST, str(error))
        else:
            self._answer(HTTPStatus.OK, bars(name, tags))

    def _is_ours(self) -> bool:
        """Refuses other host names, by which a foreign page could reach us (DNS rebinding)."""
        if self.headers.get("Host", "").split(":")[0] in ("127.0.0.1", "localhost"):
            return True
        self._fail(HTTPStatus.FORBIDDEN, f"this page is at {self.server.url}")
        return False

    def _fail(self, status: HTTPStatus, why: str) -> None:
        self._answer(status, f'<p role="alert">Not tagged: {escape(why)}.</p>')

    def _answer(self, status: HTTPStatus, result: str) -> None:
        content = html(result)
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet: whose music is tagged is nobody's business."""
