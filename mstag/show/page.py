"""Sections -> one self-contained HTML page, readable on a phone, in dark mode and by keyboard."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
nav a { margin-right: 1rem; }
img { max-width: 100%; height: auto; border-radius: 4px; background: #fff; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
a:focus-visible { outline: 2px solid; outline-offset: 2px; }
"""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under a header; cells are shown as they are, escaped."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Picture:
    """PNG bytes, and the words for those who do not see them."""

    png: bytes
    alt: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it, in order: text, tables, pictures."""

    title: str
    content: Sequence[str | Table | Picture] = field(default_factory=list)


def html_page(title: str, sections: Sequence[Section]) -> str:
    """One HTML document that needs no other file and runs no script."""
    links = "".join(
        f'<a href="#s{number}">{escape(section.title)}</a>'
        for number, section in enumerate(sections)
    )
    body = "".join(
        f'<section id="s{number}"><h2>{escape(section.title)}</h2>'
        f"{''.join(map(_html, section.content))}</section>\n"
        for number, section in enumerate(sections)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><nav>{links}</nav>\n{body}</body></html>\n"
    )


def _html(item: str | Table | Picture) -> str:
    if isinstance(item, Table):
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in item.header)
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in item.rows
        )
        return (
            f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )
    if isinstance(item, Picture):
        data = base64.b64encode(item.png).decode()
        return f'<p><img alt="{escape(item.alt)}" src="data:image/png;base64,{data}"></p>'
    return f"<p>{escape(item)}</p>"
