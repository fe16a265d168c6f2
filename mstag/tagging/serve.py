"""`mstag serve`: a page to listen to music and look at its tags. Nothing leaves the machine.

Gradio makes the page and takes the uploads in; uvicorn runs it. What is on the page is in
serve_page.py, and who has dropped what is known at the desk (desk.py).
"""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import logging
import os
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mstag.show import piece as show

if TYPE_CHECKING:
    from mstag.tagging.tagger import Tagger

LOCAL_NAMES = frozenset(["127.0.0.1", "localhost", "::1"])
CONTENT_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""The browser itself sees to it that the page asks nobody else. Gradio's page evaluates code."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def require_gradio() -> None:
    """Says what to install, before anything else takes its seconds.

    Raises:
        ValueError: the package is not there.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(
            "the page needs the package gradio, which is not installed; install it with "
            "`pip install -e '.[serve]'`"
        )


def listen_on(host: str, port: int) -> socket.socket:
    """A socket that browsers can connect to; port 0 takes any that is free.

    Raises:
        ValueError: no such address here, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror as error:
        raise ValueError(
            f"--host {host}: no such address ({error.strerror}); 127.0.0.1 is this machine alone"
        ) from None
    except OSError as error:
        raise ValueError(
            f"port {port} of {host} cannot be had ({os.strerror(error.errno or 0)}): name another "
            "with --port, 0 for any that is free"
        ) from None


def address_of(server: socket.socket) -> str:
    """Where the page is, for the browser's address line."""
    host, port = server.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/"


def is_loopback(server: socket.socket) -> bool:
    """Whether this machine alone can connect."""
    return ipaddress.ip_address(server.getsockname()[0].partition("%")[0]).is_loopback


def serve(
    tagger: Tagger, model: str, server: socket.socket, *, max_mb: int, on_ready: Callable[[], None]
) -> None:
    """Runs the page until it is interrupted (Ctrl-C, SIGTERM); uploads are gone after that.

    Args:
        tagger: who listens.
        model: what the page calls it.
        server: from :func:`listen_on`.
        max_mb: largest upload, in 10^6 bytes.
        on_ready: called when the page can be opened; Gradio takes seconds to get there.
    """
    signal.signal(signal.SIGTERM, _end)
    with _private_folder() as folder:
        # Before Gradio is imported: it would ask its makers for the newest version, and tell them.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        # Gradio and its web framework age at different speeds; that is none of a user's business.
        warnings.filterwarnings("ignore", category=Warning, module=r"gradio\b")
        import uvicorn
        from fastapi import FastAPI
        from gradio import mount_gradio_app, themes

        from mstag.tagging.desk import Desk
        from mstag.tagging.serve_page import page

        desk = Desk(tagger, folder)
        bundle = tagger.bundle
        intro = show.about(
            model, len(bundle.tag_names), bundle.dataset, bundle.scores, max_mb=max_mb
        )
        blocks = page(desk, intro, max_mb)
        # Gradio then serves the copies that browsers can play, and removes them, as uploads.
        desk.on_copy = lambda path: blocks.upload_file_set.add(str(path))
        app = mount_gradio_app(
            FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            blocks,
            path="/",
            footer_links=[],
            max_file_size=max_mb * 10**6,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            # Fonts that every machine has, else the theme brings its own.
            theme=themes.Base(
                font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            css_paths=[show.STYLE_FILE],
            head=f"<script>{show.SCRIPT_FILE.read_text(encoding='utf-8')}</script>",
        )
        config = uvicorn.Config(
            guarded(app, is_local=is_loopback(server)),
            log_level="warning",
            access_log=False,  # whose music is tagged is nobody's business
            timeout_graceful_shutdown=1,  # a page holds a connection open for as long as it lives
        )
        runner = uvicorn.Server(config)
        # Pages that are still open are cut off in the end, of which uvicorn makes long errors.
        logging.getLogger("uvicorn.error").addFilter(lambda record: not runner.should_exit)
        on_ready()
        try:
            runner.run(sockets=[server])
        finally:
            desk.close()


def guarded(app: App, *, is_local: bool) -> App:
    """The app behind three checks that Gradio leaves to others.

    The browser is told to load nothing from elsewhere. A page of another site cannot send files
    here. And where this machine alone may come in, none that only claims its name does (DNS
    rebinding).
    """

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        headers = {n.decode("latin-1").lower(): v.decode("latin-1") for n, v in scope["headers"]}
        host = headers.get("host", "")
        is_foreign = scope["method"] != "GET" and not _is_own_page(headers, host)
        if is_foreign or (is_local and _name_of(host) not in LOCAL_NAMES):
            await _refuse(send)
            return

        async def send_with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", CONTENT_POLICY.encode())
                message["headers"] = [*message.get("headers", []), policy]
            await send(message)

        await app(scope, receive, send_with_policy)

    return checked


def _is_own_page(headers: Mapping[str, str], host: str) -> bool:
    """Whether a request that changes something comes from our page, or from no page at all."""
    if headers.get("sec-fetch-site") == "cross-site":
        return False
    # Browsers leave Sec-Fetch out over http beyond this machine, but never Origin.
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == host


def _name_of(host: str) -> str | None:
    """The name in a Host header; None if it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


async def _refuse(send: Send) -> None:
    words = b"This page is for the machine it runs on: open it as 127.0.0.1 or localhost."
    kind = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 403, "headers": kind})
    await send({"type": "http.response.body", "body": words})


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder for all uploads, whole or not, that nobody else reads and that goes in the end."""
    with tempfile.TemporaryDirectory(prefix="mstag-serve-", ignore_cleanup_errors=True) as folder:
        before = tempfile.tempdir
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


def _end(signal_number: int, frame: object) -> None:
    """SIGTERM, once uvicorn has ended: with an exception, so that the uploads are removed."""
    sys.exit(128 + signal_number)
