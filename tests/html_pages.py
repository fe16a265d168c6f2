"""Pages of HTML, checked as text and looked at in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Finds tags that do not close, what is loaded from elsewhere, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.sources += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]
        if tag == "img":
            assert dict(attrs)["alt"]
        if tag == "audio":
            assert "controls" in dict(attrs)
            assert dict(attrs)["aria-label"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    checker.text = checker.text.replace("\N{NO-BREAK SPACE}", " ")
    assert checker.open == [] and not {"script", "link", "iframe"} & set(checker.tags)
    own = ("#", "data:image/png;base64,", "data:audio/")
    assert all(source.startswith(own) for source in checker.sources)
    assert not re.search(r"https?:|url\(|@import", text)
    ids = re.findall(r' id="(\w+)"', text)
    assert {s[1:] for s in checker.sources if s[0] == "#"} == set(ids) and len(ids) == len(set(ids))
    return checker


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
MEASURE = """
<!doctype html><body style="margin:0"><script>
const found = {};
function measure(frame, width) {
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(fold => fold.open = true);
  const outside = [...page.querySelectorAll("body *")].filter(item => {
    const box = item.getBoundingClientRect();
    return (box.right > width + 1 || box.left < -1) && !item.closest(".wide > *");
  });
  const small = [...page.querySelectorAll("svg text")].filter(
    text => text.getBoundingClientRect().height < 9);
  const box = page.querySelector("img").getBoundingClientRect();
  found[width] = {
    width: root.scrollWidth, height: root.scrollHeight,
    outside: outside.map(item => item.outerHTML.slice(0, 80)),
    small: small.map(text => text.textContent), image: [box.width, box.height],
    broken: [...page.images].filter(image => !image.naturalWidth).length,
    ink: getComputedStyle(page.body).color,
    paper: getComputedStyle(page.querySelector(".pin td")).backgroundColor,
    script: page.defaultView.touched === true,
  };
  document.getElementById("found").textContent = JSON.stringify(found);
}
</script>
<iframe width=380 height=700 onload="measure(this, 380)" srcdoc="PAGE"></iframe>
<iframe width=1200 height=700 onload="measure(this, 1200)" srcdoc="PAGE"></iframe>
<pre id="found"></pre></body>
"""


def chromium(folder: Path, address: Path, *options: str) -> str:
    """Opens a page; no network is there to be reached."""
    assert CHROMIUM
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}",
            *options,
            address.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def measured(folder: Path, content: str, *, is_dark: bool) -> dict[str, dict[str, Any]]:
    """What a browser makes of a page on a phone ("380") and on a screen ("1200"): see MEASURE."""
    wrapper = folder / "wrapper.html"
    wrapper.write_text(MEASURE.replace("PAGE", html.escape(content)), encoding="utf-8")
    dark = ["--blink-settings=preferredColorScheme=0"] if is_dark else []
    dom = chromium(folder, wrapper, "--virtual-time-budget=10000", "--dump-dom", *dark)
    shown = json.loads(html.unescape(re.findall(r'<pre id="found">(.*?)</pre>', dom, re.S)[0]))
    assert set(shown) == {"380", "1200"}
    return dict(shown)


def assert_fits(shown: dict[str, dict[str, Any]], *, is_dark: bool) -> None:
    """Nothing sticks out, is too small, broken or run; ink and paper are those of the mode."""
    for width, seen in shown.items():
        assert seen["width"] <= int(width), f"as wide as the screen of {width}"
        assert seen["height"] > 2000, seen
        assert seen["outside"] == [], seen
        assert seen["small"] == [], seen
        assert seen["broken"] == 0
        assert not seen["script"]
        assert seen["image"][0] > 200, "spectrograms can be seen"
        assert seen["image"][1] > 40, "spectrograms can be seen"
        ink, paper = ([int(n) for n in re.findall(r"\d+", seen[k])[:3]] for k in ("ink", "paper"))
        assert (sum(paper) < 120 and sum(ink) > 600) if is_dark else (sum(paper) > 700)


def assert_not_blank(folder: Path, page: Path, *, is_dark: bool) -> None:
    """A screenshot shows something on the paper of the mode."""
    shot = folder / "shot.png"
    dark = ["--blink-settings=preferredColorScheme=0"] if is_dark else []
    chromium(folder, page, f"--screenshot={shot}", "--window-size=1200,2400", *dark)
    pixels = (255 * matplotlib.image.imread(shot)[:, :, :3]).astype(int)
    background = pixels[5, 5]
    share = (np.abs(pixels - background).sum(axis=2) > 60).mean()
    assert pixels.shape[:2] == (2400, 1200)
    assert 0.02 < share < 0.6, "not blank"
    assert background.sum() < 120 if is_dark else background.sum() > 700
