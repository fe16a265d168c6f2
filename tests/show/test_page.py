from __future__ import annotations

from html.parser import HTMLParser

from mstag.show.page import Picture, Section, Table, html_page

VOID = {"meta", "img", "link", "br"}


class Checker(HTMLParser):
    """Finds tags that do not close, and what the page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [v or "" for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_well_formed_escaped_and_loads_nothing() -> None:
    evil = '<script>alert("x")</script>'
    sections = [
        Section(evil, [evil, Table([evil], [[evil], ["1"]]), Picture(b"png", evil + '"')]),
        Section("Empty"),
    ]
    html = html_page(evil, sections)
    checker = Checker()
    checker.feed(html)
    assert checker.open == [] and "script" not in checker.tags
    assert all(source.startswith(("#", "data:")) for source in checker.sources)
    assert "prefers-color-scheme" in html or "color-scheme: light dark" in html
    assert 'name="viewport"' in html
