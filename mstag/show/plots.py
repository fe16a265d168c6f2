"""Arrays -> plots, as PNG bytes: spectrogram, thumbnail, tag bars, curves, taggram.

Colours are of one colour-blind-safe family (Okabe and Ito, 2008); the background is white, so
that a plot is readable on a dark page as well.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8A8A8A"
LINE_COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DPI = 110
MAX_ROWS, MAX_COLUMNS, NUM_COLOURS = 80, 240, 32
"""Of thumbnails: some 7 KB each."""
MAX_COLOURS = 128
"""Of the other plots, whose lines and letters need fewer: a third of the bytes, and the time."""
MAX_LETTERS = 40
"""Of a tag's name beside its row."""
LETTER_IN = 0.008
"""Width of a letter in inches, for each point of its size."""

Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines over one axis: name -> (x, y) of equal length."""

    lines: Lines
    xlabel: str
    """What x is, with its unit."""
    ylabel: str
    title: str = ""
    legend: Literal["upper left", "upper right", "lower left", "lower right"] = "upper right"
    """The corner that the lines leave free; to look for it costs as much as drawing them."""


def spectrogram(mel: NDArray[Any], *, frame_s: float, title: str = "") -> bytes:
    """A log-mel spectrogram.

    Args:
        mel: (n_mels, num_frames), natural log of power.
        frame_s: seconds from one frame to the next.
        title: above the plot.
    """
    figure, axes = _figure(width_in=9, height_in=3)
    values = np.asarray(mel, np.float32)
    # Padding and digital silence lie 40 units below music; a window of 80 dB shows the music.
    top = float(values.max())
    image = axes.imshow(
        values * (10 / np.log(10)),
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(0, values.shape[1] * frame_s, 0, values.shape[0]),
        vmin=top * (10 / np.log(10)) - 80,
    )
    axes.set(xlabel="time (s)", ylabel="mel band", title=title)
    figure.colorbar(image, ax=axes, label="power (dB)")
    return _png(figure)


def thumbnail(mel: NDArray[Any], *, span: float | None = None) -> bytes:
    """A spectrogram alone, small: no axes, one pixel a few frames wide and bands high.

    Args:
        mel: (n_mels, num_frames), in any unit; what is not finite counts as the least.
        span: from the brightest to black, in the unit of ``mel``; None: as far as the values go.
    """
    values = np.asarray(mel, np.float64)
    is_finite = np.isfinite(values)
    values = np.where(is_finite, values, values[is_finite].min() if is_finite.any() else 0.0)
    values = _shrink(_shrink(values, MAX_ROWS).T, MAX_COLUMNS).T[::-1]
    # The loudest thousandth is cut: one click would turn the rest dark.
    top = float(np.quantile(values, 0.999))
    span = span or max(top - float(values.min()), 1e-9)
    levels = np.clip((values - top) / span + 1, 0, 1) * (NUM_COLOURS - 1)
    return _palette_png(np.rint(levels).astype(np.uint8))


def tag_bars(per_tag: Sequence[Mapping[str, Any]], *, title: str = "") -> bytes:
    """ROC-AUC per tag with 95% intervals, best first; undefined tags are listed below.

    Args:
        per_tag: entries of an eval report: tag, positives, roc_auc, roc_auc_ci.
        title: above the plot.
    """
    scored = sorted((t for t in per_tag if t["roc_auc"] is not None), key=lambda t: t["roc_auc"])
    unscored = [t["tag"] for t in per_tag if t["roc_auc"] is None]
    names = [f"{t['tag']} ({t['positives']})" for t in scored]
    note = f"\nno score: {', '.join(unscored)}" if unscored else ""
    figure, axes = _figure(
        width_in=7,
        height_in=1.4 + 0.19 * len(scored),
        margins_in=(_names_in(names, 7), 0.15, 0.35, 0.7 if note else 0.5),
    )
    rows = np.arange(len(scored))
    values = np.array([t["roc_auc"] for t in scored], float)
    axes.axvline(0.5, color=GREY, linewidth=1)
    for row, entry in zip(rows, scored, strict=True):
        if entry.get("roc_auc_ci"):
            axes.plot(entry["roc_auc_ci"], [row, row], color=BLUE, linewidth=2, alpha=0.4)
    axes.plot(values, rows, "o", color=BLUE, markersize=4)
    _name_rows(axes, names, 7)
    axes.set_ylim(-1, max(len(scored), 1))
    lows = [t["roc_auc_ci"][0] for t in scored if t.get("roc_auc_ci")]
    axes.set_xlim(min([0.48, *values, *lows]) - 0.02, 1.01)
    axes.grid(axis="x", alpha=0.25)
    axes.set(
        xlabel=f"ROC-AUC{', with 95% interval' if lows else ''}; 0.5 is chance{note}",
        title=title or "Tags (positives)",
    )
    return _png(figure)


def curves(panels: Sequence[Panel]) -> bytes:
    """Panels of lines, two in a row."""
    num_rows = max(1, -(-len(panels) // 2))
    num_columns = min(2, max(1, len(panels)))
    width_in, height_in = 5.2 * num_columns, 3.5 * num_rows
    figure = _bare_figure(width_in, height_in)
    for number, panel in enumerate(panels):
        row, column = divmod(number, 2)
        left, bottom = 5.2 * column + 0.65, 3.5 * (num_rows - 1 - row) + 0.55
        axes = figure.add_axes(
            (left / width_in, bottom / height_in, 4.4 / width_in, 2.55 / height_in)
        )
        _draw_lines(_without_frame(axes), panel)
    return _png(figure)


def taggram(
    scores: NDArray[Any], tag_names: Sequence[str], *, window_s: float, top: int = 15
) -> bytes:
    """Tags over time: a row per tag, a column per window, the strongest tags on top.

    Args:
        scores: (num_windows, n_tags), 0 to 1.
        tag_names: in vector order.
        window_s: seconds from one window to the next.
        top: how many tags to show.
    """
    values = np.asarray(scores, np.float32)
    order = np.argsort(-values.mean(axis=0), kind="stable")[:top]
    figure, axes = _figure(width_in=9, height_in=1.3 + 0.23 * len(order))
    image = axes.imshow(
        values[:, order].T,
        aspect="auto",
        cmap="magma",
        vmin=0,
        vmax=1,
        extent=(0, len(values) * window_s, len(order), 0),
        interpolation="nearest",
    )
    axes.set_yticks(np.arange(len(order)) + 0.5, [tag_names[i] for i in order], fontsize=8)
    axes.set(xlabel="time (s)")
    figure.colorbar(image, ax=axes, label="score")
    return _png(figure)


def heat_map(
    shares: NDArray[Any], names: Sequence[str], *, xlabel: str, ylabel: str, label: str
) -> bytes:
    """A square of shares, a row and a column per name; what is undefined is grey.

    Args:
        shares: (n, n), 0 to 1, or NaN.
        names: of rows and columns.
        xlabel: what a column is.
        ylabel: what a row is.
        label: what the shares are.
    """
    map_in, words_in = 1.0 + 0.13 * len(names), _names_in(names, 6)
    width_in, height_in = words_in + map_in + 1.0, words_in + map_in + 0.15
    figure = _bare_figure(width_in, height_in)
    left, bottom, width, height = (
        *(words_in / width_in, words_in / height_in),
        *(map_in / width_in, map_in / height_in),
    )
    axes = figure.add_axes((left, bottom, width, height))
    axes.set_facecolor("#BBBBBB")
    image = axes.imshow(np.asarray(shares, float), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    _name_rows(axes, names, 6)
    for number, name in enumerate(names):
        place: dict[str, Any] = {"ha": "center", "va": "top", "parse_math": False}
        place["transform"] = axes.get_xaxis_transform()
        axes.text(number, -0.01, name[:MAX_LETTERS], fontsize=6, rotation=90, **place)
    axes.set_xticks([])
    figure.text(left + width / 2, 0.1 / height_in, xlabel, ha="center")
    figure.text(0.1 / width_in, bottom + height / 2, ylabel, va="center", rotation=90)
    bar = figure.add_axes(
        (left + width + 0.15 / width_in, bottom + 0.2 * height, 0.15 / width_in, 0.6 * height)
    )
    figure.colorbar(image, cax=bar, label=label)
    return _png(figure)


def _draw_lines(axes: Axes, panel: Panel) -> None:
    for number, (name, (x, y)) in enumerate(panel.lines.items()):
        colour = LINE_COLOURS[number % len(LINE_COLOURS)]
        marker = "o" if len(x) <= 30 else ""
        axes.plot(x, y, color=colour, marker=marker, markersize=3.5, linewidth=1.6, label=name)
    axes.grid(alpha=0.25)
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel, title=panel.title)
    if len(panel.lines) > 1:
        legend = axes.legend(frameon=False, fontsize=8, loc=panel.legend)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a tag may hold a dollar


def _name_rows(axes: Axes, names: Sequence[str], size_pt: float) -> None:
    """Names beside the rows 0, 1, ...; as ticks, they would cost three times as much."""
    place: dict[str, Any] = {"ha": "right", "va": "center", "parse_math": False}
    place["transform"] = axes.get_yaxis_transform()
    for number, name in enumerate(names):
        axes.text(-0.01, number, name[:MAX_LETTERS], fontsize=size_pt, **place)
    axes.set_yticks([])


def _names_in(names: Sequence[str], size_pt: float) -> float:
    """Room in inches for names beside an axis, and for what the axis is called."""
    return 0.5 + LETTER_IN * size_pt * min(MAX_LETTERS, max(map(len, names), default=0))


def _figure(
    *,
    width_in: float,
    height_in: float,
    margins_in: tuple[float, float, float, float] | None = None,
) -> tuple[Figure, Axes]:
    """A figure and its axes; margins are (left, right, top, bottom), None: as they are needed.

    To find out what is needed costs as much as drawing.
    """
    figure = _bare_figure(width_in, height_in, "constrained" if margins_in is None else None)
    axes = figure.subplots()
    if margins_in is not None:
        left, right, top, bottom = margins_in
        figure.subplots_adjust(
            left=left / width_in,
            right=1 - right / width_in,
            top=1 - top / height_in,
            bottom=bottom / height_in,
        )
    return figure, _without_frame(axes)


def _bare_figure(width_in: float, height_in: float, layout: Any = None) -> Figure:
    from matplotlib.figure import Figure

    # Not pyplot: it keeps every figure alive and picks a window system.
    return Figure(figsize=(width_in, height_in), dpi=DPI, layout=layout)


def _without_frame(axes: Axes) -> Axes:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    # Not savefig(), which draws everything twice.
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())[:, :, :3]  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    few = Image.fromarray(pixels).quantize(MAX_COLOURS, method=Image.Quantize.FASTOCTREE)
    few.save(buffer, format="png")
    return buffer.getvalue()


def _shrink(values: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Means of adjacent rows, so that at most ``most`` are left; the last may be of fewer."""
    size = -(-len(values) // most)
    starts = np.arange(0, len(values), size)
    counts = np.diff(np.append(starts, len(values)))
    return np.asarray(np.add.reduceat(values, starts, axis=0) / counts[:, None])


def _palette_png(levels: NDArray[np.uint8]) -> bytes:
    """A PNG of NUM_COLOURS colours: a third of what matplotlib's RGBA takes.

    PNG specification (W3C, third edition): colour type 3, 8 bits, filter 0 in every row.
    """
    from matplotlib import colormaps

    colours = colormaps["magma"](np.linspace(0, 1, NUM_COLOURS), bytes=True)[:, :3]
    height, width = levels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), levels], axis=1)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0),
        b"PLTE": colours.tobytes(),
        b"IDAT": zlib.compress(rows.tobytes(), 9),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )
