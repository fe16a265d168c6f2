"""Servers on loopback that can be told to misbehave: http, and a proxy that cuts connections."""

from __future__ import annotations

import hashlib
import random
import selectors
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTENT = random.Random(5).randbytes(1_024_000)
DATE = "Wed, 01 Jan 2020 00:00:00 GMT"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves files, understands ranges, and misbehaves as its queue of moods says.

    Moods, one a request: a status code (also "503 after 7": with Retry-After); a location to
    redirect to; "cut", "stall" (half, then the end or nothing), "short" and "long"
    (Content-Length says half, or double), "no length" (and twice the content), "garbage"
    (right length, wrong bytes), "no ranges", "wrong range", "no total" (where the file ends;
    also with "cut"), "any version" (ignores If-Range), "nameless" (says no version).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.files: dict[str, bytes] = {}  # what is not in here is self.content
        self.missing: set[str] = set()
        self.date = DATE
        self.etag = ""
        self.moods: list[str] = []
        self.ranges: list[str | None] = []
        self.if_ranges: list[str | None] = []
        self.paths: list[str] = []
        self.base = f"http://127.0.0.1:{self.server_address[1]}"
        self.url = f"{self.base}/clip.bin"
        self.half_sent = threading.Event()
        self.go_on = threading.Event()  # ends a stall

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may hear enough
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        mood = server.moods.pop(0) if server.moods else ""
        wanted = self.headers["Range"]
        server.ranges.append(wanted)
        server.if_ranges.append(self.headers["If-Range"])
        server.paths.append(self.path)
        if self.path.split("?")[0] in server.missing:
            mood = "404"
        if mood.isdigit():
            self.send_error(int(mood))
            return
        if " after " in mood:
            code, _, seconds = mood.partition(" after ")
            self.send_response(int(code))
            self.send_header("Retry-After", seconds)
            self.end_headers()
            return
        if ":" in mood:
            self.send_response(302)
            self.send_header("Location", mood)
            self.end_headers()
            return
        content = server.files.get(self.path.split("?")[0], server.content)
        version = server.etag or server.date
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        asked = self.headers["If-Range"]
        if mood == "no ranges" or (mood != "any version" and asked not in (None, version)):
            start = 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        body = content[start:]
        if start:
            if mood == "wrong range":
                start, body = 0, content
            total = "*" if "no total" in mood else len(content)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{total}")
        if mood != "nameless":
            self.send_header("Last-Modified", server.date)
            if server.etag:
                self.send_header("ETag", server.etag)
        if mood != "no length":
            factor = {"short": 0.5, "long": 2}.get(mood, 1)
            self.send_header("Content-Length", str(int(len(body) * factor)))
        self.end_headers()
        if "cut" in mood or mood == "stall":
            self.wfile.write(body[: len(body) // 2])
            server.half_sent.set()
            if mood == "stall":
                server.go_on.wait()
        elif mood == "no length":
            self.wfile.write(body * 2)
        elif mood == "garbage":
            self.wfile.write(bytes(len(body)))
        else:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.go_on.set()
            server.shutdown()
            thread.join()


class CuttingProxy(socketserver.ThreadingTCPServer):
    """Passes bytes on to a port; cuts an answer after so many bytes, as its queue says."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.port = port
        self.limits: list[int] = []
        self.heard: list[bytes] = []  # what clients sent
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Relay(socketserver.BaseRequestHandler):
    server: CuttingProxy

    def handle(self) -> None:
        left = self.server.limits.pop(0) if self.server.limits else 1 << 62
        with (
            socket.create_connection(("127.0.0.1", self.server.port)) as far,
            selectors.DefaultSelector() as selector,
        ):
            selector.register(self.request, selectors.EVENT_READ, far)
            selector.register(far, selectors.EVENT_READ, self.request)
            while left > 0:
                for key, _ in selector.select():
                    block = key.fileobj.recv(min(left, 1 << 16))  # type: ignore[union-attr]
                    if not block:
                        return
                    if key.fileobj is self.request:
                        self.server.heard.append(block)
                    key.data.sendall(block)
                    left -= len(block) if key.fileobj is far else 0


@contextmanager
def cutting_proxy(port: int) -> Iterator[CuttingProxy]:
    with CuttingProxy(port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
