"""The clips that a report shows: which, what the shards hold of them, and their audio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstag.data.samples import Source
from mstag.data.store import Store
from mstag.show.page import Audio
from mstag.training.report_read import Run, Scores

MOST_CLIPS = 12
NUM_WORST = 8
"""Of these; the others lead from there to the best."""
MOST_AUDIO_BYTES = 9_000_000
"""Of all clips together: 12 MB on the page, where every 3 bytes are 4 letters."""
MOST_FILE_BYTES = 3_000_000
MEDIA_TYPES = {
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".oga": "audio/ogg",
    ".opus": "audio/ogg",
    ".wav": "audio/wav",
    ".m4a": "audio/mp4",
    ".aac": "audio/aac",
}


@dataclass(slots=True)
class Clip:
    """A clip of the scored split, and what could be had of it."""

    row: int
    """In the scores."""
    loss: float
    samples: list[int] = field(default_factory=list)
    """Its numbers in the shards, in order."""
    meta: dict[str, Any] = field(default_factory=dict)
    mel: NDArray[np.float16] | None = None
    """(n_mels, num_frames) of its first sample."""


def choose(scores: Scores) -> list[Clip]:
    """The worst clips, then some on the way to the best; by their mean cross-entropy.

    Of the worst, one of each set of tags: clips of one track are often wrong in the same way.
    """
    p = np.clip(scores.scores.astype(np.float64), 1e-7, 1 - 1e-7)
    losses = -np.where(scores.labels == 1, np.log(p), np.log1p(-p))
    known = np.ones(losses.shape) if scores.mask is None else scores.mask.astype(float)
    num_known = known.sum(axis=1)
    rows = np.flatnonzero(num_known)
    means = (losses * known).sum(axis=1)[rows] / num_known[rows]
    order = [int(n) for n in np.argsort(-means, kind="stable")]
    places: list[int] = []
    seen: set[bytes] = set()
    for place, n in enumerate(order):
        kind = scores.labels[rows[n]].tobytes()
        if kind not in seen:
            seen.add(kind)
            places.append(place)
        if len(places) == NUM_WORST:
            break
    behind = range(max(places, default=-1) + 1, len(order))
    steps = np.linspace(0, len(behind) - 1, MOST_CLIPS - NUM_WORST + 1)[1:]
    places += sorted({behind[int(step)] for step in steps} if behind else ())
    return [Clip(int(rows[order[n]]), float(means[order[n]])) for n in places]


def find(clips: Sequence[Clip], run: Run, store: Store) -> list[str]:
    """Looks the clips up in shards, fills them in, and returns what went wrong.

    A clip whose labels are others than those that were scored is not the same clip.
    """
    assert run.scores is not None
    scores, manifest = run.scores, store.manifest
    if manifest.tag_names != run.tag_names or scores.split not in manifest.splits:
        return [f"The shards {store.name} have other tags or splits than what was scored."]
    wanted = {scores.ids[clip.row]: clip for clip in clips}
    others = 0
    try:
        with Source(store, scores.split) as source:
            for number in range(len(source)):
                clip = wanted.get(source.clip_id(number))
                if clip is None:
                    continue
                stored = source.read(number)
                if not np.array_equal(stored.tags, scores.labels[clip.row]):
                    others += 1
                elif not clip.samples:
                    clip.meta, clip.mel = stored.meta, stored.mel.copy()
                clip.samples.append(number)
    except (ValueError, OSError) as error:
        return [f"The shards could not be read: {error}"]
    if others:
        return [
            f"{others} samples of the shards {store.name} have other labels than the clips "
            "that were scored, and are not shown."
        ]
    return []


def audio_of(meta: Mapping[str, Any], data: Path, budget: int) -> Audio | str | None:
    """A clip's audio file, or why it is not on the page; None where nothing is known of it."""
    path = meta.get("path")
    if not isinstance(path, str) or not path:
        return None
    suffix = Path(path).suffix.lower()
    if suffix not in MEDIA_TYPES:
        return f"{path}: browsers do not play it."
    try:
        whole = (data / path).resolve()
        # Shards may be somebody else's, and a page is sent around.
        if not whole.is_relative_to(data.resolve()):
            return f"{path}: lies outside {data} and is not shown."
        num_bytes = whole.stat().st_size
        if not whole.is_file() or num_bytes > min(MOST_FILE_BYTES, budget):
            return f"{path}: with {num_bytes / 1e6:.1f} MB too large for this page."
        content = whole.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "unreadable"
        return f"{path}: not in {data} ({reason})."
    return Audio(content, MEDIA_TYPES[suffix], f"Play {path}")
