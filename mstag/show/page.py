"""Sections -> one self-contained HTML page, readable on a phone, in dark mode and by keyboard."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape as escape_markup

STYLE = """
:root {
  color-scheme: light dark;
  --line: #8884; --soft: #8882; --quiet: #636363; --warn: #a34700; --good: #00725a;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b0558f; --heat: 0 114 178; --bar: .3;
  --on-warm: #000; --on-hot: #fff;
}
@media (prefers-color-scheme: dark) { :root {
  --quiet: #a2a2a2; --warn: #ffb454; --good: #4bd3ae;
  --c0: #56b4e9; --c1: #ff9a4d; --c2: #3ccfa4; --c3: #e59bc9; --heat: 86 180 233; --bar: .5;
  --on-hot: #000;
} }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem;
  overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
nav { line-height: 1.9; }
nav a { margin-right: 1rem; white-space: nowrap; }
img { max-width: 100%; height: auto; border-radius: 4px; background: #fff; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, .t { text-align: left; }
thead th { vertical-align: bottom; }
.columns :is(th, td) { white-space: nowrap; }
.columns :is(th:first-child, td:first-child, .t) { white-space: normal; }
.columns .t { min-width: 5rem; }
.pin .t { min-width: 14rem; }
.pin :is(th, td) { white-space: normal; }
.grid :is(th, td) { padding: .25rem .45rem; }
@media (max-width: 30rem) { th, td { padding: .25rem .4rem; } }
.bar { min-width: 5.6rem; background: .35rem 50% / calc(100% - .7rem) 76% no-repeat
  linear-gradient(90deg, rgb(var(--heat) / var(--bar)) var(--share), #0000 0); }
.pin th:first-child, .pin td:first-child { position: sticky; left: 0; z-index: 1;
  background: Canvas; min-width: min(11rem, 28vw); max-width: 45vw; overflow-wrap: anywhere; }
caption { text-align: left; white-space: nowrap; font-weight: 600; padding: .4rem .7rem; }
.tall { overflow: auto; max-height: 94vh; max-height: 94svh; width: fit-content; max-width: 100%;
  margin-bottom: 1rem; }
.broad { width: max-content; max-width: calc(100vw - 2rem); position: relative; left: 50%;
  transform: translateX(-50%); }
.heat { font-size: .62rem; line-height: 1; border-collapse: separate; border-spacing: 0; }
.heat th { font-weight: normal; font-size: .74rem; white-space: nowrap; border: 0;
  background: Canvas; position: sticky; }
.heat thead th { top: 0; z-index: 2; padding: .3rem 0; text-align: left; }
.heat thead th span { writing-mode: vertical-rl; transform: rotate(180deg); display: block;
  margin: 0 auto; max-height: 10rem; overflow: hidden; text-overflow: ellipsis; }
.heat thead td { position: sticky; left: 0; top: 0; z-index: 3; background: Canvas; border: 0; }
.heat tbody th { left: 0; z-index: 1; padding: 0 .5rem 0 0; max-width: 9.5rem; overflow: hidden;
  text-overflow: ellipsis; }
.heat tbody td { background: rgb(var(--heat) / calc(var(--p) * 1%)); width: 1.12rem;
  min-width: 1.12rem; height: 1.12rem; padding: 0; text-align: center; border: solid var(--soft);
  border-width: 0 1px 1px 0; }
.heat .warm { color: var(--on-warm); } .heat .hot { color: var(--on-hot); }
.heat .none { background: repeating-linear-gradient(135deg, var(--soft) 0 2px, #0000 2px 5px); }
.facts { display: grid; grid-template-columns: fit-content(36%) 1fr; gap: .35rem 1.2rem; }
.facts dt { color: var(--quiet); min-width: min(6rem, 22vw); overflow-wrap: anywhere; }
 .facts dd { margin: 0; min-width: 0; }
.points { padding: 0; list-style: none; }
.points li { border-left: 4px solid var(--good); padding: .1rem .8rem; margin: .5rem 0; }
.points li.warn { border-color: var(--warn); }
.points b { color: var(--good); margin-right: .4rem; } .points .warn b { color: var(--warn); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18.5rem), 1fr));
  gap: .8rem 1.2rem; align-items: start; }
figure { margin: .4rem 0; min-width: 0; }
figure img, figure svg { display: block; width: 100%; }
figcaption { font-size: .85rem; color: var(--quiet); overflow-wrap: anywhere; }
svg { height: auto; max-width: 34rem; }
svg text { fill: currentColor; font-size: 11px; }
svg .row { font-size: 10.5px; } svg .cell { fill: rgb(var(--heat)); }
audio { display: block; width: 100%; max-width: 34rem; height: 2.6rem; }
details { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; padding: .35rem 0; overflow-wrap: anywhere; }
:is(a, audio, summary, .wide):focus-visible { outline: 2px solid; outline-offset: 2px; }
"""

# What HTML forbids in text. Newlines and tabs are white space like any other.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell with a bar behind its text, ``share`` (0 to 1) of the cell long."""

    text: str
    share: float


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under a header; cells are shown as they are, escaped.

    Attributes:
        header: one cell a column.
        rows: as many cells a row.
        text_columns: columns of words, set to the left as the first one is; where there are
            such, the others hold numbers and keep to one line.
        is_pinned: the first column stays in sight when a narrow screen scrolls the others.
        caption: what stands above the table.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    text_columns: Collection[int] = ()
    is_pinned: bool = False
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Heat:
    """A square of shares, 0 to 1, or None where there is none; a row and a column per name."""

    names: Sequence[str]
    values: Sequence[Sequence[float | None]]
    label: str
    """What it shows, for those who do not see it."""


@dataclass(frozen=True, slots=True)
class Picture:
    """PNG bytes, the words for those who do not see them, and what stands below."""

    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Drawing:
    """SVG markup of ``mstag.show.vector``, which is trusted, and what stands below."""

    svg: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Audio:
    """An audio file as it is, to be played."""

    content: bytes
    media_type: str
    """Such as audio/mpeg."""
    label: str
    """What it is, for those who do not see the rest."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Terms and what there is to say of them."""

    entries: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Points:
    """Findings in words: what is fine, and what the reader should look into."""

    points: Sequence[tuple[bool, str]]
    """(whether it is a warning, the words)."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Items side by side where the screen is wide enough."""

    content: Sequence[Item]


@dataclass(frozen=True, slots=True)
class Fold:
    """What is shown when the reader opens it."""

    summary: str
    content: Sequence[Item]
    is_open: bool = False


Item = str | Table | Heat | Picture | Drawing | Audio | Facts | Points | Grid | Fold


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it, in order."""

    title: str
    content: Sequence[Item] = field(default_factory=list)


def html_page(title: str, sections: Sequence[Section]) -> str:
    """One HTML document that needs no other file and runs no script."""
    links = " ".join(
        f'<a href="#s{number}">{escape(section.title)}</a>'
        for number, section in enumerate(sections)
    )
    body = "".join(
        f'<section id="s{number}"><h2>{escape(section.title)}</h2>'
        f"{_all(section.content)}</section>\n"
        for number, section in enumerate(sections)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><nav>{links}</nav>\n{body}</body></html>\n"
    )


def escape(text: str) -> str:
    r"""Any text as it may stand in a page, between quotes too.

    Bytes of file names that are not UTF-8 (lone surrogates in Python) become ``\udcff`` and
    the like, control characters U+FFFD.
    """
    whole = text.encode("utf-8", "backslashreplace").decode()
    return escape_markup(_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", whole))


def _words(text: str) -> str:
    """Text whose `commands`, between backticks, look like commands."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _all(content: Sequence[Item]) -> str:
    return "".join(map(_html, content))


def _html(item: Item) -> str:
    match item:
        case str():
            return f"<p>{_words(item)}</p>"
        case Table():
            return _table(item)
        case Heat():
            return _heat(item)
        case Picture(png, alt, caption):
            data = base64.b64encode(png).decode()
            image = f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
            return _figure(image, caption) if caption else f"<p>{image}</p>"
        case Drawing(svg, caption):
            return _figure(svg, caption)
        case Audio(content, media_type, label):
            data = f"data:{escape(media_type)};base64,{base64.b64encode(content).decode()}"
            return f'<audio controls aria-label="{escape(label)}" src="{data}"></audio>'
        case Facts(entries):
            rows = (f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items())
            return f'<dl class="facts">{"".join(rows)}</dl>'
        case Points(points):
            return f'<ul class="points">{"".join(_point(*point) for point in points)}</ul>'
        case Grid(content):
            return f'<div class="grid">{_all(content)}</div>'
        case Fold(summary, content, is_open):
            mark = " open" if is_open else ""
            return f"<details{mark}><summary>{escape(summary)}</summary>{_all(content)}</details>\n"


def _figure(inner: str, caption: str) -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{inner}{below}</figure>"


def _point(is_warning: bool, words: str) -> str:
    # The word says what the colour says.
    kind, word = (' class="warn"', "Look") if is_warning else ("", "Fine")
    return f"<li{kind}><b>{word}</b> {_words(words)}</li>"


def _table(table: Table) -> str:
    left = [' class="t"' if n in table.text_columns else "" for n in range(len(table.header))]
    head = "".join(
        f'<th scope="col"{mark}>{escape(cell)}</th>'
        for cell, mark in zip(table.header, left, strict=True)
    )
    rows = "".join(f"<tr>{''.join(map(_cell, row, left))}</tr>\n" for row in table.rows)
    kinds = ["columns"] * bool(table.text_columns) + ["pin"] * table.is_pinned
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    return (
        f'<div class="wide" tabindex="0"><table{kind}>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(cell: str | Cell, kind: str) -> str:
    if isinstance(cell, Cell):
        style = f' class="bar" style="--share:{100 * cell.share:.3g}%"'
        return f"<td{style}>{escape(cell.text)}</td>"
    return f"<td{kind}>{escape(cell)}</td>"


def _heat(heat: Heat) -> str:
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in heat.names)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_heat_cell, row))}</tr>\n'
        for name, row in zip(heat.names, heat.values, strict=True)
    )
    # Wider than the text, it may stand out on both sides where the screen has room.
    broad = " broad" if len(heat.names) > 44 else ""
    return (
        f'<div class="wide tall{broad}" tabindex="0" role="region" '
        f'aria-label="{escape(heat.label)}">'
        f'<table class="heat"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _heat_cell(value: float | None) -> str:
    if value is None:
        return '<td class="none"></td>'
    percent = round(100 * value)
    # Where black and white ink change places: near 88% on a white page, near 65% on a dark one.
    ink = ' class="hot"' if percent >= 88 else ' class="warm"' if percent >= 65 else ""
    # The colour alone shows what is rare: a number in every cell would be noise.
    return f'<td{ink} style="--p:{percent}">{percent if percent >= 5 else ""}</td>'
