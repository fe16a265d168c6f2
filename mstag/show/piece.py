"""A tagged piece -> a card of a page: bars, the taggram beside them, and a player that moves both.

The cards come to life with piece.js and look like something with piece.css; the words, numbers
and pictures are all here. Shapes: p parts of a piece, t tags.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from mstag.show.page import escape
from mstag.show.vector import round_ticks
from mstag.show.wording import count

NUM_SHOWN = 12
"""Tags on a card; the others are in its fold."""
LIMITS = "Scores are no probabilities, and music unlike its training music gets tags all the same."
DEMO_LIMITS = (
    "It learnt from synthesised demo music and is weak on real recordings: it shows that the "
    "chain works, not what music sounds like."
)
STYLE_FILE = Path(__file__).with_name("piece.css")
SCRIPT_FILE = Path(__file__).with_name("piece.js")


@dataclass(frozen=True, slots=True)
class Tagged:
    """All that a card shows of a piece."""

    name: str
    duration_s: float
    tag_names: Sequence[str]
    scores: NDArray[np.float32]
    """(t,), 0 to 1, of the whole piece."""
    over_time: NDArray[np.float32]
    """(p, t), 0 to 1, of its parts."""
    thresholds: Mapping[str, float]
    audio_url: str
    json: str
    """What can be downloaded: a line of JSON."""


def about(
    model: str,
    num_tags: int,
    dataset: Mapping[str, Any],
    scores: Mapping[str, Any],
    *,
    max_mb: int,
) -> str:
    """The top of the page: whose tags these are, what they are worth, what becomes of files.

    Args:
        model: what to call it.
        num_tags: it knows.
        dataset: as in a bundle.
        scores: as in a bundle.
        max_mb: largest upload, in 10^6 bytes.
    """
    name = str(dataset.get("name", "unknown"))
    is_demo = "demo" in (name, dataset.get("kind"))
    return (
        "<h1>Tag your music</h1>"
        f"<p>Model: <b>{escape(model)}</b>, {count(num_tags, 'tag')}, trained on "
        f"{escape(name)}; {escape(scores_in_words(scores))}. "
        f"{DEMO_LIMITS if is_demo else LIMITS}</p>"
        f'<p class="quiet">Drop audio files, several at once, of up to {max_mb} MB. They go to the '
        "machine that runs this page and nowhere else, and are kept until you clear the list or "
        "close the page, for a day at most. Space plays and pauses.</p>"
    )


def scores_in_words(scores: Mapping[str, Any]) -> str:
    """What a bundle says that it reached, its test scores if it has some."""
    named = {split: found for split, found in scores.items() if isinstance(found, dict)}
    if "roc_auc" in scores:
        named[str(scores.get("split", "unknown"))] = dict(scores)
    for split in ("test", "valid", *named):
        values = [
            f"{word} {named[split][key]:.3f}"
            for key, word in (("roc_auc", "ROC-AUC"), ("pr_auc", "PR-AUC"))
            if isinstance(named.get(split, {}).get(key), float)
        ]
        if values:
            return f"{' and '.join(values)} on its {split} split (0.5 is chance for the first)"
    return "nothing is recorded of its scores"


def card(piece: Tagged, card_id: str) -> str:
    """A piece with its player, its tags as bars and its taggram, highest scores on top."""
    order = np.argsort(-piece.scores, kind="stable")
    shown, rest = order[:NUM_SHOWN], order[NUM_SHOWN:]
    part_s = piece.duration_s / len(piece.over_time)
    more = (
        f"<details><summary>{count(len(rest), 'more tag')}</summary>"
        f"{_hearing(piece, rest)}</details>"
        if len(rest)
        else ""
    )
    return (
        _opening("piece tagged", card_id, piece.name, piece.duration_s)
        + f'<p class="quiet">{clock(piece.duration_s)} '
        + download("Download JSON", f"{Path(piece.name).stem or 'tags'}.json", piece.json)
        + "</p></header>"
        + f'<audio controls preload="metadata" aria-label="{escape(piece.name)}" '
        f'src="{escape(piece.audio_url)}"></audio>'
        '<p class="cannot" role="alert" hidden></p>'
        f"{_hearing(piece, shown)}"
        '<p class="quiet">Full colour: the score reaches the threshold that was best for this tag '
        "in validation. Tick: the score of the moment that plays. Over time: each "
        f"{_seconds(part_s)} heard alone, so it may say what the whole does not; click to go "
        "there.</p>"
        f"{more}</article>"
    )


def waiting_card(name: str, card_id: str, share: float | None) -> str:
    """A piece that is in line (``share`` None), or heard up to that share."""
    words = "waiting for its turn" if share is None else f"listening, {100 * share:.0f}%"
    bar = (
        f'<progress value="{share:.2f}" aria-label="{escape(name)}"></progress>'
        if share is not None
        else ""
    )
    opening = _opening("piece waiting", card_id, name)
    return f'{opening}<p class="quiet">{words}</p></header>{bar}</article>'


def failed_card(name: str, card_id: str, why: str) -> str:
    """A file that cannot be tagged: which, why, what to do."""
    return (
        f"{_opening('piece failed', card_id, name)}</header>"
        f"<p>Not tagged: {escape(why)}.</p>"
        '<p class="quiet">The other files are not touched by this. What can be tagged: wav, flac, '
        "mp3, ogg, opus, aiff, and m4a, aac, wma or webm where there is a decoder for them.</p>"
        "</article>"
    )


def summary(num_tagged: int, num_failed: int, num_waiting: int, lines: Sequence[str]) -> str:
    """How far it is with all pieces, and what can be downloaded of them all at once."""
    if not num_tagged + num_failed + num_waiting:
        return ""
    words = [f"{count(num_tagged, 'piece')} tagged"]
    words += [f"{num_failed} not"] * bool(num_failed)
    words += [f"{num_waiting} to go"] * bool(num_waiting)
    text = "".join(f"{line}\n" for line in lines)
    link = download("Download all (JSON lines)", "tags.jsonl", text) if len(lines) > 1 else ""
    return f"<p>{', '.join(words)}.{link}</p>"


def download(words: str, name: str, text: str) -> str:
    """A link that saves a text as a file; nobody is asked for it."""
    data = base64.b64encode(text.encode()).decode()
    return (
        f'<a class="download" download="{escape(name)}" '
        f'href="data:application/json;base64,{data}">{escape(words)}</a>'
    )


def shades_png(values: NDArray[np.float32]) -> bytes:
    """A picture of transparency alone: a pixel per value, the fuller the nearer it is to 1.

    As a mask it takes its colour from the page, light or dark.

    Args:
        values: (num_rows, num_columns), 0 to 1.
    """
    from PIL import Image

    alpha = np.rint(255 * values).astype(np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(np.stack([np.zeros_like(alpha), alpha], axis=2), "LA")
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def file_url(path: Path) -> str:
    """Where Gradio has a file, relative to the page."""
    return f"gradio_api/file={quote(path.as_posix())}"


def clock(seconds: float) -> str:
    """A length of time as players show it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _opening(kind: str, card_id: str, name: str, duration_s: float = 0.0) -> str:
    length = f' data-duration-s="{duration_s:.3f}"' if duration_s else ""
    return (
        f'<article class="{kind}" aria-labelledby="{card_id}-name"{length}>'
        f'<header><h2 id="{card_id}-name">{escape(name)}</h2>'
    )


def _hearing(piece: Tagged, tags: NDArray[np.intp]) -> str:
    """Bars of some tags, and their rows of the taggram at the same height."""
    over_time = piece.over_time[:, tags].T
    mask = base64.b64encode(shades_png(over_time)).decode()
    # What piece.js needs to say what is heard at a moment: a byte per row and part.
    data = base64.b64encode(np.rint(100 * over_time).astype(np.uint8).tobytes()).decode()
    names = [piece.tag_names[tag] for tag in tags]
    bars = "".join(
        _bar(name, float(piece.scores[tag]), piece.thresholds[name])
        for name, tag in zip(names, tags, strict=True)
    )
    labels = "".join(f"<li>{escape(name)}</li>" for name in names)
    ticks = "".join(
        f'<span style="left:{100 * tick / piece.duration_s:.2f}%">{clock(tick)}</span>'
        for tick in _ticks(piece.duration_s)
    )
    return (
        f'<div class="hearing" style="--rows:{len(names)}" data-scores="{data}" '
        f'data-parts="{len(piece.over_time)}">'
        f'<div class="whole"><h3>Whole piece</h3><ol class="bars">{bars}</ol></div>'
        '<div class="taggram"><h3>Over time</h3>'
        f'<ol class="names" aria-hidden="true">{labels}</ol>'
        '<div class="field" role="slider" tabindex="0" '
        f'aria-label="Place in {escape(piece.name)}" aria-valuemin="0" '
        f'aria-valuemax="{piece.duration_s:.1f}" aria-valuenow="0" aria-valuetext="0:00">'
        f'<div class="shades" style="--mask:url(\'data:image/png;base64,{mask}\')"></div>'
        f'<div class="cursor"></div></div><div class="axis" aria-hidden="true">{ticks}</div>'
        "</div></div>"
    )


def _bar(name: str, score: float, threshold: float) -> str:
    fits = score >= threshold
    title = (
        f"{name}: {score:.3f}, {'at or above' if fits else 'below'} its threshold {threshold:.3g}"
    )
    return (
        f'<li class="{"fits" if fits else "below"}" title="{escape(title)}">'
        f'<span class="tag">{escape(name)}</span>'
        f'<span class="bar" style="--score:{score:.4f}" aria-hidden="true"><i></i><b></b></span>'
        f'<span class="score">{score:.2f}</span></li>'
    )


def _ticks(duration_s: float) -> list[float]:
    """Some round times, none so near the end that its label would stick out."""
    if duration_s < 90:
        ticks = round_ticks(0, duration_s, 6)
        return [tick for tick in ticks if tick < 0.94 * duration_s and tick.is_integer()]
    step = next(
        (s for s in (30, 60, 120, 300, 600, 900, 1800, 3600) if duration_s / s <= 5), 3600.0
    )
    return [float(at) for at in np.arange(0, 0.94 * duration_s, step)]


def _seconds(part_s: float) -> str:
    return f"{part_s:.1f} s" if part_s < 10 else f"{part_s:.0f} s"
