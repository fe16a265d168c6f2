"""A browser to click in, over chromedriver's own protocol (W3C WebDriver; cdp: Chrome DevTools)."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from html_pages import CHROMIUM

DRIVER = shutil.which("chromedriver")
in_a_driven_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no chromium with a chromedriver on this machine"
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"tab": "\ue004", "space": " ", "enter": "\ue007", "right": "\ue014", "end": "\ue010"}


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self.session = session

    def ask(self, path: str, content: object = None, method: str = "") -> Any:
        """A command of the protocol."""
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            f"{self.session}/{path}".rstrip("/"), data, {"Content-Type": "application/json"}
        )
        request.method = method or ("GET" if data is None else "POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, address: str) -> None:
        self.ask("url", {"url": address})

    def run(self, script: str, *arguments: object) -> Any:
        """What a script returns; it may be a promise."""
        return self.ask("execute/sync", {"script": script, "args": arguments})

    def cdp(self, command: str, **parameters: object) -> Any:
        return self.ask("goog/cdp/execute", {"cmd": command, "params": parameters})

    def find(self, selector: str) -> dict[str, str]:
        found: dict[str, str] = self.ask("element", {"using": "css selector", "value": selector})
        return found

    def upload(self, selector: str, *paths: Path) -> None:
        """Chooses files in an input, as a person does in its dialogue."""
        element = self.find(selector)[ELEMENT]
        self.ask(
            f"element/{element}/value", {"text": "\n".join(str(path.resolve()) for path in paths)}
        )

    def press(self, *names: str) -> None:
        """Presses keys, wherever the focus is."""
        keys = [
            {"type": kind, "value": KEYS[name]} for name in names for kind in ("keyDown", "keyUp")
        ]
        self.ask("actions", {"actions": [{"type": "key", "id": "keys", "actions": keys}]})

    def click(self, selector: str, share_x: float = 0.5) -> None:
        """Clicks into an element, at a share of its width."""
        box = self.run(
            "const item = document.querySelector(arguments[0]);"
            "item.scrollIntoView({ block: 'center', behavior: 'instant' });"
            "const b = item.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]",
            selector,
        )
        left, top, width, height = box
        at = {"x": round(left + share_x * width), "y": round(top + height / 2)}
        steps = [
            {"type": "pointerMove", "duration": 0, **at},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        self.ask("actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": steps}]})

    def wait(self, script: str, seconds: float = 30) -> Any:
        """What a script returns, as soon as that is something."""
        end = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"never came: {script}"
            time.sleep(0.05)
        return found

    def screen(self, width: int, height: int = 900, *, is_dark: bool = False) -> None:
        """The size of the window, a phone's too, and the user's wish for dark pages."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme])

    def shoot(self, path: Path) -> None:
        """A picture of the page as a whole."""
        shot = self.cdp("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def hosts(self) -> set[str]:
        """Whom the page has asked for anything since this was last asked."""
        entries = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        asked = [
            entry["params"]["request"]["url"]
            for entry in entries
            if entry["method"] == "Network.requestWillBeSent"
        ]
        return {urlsplit(url).netloc for url in asked if url.startswith(("http", "ws"))}

    def complaints(self) -> list[str]:
        """Errors on the page's console since this was last asked."""
        return [entry["message"] for entry in self._log("browser") if entry["level"] == "SEVERE"]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.ask("se/log", {"type": kind})
        return entries


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser without a window; no network but loopback is there to be reached."""
    assert DRIVER and CHROMIUM
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout
        found = next(
            filter(None, (re.search(r"successfully on port (\d+)", line) for line in driver.stdout))
        )
        options = {
            "binary": CHROMIUM,
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--autoplay-policy=no-user-gesture-required",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                f"--user-data-dir={folder / 'profile'}",
            ],
        }
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        }
        home = Browser(f"http://127.0.0.1:{found[1]}")
        session = home.ask("session", {"capabilities": {"alwaysMatch": wanted}})
        window = Browser(f"{home.session}/session/{session['sessionId']}")
        try:
            yield window
        finally:
            window.ask("", method="DELETE")
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()  # type: ignore[union-attr]
