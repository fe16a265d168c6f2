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

Ticks = Sequence[tuple[float, str]]


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
        f'fill-opacity=".35" stroke-width="1.7" stroke-dasharray="{_DASHES[number % 4]}">'
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
            f'stroke-width="1.7" stroke-dasharray="{_DASHES[number % 4]}"></path>'
            + _text(start, 14, names[number])
        )
        right = start - 36
    return "".join(parts)


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
