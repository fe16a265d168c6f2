"""The page: what guards it, and itself, run by the command and asked as a browser asks it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from shared_data import REPOSITORY
from tiny_tagger import TAGS, make_bundle, make_wav
from webdriver import Browser, browser, in_a_driven_browser

from mstag.cli import cli
from mstag.show.piece import DEMO_LIMITS, LIMITS
from mstag.tagging import serve
from mstag.tagging.tagger import Tagger

MAX_MB = 1
COMMAND = [sys.executable, "-m", "mstag", "serve", "--port", "0", "--device", "cpu"]


@dataclass
class Server:
    """`mstag serve`, running."""

    url: str
    tagger: Tagger
    temporary: Path
    """Where its temporary folder is."""

    def ask(self, path: str = "", body: bytes | None = None, **headers: str) -> tuple[int, str]:
        """Status and text of an answer, which names what the page may load."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, body, named)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert answer.headers["Content-Security-Policy"].startswith("default-src 'self' ")
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def upload(self, name: str, content: bytes, **headers: str) -> tuple[int, str]:
        """Sends a file as a form does; the answer holds where it went."""
        head = f'Content-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = b"--xyz\r\n" + head.encode() + content + b"\r\n--xyz--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=xyz", **headers}
        return self.ask("gradio_api/upload", body, **kind)

    def stored(self, name: str, content: bytes) -> Path:
        """Where an upload went."""
        status, text = self.upload(name, content)
        assert status == 200, text
        return Path(json.loads(text)[0])

    def tag(self, session: str, *files: tuple[str, Path | str]) -> dict[str, Any]:
        """Asks as the page does, and returns what it shows in the end."""
        config = json.loads(self.ask("config")[1])
        asked = next(d for d in config["dependencies"] if d["targets"][0][1] == "upload")
        uploads = [
            {"path": str(path), "orig_name": name, "meta": {"_type": "gradio.FileData"}}
            for name, path in files
        ]
        body = {"data": [uploads], "fn_index": asked["id"], "session_hash": session}
        status, text = self.ask(
            "gradio_api/queue/join", json.dumps(body).encode(), Content_Type="application/json"
        )
        assert status == 200, text
        events = self.ask(f"gradio_api/queue/data?session_hash={session}")[1]
        messages = [json.loads(event[6:]) for event in events.split("\n\n") if event]
        done = next(m for m in messages if m["msg"] == "process_completed")
        if not done["success"]:
            return {"error": done["output"]["error"]}
        shown: dict[str, Any] = done["output"]["data"][1]
        return shown


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    temporary = tmp_path_factory.mktemp("temporary")
    process = subprocess.Popen(
        [*COMMAND, "--max-mb", str(MAX_MB), "--model", str(bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert process.stdout and process.stderr
    with process, process.stdout, process.stderr:
        try:
            line = process.stdout.readline()
            assert line.endswith("/  (Ctrl-C ends it)\n"), process.stderr.read()
            server = Server(line.split()[0], Tagger.load(bundle, "cpu"), temporary)
            yield server
            with urllib.request.urlopen(f"{server.url}gradio_api/heartbeat/open") as page:
                page.readline()
                process.send_signal(signal.SIGINT)
                assert process.wait(60) == 0
            assert process.stderr.read() == "", "nothing to say of a day like this"
            assert list(temporary.iterdir()) == [], "every upload is gone"
        finally:
            process.kill()


def test_uploads_get_their_tags(server: Server, tmp_path: Path) -> None:
    path = make_wav(tmp_path / "a.wav", 2)
    stored = server.stored("a.wav", path.read_bytes())
    bad = server.stored("b.mp3", b"no music")
    shown = server.tag("visitor", ("<b>&.wav", stored), ("b.mp3", bad))
    tagged, failed = (card["html"] for card in shown["cards"])
    assert shown["summary"].startswith("<p>1 piece tagged, 1 not.")
    assert "&lt;b&gt;&amp;.wav" in tagged and "<b>&" not in tagged
    ranked = server.tagger.tag(path)
    places = [tagged.index(f"{score:.2f}</span></li>") for _, score in ranked[:1]]
    assert places and all(tag in tagged for tag, _ in ranked if "&" not in tag)
    assert "b.mp3" in failed and "Not tagged: cannot be decoded as audio: it is text" in failed
    assert server.ask(f"gradio_api/file={urllib.parse.quote(str(bad))}") == (200, "no music")


def test_files_go_when_their_page_does(server: Server, tmp_path: Path) -> None:
    """A heartbeat is open as long as the page is."""
    soundfile.write(tmp_path / "c.aiff", np.zeros(8000) + 0.1, 8000)
    stored = server.stored("c.aiff", (tmp_path / "c.aiff").read_bytes())
    with urllib.request.urlopen(f"{server.url}gradio_api/heartbeat/leaver", timeout=60) as page:
        page.readline()
        shown = server.tag("leaver", ("c.aiff", stored))
        assert len(list(stored.parent.iterdir())) == 2, "with the copy that browsers can play"
        copy = urllib.parse.quote(f"{stored}.to-play.wav")
        assert f'src="gradio_api/file={copy}"' in shown["cards"][0]["html"]
    end = time.monotonic() + 30
    while list(stored.parent.iterdir()):
        assert time.monotonic() < end, "never removed"
        time.sleep(0.1)


def test_only_uploads_are_read_or_shown(server: Server, tmp_path: Path) -> None:
    path = make_wav(tmp_path / "private.wav")
    assert server.ask(f"gradio_api/file={path}")[0] == 403
    for forged in (path, "http://127.0.0.1:9/a.wav", server.temporary / ".." / path.name):
        error = server.tag("thief", ("a.wav", forged))["error"]
        assert error == "only files that were uploaded can be tagged"
    assert path.exists()


def test_large_uploads_are_refused(server: Server) -> None:
    status, text = server.upload("a.wav", bytes(MAX_MB * 10**6 + 1))
    assert (status, "exceeded maximum" in text) == (413, True)
    assert server.ask()[0] == 200, "the page stays usable"


def test_foreign_pages_cannot_reach_it(server: Server) -> None:
    port = urllib.parse.urlsplit(server.url).port
    assert server.ask(Host="evil.example:80")[0] == 403
    assert server.ask(Host=f"localhost:{port}")[0] == 200
    assert server.upload("a.wav", b"x", Sec_Fetch_Site="cross-site")[0] == 403
    assert server.upload("a.wav", b"x", Origin="http://evil.example")[0] == 403
    assert server.upload("a.wav", b"x", Sec_Fetch_Site="same-site", Origin="null")[0] == 403
    assert server.upload("a.wav", b"x", Sec_Fetch_Site="same-origin")[0] == 200


def test_the_page_says_what_it_is(server: Server) -> None:
    text = json.dumps(json.loads(server.ask("config")[1])["components"])
    assert "5 tags, trained on synthetic" in text and "ROC-AUC 0.500" in text
    assert LIMITS in text and DEMO_LIMITS not in text
    assert f"up to {MAX_MB} MB" in text
    assert '"analytics_enabled": true' not in server.ask("config")[1]


def drop(window: Browser, selector: str, path: Path) -> None:
    """Drops a file on an element."""
    taken = window.run(
        """
        const bytes = Uint8Array.from(atob(arguments[2]), (c) => c.charCodeAt(0));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([bytes], arguments[1]));
        return !document.querySelector(arguments[0]).dispatchEvent(
          new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
        """,
        selector,
        path.name,
        base64.b64encode(path.read_bytes()).decode(),
    )
    assert taken, "the browser itself would have opened the file"


@in_a_driven_browser
def test_a_person_listens_and_looks(server: Server, tmp_path: Path) -> None:
    """Drops files, sees bars, plays, seeks on the taggram, by mouse and by keyboard."""
    music = make_wav(tmp_path / "music & more.wav", 4)
    bad, late = tmp_path / "bad.mp3", make_wav(tmp_path / "late.wav", 1.5, seed=1)
    bad.write_text("no music")
    large = tmp_path / "large.wav"
    large.write_bytes(bytes(2 * 10**6))
    player = "document.querySelector('.tagged audio')"
    with browser(tmp_path) as window:
        window.screen(1200)
        window.open(server.url)
        window.wait("return document.querySelector('#drop input[type=file]')")
        window.upload("#drop input[type=file]", music, bad, large)
        window.wait("return document.querySelector('.tagged') && document.querySelector('.failed')")
        found = window.run(
            "return [...document.querySelectorAll('.bars .tag')].map(tag => tag.textContent)"
        )
        assert found == [tag for tag, _ in server.tagger.tag(music)]
        assert window.run("return document.querySelector('.tagged h2').textContent") == music.name
        refused = window.run("return document.querySelector('.refused').textContent")
        assert "large.wav: not sent, as it has 2 MB and this page takes 1 at most" in refused

        # The player moves the cursor; another drop does not disturb it.
        window.run(f"{player}.loop = true; return {player}.play()")
        window.wait("return parseFloat(document.querySelector('.cursor').style.left) > 1")
        drop(window, "#drop button", late)
        window.wait("return document.querySelectorAll('.tagged').length == 2")
        drop(window, "h1", late)  # beside the zone: else the browser would leave the page
        window.wait("return document.querySelectorAll('.tagged').length == 3")
        assert window.run(f"return !{player}.paused && {player}.currentTime > 0")

        # The taggram moves the player.
        window.click(".field", 0.5)
        window.press("space")
        at, duration = window.run(f"return [{player}.currentTime, {player}.duration]")
        assert window.run(f"return {player}.paused")
        assert 0.5 * duration - 0.1 < at < duration
        window.press("end")
        field = "const field = document.querySelector('.field'); return "
        assert float(window.run(f"{field} field.getAttribute('aria-valuenow')")) > at
        assert ", strongest: " in window.run(f"{field} field.getAttribute('aria-valuetext')")
        assert window.run(f"{field} getComputedStyle(field).outlineStyle") == "solid"
        assert window.run("return document.querySelector('.hearing.live .bar b') !== null")
        window.press("tab")
        assert window.run("return document.activeElement.closest('.piece') !== null")

        link = "document.querySelector('.tagged .download')"
        line = window.run(f"return fetch({link}.href).then(answer => answer.json())")
        assert line["path"] == music.name and line["error"] is None
        assert [tag["tag"] for tag in line["tags"]] == found and len(line["tags"]) == len(TAGS)

        for width in (380, 1200):
            window.screen(width, is_dark=True)
            assert window.run("return document.documentElement.scrollWidth") <= width
        paper = "return getComputedStyle(document.querySelector('.piece')).backgroundColor"
        window.wait(f"{paper}.match(/\\d+/g).slice(0, 3).every(part => part < 60)")

        window.click("#clear")
        window.wait("return !document.querySelector('.piece')")
        assert window.hosts() == {urllib.parse.urlsplit(server.url).netloc}
        assert window.complaints() == []


# ---- the parts --------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said() -> None:
    with serve.listen_on("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert serve.address_of(taken) == f"http://127.0.0.1:{port}/"
        with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 cannot be had .*--port"):
            serve.listen_on("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no host at all", "256.1.1.1"])
def test_an_address_that_is_none_is_said(host: str) -> None:
    with pytest.raises(ValueError, match="no such address"):
        serve.listen_on(host, 0)


def test_who_can_connect_is_known() -> None:
    for host, is_loopback in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)):
        with serve.listen_on(host, 0) as server:
            assert serve.is_loopback(server) == is_loopback
    if socket.has_ipv6:
        try:
            server = serve.listen_on("::1", 0)
        except ValueError:
            return  # no loopback of this kind here
        with server:
            assert serve.is_loopback(server)
            assert serve.address_of(server).startswith("http://[::1]:")


def test_gradio_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    serve.require_gradio()
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r"gradio.*not installed.*\[serve\]"):
        serve.require_gradio()


@pytest.mark.parametrize(("is_local", "status"), [(True, 403), (False, 200)])
def test_names_are_checked_on_loopback_only(is_local: bool, status: int) -> None:
    """Behind --host the machine may have any name."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {}

    scope = {"type": "http", "method": "GET", "headers": [(b"host", b"studio.example:80")]}
    asyncio.run(serve.guarded(app, is_local=is_local)(scope, receive, send))
    assert sent[0]["status"] == status


@pytest.mark.parametrize(
    ("host", "note"), [("127.0.0.1", ""), ("0.0.0.0", "0.0.0.0 is not this machine alone")]
)
def test_who_else_may_come_in_is_said(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, host: str, note: str
) -> None:
    """The page itself is left out here; Ctrl-C ends it as it is meant to end."""

    def until_interrupted(*_: object, on_ready: Any, **__: object) -> None:
        on_ready()
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "serve", until_interrupted)
    done = CliRunner().invoke(
        cli, ["serve", "--host", host, "--port", "0", "--model", str(bundle), "--device", "cpu"]
    )
    assert done.exit_code == 0
    assert done.stdout.startswith(f"http://{host}:") and "(Ctrl-C ends it)" in done.stdout
    assert note in done.stderr and bool(note) == bool(done.stderr)


def test_help_is_light() -> None:
    code = (
        "import sys; sys.argv = ['mstag', 'serve', '--help']\n"
        "from mstag.cli import entry\n"
        "try: entry()\n"
        "finally: print([m for m in ('torch', 'gradio', 'uvicorn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert "--max-mb" in done.stdout and done.stdout.endswith("[]\n")
