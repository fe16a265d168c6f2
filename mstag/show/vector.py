"""Numbers -> small plots as SVG markup that takes the page's own ink and colours.

Unlike the pictures of plots.py they are part of the page: text stays text and dark mode
turns them dark. Drawn 360 units wide, the width of a phone, so that no label shrinks there.
Series differ in dash as well as in colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mstag.show.page import escape

WIDTH, HEIGHT = 360, 215
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 26, 38
_DASHES = ("", "7 3", "2 3", "8 3 2 3")
_LETTER = 6.2  # units, the mean width of a letter at font-size 11px

_ROW = 15  # units from one row of a chart to the next
_NAMES = 118  # units for the names of rows

Ticks = Sequence[tuple[float, str]]
Row = tuple[str, float, tuple[float, float] | None]
"""Name, value, and the interval around it."""


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    alt: str,
    xticks: Ticks | None = None,
) -> str:
    """Lines over one axis.

    Args:
        series: name -> (x, y) of equal length, finite.
        xlabel: what x is, with its unit.
        ylabel: what y is, with its unit.
        alt: the words for those who do not see it.
        xticks: (x, label) of the marks; None: round numbers.
    """
    frame = _Frame(
        np.concatenate([np.asarray(x, float) for x, _ in series.values()] or [np.empty(0)]),
        np.concatenate([np.asarray(y, float) for _, y in series.values()] or [np.empty(0)]),
    )
    paths = [_path(frame, x, y, number) for number, (x, y) in enumerate(series.values())]
    return frame.svg("".join(paths), list(series), xlabel, ylabel, alt, xticks)


def histogram(
    edges: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    alt: str,
) -> str:
    """Histograms over the same bins: one as filled bars, several as outlines.

    Args:
        edges: (num_bins + 1,) of the bins.
        series: name -> (num_bins,) heights, >= 0.
        xlabel: what is counted over, with its unit.
        ylabel: what the heights are.
        alt: the words for those who do not see it.
    """
    tops = [np.asarray(heights, float) for heights in series.values()]
    frame = _Frame(np.asarray(edges, float), np.concatenate([*tops, [0.0]]))
    paths = []
    for number, heights in enumerate(series.values()):
        x = np.repeat(np.asarray(edges, float), 2)
        y = np.concatenate([[0.0], np.repeat(np.asarray(heights, float), 2), [0.0]])
        paths.append(_path(frame, x, y, number, is_filled=len(series) == 1))
    return frame.svg("".join(paths), list(series), xlabel, ylabel, alt, None)


def dots(rows: Sequence[Row], *, xlabel: str, alt: str, reference: float | None = None) -> str:
    """A value a row, as a dot on the line of its interval.

    Args:
        rows: from the top.
        xlabel: what the values are, with their unit.
        alt: the words for those who do not see it.
        reference: a value that gets a line of its own, such as chance.
    """
    ends = [end for _, value, interval in rows for end in (value, *(interval or ()))]
    low, high = _limits(np.array([*ends, *([] if reference is None else [reference])], float))
    left, right, top = _NAMES + 6, WIDTH - 42, 8
    bottom = top + _ROW * len(rows)

    def place(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    marks, shapes = [f"M{left} {bottom}H{right}"], []
    for tick in round_ticks(low, high, 5):
        marks.append(f"M{place(tick):.1f} {top}V{bottom}")
        shapes.append(_text(place(tick), bottom + 14, f"{tick:g}", "middle"))
    if reference is not None:
        at = place(reference)
        shapes.append(
            f'<path d="M{at:.1f} {top}V{bottom}" stroke="currentColor" stroke-dasharray="3 3">'
            "</path>"
        )
    for number, (name, value, interval) in enumerate(rows):
        y = top + _ROW * number + 7.5
        if interval:
            start, end = map(place, interval)
            shapes.append(
                f'<path d="M{start:.1f} {y}H{max(end, start + 0.5):.1f}" '
                'style="stroke:var(--c0)" stroke-width="4" stroke-opacity=".4"></path>'
            )
        shapes.append(
            f'<circle cx="{place(value):.1f}" cy="{y}" r="3.2" style="fill:var(--c0)"></circle>'
            + _text(right + 6, y + 4, f"{value:.3f}")
            + _row_name(name, y + 4)
        )
    shapes.append(_text((left + right) / 2, bottom + 30, xlabel, "middle"))
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom + 36}" role="img" aria-label="{escape(alt)}">'
        f'<path d="{"".join(marks)}" stroke="currentColor" stroke-opacity=".22"></path>'
        f"{''.join(shapes)}</svg>"
    )


def shades(
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    end: float,
    xlabel: str,
    alt: str,
) -> str:
    """Rows of cells that are the fuller of colour the nearer their value is to 1: a taggram.

    Args:
        names: of the rows, from the top.
        values: 0 to 1, as many a row.
        end: where the last column ends on the axis below; the first starts at 0.
        xlabel: what that axis is, with its unit.
        alt: the words for those who do not see it.
    """
    left, right, top = _NAMES + 6, WIDTH - _RIGHT, 4
    bottom = top + _ROW * len(names)
    parts = []
    for number, (name, row) in enumerate(zip(names, values, strict=True)):
        y = top + _ROW * number
        width = (right - left) / max(1, len(row))
        parts += [
            f'<rect class="cell" x="{left + width * column:.1f}" y="{y}" width="{width:.1f}" '
            f'height="{_ROW - 1}" fill-opacity="{value:.2f}"></rect>'
            for column, value in enumerate(row)
        ]
        parts.append(_row_name(name, y + 11))
    marks = [f"M{left} {top}H{right}V{bottom}H{left}Z"]
    for tick in round_ticks(0.0, end, 6):
        at = left + (right - left) * tick / end
        marks.append(f"M{at:.1f} {bottom}v4")
        parts.append(_text(at, bottom + 16, f"{tick:g}", "middle"))
    parts.append(_text((left + right) / 2, bottom + 31, xlabel, "middle"))
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom + 36}" role="img" aria-label="{escape(alt)}">'
        f'<path d="{"".join(marks)}" fill="none" stroke="currentColor" stroke-opacity=".3"></path>'
        f"{''.join(parts)}</svg>"
    )


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most ``most`` round numbers (1, 2 or 5 times a power of ten) from low to high."""
    assert high > low and most >= 2, (low, high, most)
    rough = (high - low) / (most - 1)
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * size for size in (1, 2, 5, 10) if power * size >= rough * (1 - 1e-9))
    first, last = np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9)
    return [
        float(step * number) + 0.0 for number in np.arange(first, last + 1)
    ]  # -0.0 + 0.0 is 0.0


class _Frame:
    """The axes: from values to places on the drawing."""

    def __init__(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        self.x_low, self.x_high = _limits(x)
        low, high = _limits(y)
        # Heights start on the axis itself; lines get air on both sides.
        room = 0.06 * (high - low)
        self.y_low, self.y_high = (low if low == 0 else low - room), high + room

    def x(self, values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        share = (np.asarray(values, float) - self.x_low) / (self.x_high - self.x_low)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        share = (np.asarray(values, float) - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    def svg(
        self,
        paths: str,
        names: list[str],
        xlabel: str,
        ylabel: str,
        alt: str,
        xticks: Ticks | None,
    ) -> str:
        if xticks is None:
            xticks = [(x, f"{x:g}") for x in round_ticks(self.x_low, self.x_high)]
        yticks = [(y, f"{y:g}") for y in round_ticks(self.y_low, self.y_high, 5)]
        bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
        marks = [f"M{_LEFT} {bottom}H{right}"]
        texts = [
            _text(_LEFT - 40, 14, ylabel),
            _text((_LEFT + right) / 2, HEIGHT - 5, xlabel, "middle"),
        ]
        for value, label in yticks:
            place = float(self.y([value])[0])
            marks.append(f"M{_LEFT} {place:.1f}H{right}")
            texts.append(_text(_LEFT - 5, place + 4, label, "end"))
        for value, label in xticks:
            place = float(self.x([value])[0])
            marks.append(f"M{place:.1f} {bottom}v4")
            texts.append(_text(place, bottom + 16, label, "middle"))
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alt)}">'
            f'<path d="{"".join(marks)}" stroke="currentColor" stroke-opacity=".22"></path>'
            f"{paths}{''.join(texts)}{_legend(names)}</svg>"
        )


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    assert np.isfinite(values).all(), "what is not finite has no place on a plot"
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low, low + max(1.0, abs(low) * 0.01))


def _path(
    frame: _Frame,
    x: Sequence[float] | NDArray[np.float64],
    y: Sequence[float] | NDArray[np.float64],
    number: int,
    *,
    is_filled: bool = False,
) -> str:
    points = " ".join(
        f"{a:.1f},{b:.1f}" for a, b in zip(frame.x(x).tolist(), frame.y(y).tolist(), strict=True)
    )
    fill = f"var(--c{number % 4})" if is_filled else "none"
    return (
        f'<polyline points="{points}" style="stroke:var(--c{number % 4});fill:{fill}" '
        f'fill-opacity=".35" stroke-width="1.7" stroke-dasharray="{_dash(number)}">'
        "</polyline>"
    )


def _legend(names: list[str]) -> str:
    """From the right edge to the left, so that the y label keeps the left corner."""
    if len(names) < 2:
        return ""
    parts, right = [], float(WIDTH - _RIGHT)
    for number in reversed(range(len(names))):
        start = right - _LETTER * len(names[number])
        parts.append(
            f'<path d="M{start - 26:.1f} 10h22" style="stroke:var(--c{number % 4})" '
            f'stroke-width="1.7" stroke-dasharray="{_dash(number)}"></path>'
            + _text(start, 14, names[number])
        )
        right = start - 36
    return "".join(parts)


def _row_name(name: str, y: float) -> str:
    """The name of a row, right-aligned; what does not fit is shown by the browser on hovering."""
    most = int(_NAMES / 5.8)
    shown = name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
    whole = f"<title>{escape(name)}</title>" if shown != name else ""
    return (
        f'<text class="row" x="{_NAMES}" y="{y:.1f}" text-anchor="end">{whole}{escape(shown)}'
        "</text>"
    )


def _dash(number: int) -> str:
    """With the four colours, sixteen series that all differ."""
    return _DASHES[(number + number // 4) % 4]


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
