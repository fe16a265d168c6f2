"""The section of a report that lets one hear and see what the model got wrong."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstag.data.store import Store
from mstag.show import plots, vector
from mstag.show.page import (
    Audio,
    Drawing,
    Facts,
    Fold,
    Grid,
    Item,
    Picture,
    Points,
    Section,
)
from mstag.show.wording import listed, percent
from mstag.training.report_clips import (
    MOST_AUDIO_BYTES,
    NUM_WORST,
    Clip,
    audio_of,
    choose,
    find,
)
from mstag.training.report_read import Run

NUM_PARTS = 10
"""Of a sample, in a taggram."""
NUM_ROWS = 8
"""Tags of a taggram."""


@dataclass(frozen=True, slots=True)
class Hearing:
    """What lets a model hear parts of a clip."""

    model: Any
    """The network of the best bundle, on the CPU."""
    tag_names: list[str]


def listen(
    runs: Sequence[Run], store: Store | None, data: Path | None, notes: Sequence[str]
) -> Section:
    """Some clips of the first scored run: what they are, what the model says, how they sound.

    Args:
        runs: of the report.
        store: shards of the runs' dataset.
        data: the folder of its audio files.
        notes: why ``store`` is None, how to have one.
    """
    run = next((run for run in runs if run.scores), None)
    if run is None or run.scores is None:
        words = "Clips are shown when the scores of each clip are there: `python eval.py RUN`."
        return Section("Listen", [words])
    scores = run.scores
    clips = choose(scores)
    said = [] if store is None else find(clips, run, store)
    hints = list(notes)
    budget = MOST_AUDIO_BYTES
    content: list[Item] = []
    hearing = _hearing(run, said) if any(clip.mel is not None for clip in clips) else None
    for number, clip in enumerate(clips):
        audio = audio_of(clip.meta, data, budget) if data else None
        if isinstance(audio, Audio):
            budget -= len(audio.content)
        inner: list[Item] = [audio] if audio else []
        if pictures := _pictures(run, clip, store, hearing):
            inner.append(Grid(pictures))
        inner.append(Facts(_facts(runs, run, clip)))
        content.append(Fold(_summary(run, clip), inner, is_open=number < 3))
    if data is None:
        hints.append(
            "To hear the clips, name the folder of the audio files: `mstag report RUN "
            "--data DIR`. The page then holds them, so mind whom you send it to."
        )
    elif not any(clip.meta.get("path") for clip in clips):
        hints.append(
            "Where the clips' audio files are stands in the shards; without these, or in "
            "shards of others, nothing can be played."
        )
    intro = (
        f"Clips of {scores.split}{f' as {run.name} hears them' if len(runs) > 1 else ''}: the "
        f"{min(NUM_WORST, len(clips))} on which its scores are worst (highest cross-entropy; one "
        "of each set of tags), then some on the way to the best. A tag is given from its "
        "threshold on"
        + ("." if run.thresholds is not None else ", here 0.5 for each: there is no best bundle.")
    )
    return Section("Listen", [intro, *_said(said), *hints, *content])


def excerpt_scores(model: Any, mel: NDArray[np.float16], num_parts: int) -> NDArray[np.float32]:
    """What a model says of each part of a sample, (num_parts, t), 0 to 1.

    It hears a part over and over until its window is full: it knows nothing shorter.

    Args:
        model: a network.
        mel: (n_mels, num_frames).
        num_parts: of equal length.
    """
    import torch

    from mstag.models import frames_at_once
    from mstag.models.predict import predict

    edges = np.linspace(0, mel.shape[1], num_parts + 1).astype(int)
    frames = [
        np.resize(np.arange(a, b), frames_at_once(model)) for a, b in itertools.pairwise(edges)
    ]
    batch = np.stack([mel[:, rows] for rows in frames])[:, None]
    labels = torch.zeros(num_parts, 1, dtype=torch.uint8)
    batches = [{"mel": torch.from_numpy(batch), "tags": labels, "id": [""] * num_parts}]
    return predict(model, batches, torch.device("cpu")).scores


def _hearing(run: Run, said: list[str]) -> Hearing | None:
    try:
        from mstag.models.bundle import load_bundle

        bundle = load_bundle(run.folder / "best")
    except ImportError:
        said.append("Taggrams need torch, which is not installed here.")
        return None
    except ValueError as error:
        said.append(f"There are no taggrams: {error}")
        return None
    if bundle.tag_names != run.tag_names:
        said.append("There are no taggrams: the best bundle has other tags than what was scored.")
        return None
    return Hearing(bundle.model, bundle.tag_names)


def _given(run: Run, row: int) -> NDArray[np.bool_]:
    assert run.scores is not None
    thresholds = run.thresholds
    limits = np.full(len(run.tag_names), 0.5) if thresholds is None else thresholds
    return np.asarray(run.scores.scores[row] >= limits)


def _facts(runs: Sequence[Run], run: Run, clip: Clip) -> dict[str, str]:
    """Who made it, what it bears, what each run gives it."""
    assert run.scores is not None
    names, scores = run.tag_names, run.scores
    true = scores.labels[clip.row].astype(bool)
    known = np.ones(len(names), bool) if scores.mask is None else scores.mask[clip.row] > 0
    facts = {
        word: str(clip.meta[key])
        for key, word in (("artist", "Artist"), ("album", "Album"), ("track", "Track"))
        if clip.meta.get(key)
    }
    facts["Bears"] = listed([names[n] for n in np.flatnonzero(true & known)]) if true.any() else "-"
    if not known.all():
        facts["Unknown"] = f"{int((~known).sum())} of {len(names)} labels"
    clip_id = scores.ids[clip.row]
    for other in runs:
        if other.scores is None or other.tag_names != names or clip_id not in other.scores.ids:
            continue
        row = other.scores.ids.index(clip_id)
        values = other.scores.scores[row]
        given = np.flatnonzero(_given(other, row))
        words = [
            f"{names[n]} {values[n]:.2f}{'' if true[n] or not known[n] else ' (wrong)'}"
            for n in given[np.argsort(-values[given], kind="stable")]
        ]
        missed = np.flatnonzero(true & known & ~_given(other, row))
        facts["Given" if len(runs) == 1 else f"Given by {other.name}"] = ", ".join(words) or "none"
        if len(missed):
            word = "Missed" if len(runs) == 1 else f"Missed by {other.name}"
            facts[word] = ", ".join(f"{names[n]} {values[n]:.2f}" for n in missed)
    return facts


def _summary(run: Run, clip: Clip) -> str:
    assert run.scores is not None
    scores, names = run.scores, run.tag_names
    known = np.ones(len(names), bool) if scores.mask is None else scores.mask[clip.row] > 0
    true, given = scores.labels[clip.row].astype(bool), _given(run, clip.row)
    parts = []
    for word, wrong in (("missed", true & ~given), ("wrongly given", given & ~true)):
        found = [names[n] for n in np.flatnonzero(wrong & known)]
        if found:
            parts.append(f"{word} {listed(found, most=4)}")
    loss = f"cross-entropy {clip.loss:.2f}"
    return f"Clip {scores.ids[clip.row]}: {'; '.join(parts) or 'no mistake'} ({loss})"


def _pictures(run: Run, clip: Clip, store: Store | None, hearing: Hearing | None) -> list[Item]:
    """Its spectrogram and its taggram."""
    if clip.mel is None or store is None:
        return []
    assert run.scores is not None
    features = store.manifest.features
    is_power = features.recipe != "unknown"
    span = 80.0 / (10 / np.log(10)) if is_power else None
    more = len(clip.samples) - 1
    first = f"; the first of its {more + 1} samples" if more else ""
    picture = Picture(
        plots.thumbnail(clip.mel, span=span),
        f"Spectrogram of clip {run.scores.ids[clip.row]}",
        f"Spectrogram: time to the right, pitch upwards{first}.",
    )
    if hearing is None:
        return [picture]
    heard = excerpt_scores(hearing.model, clip.mel, NUM_PARTS)
    if not np.isfinite(heard).all():
        return [picture]
    rows = np.argsort(-heard.max(axis=0), kind="stable")[:NUM_ROWS]
    end = clip.mel.shape[1] * (features.frame_s if is_power else 1.0)
    svg = vector.shades(
        [hearing.tag_names[n] for n in rows],
        heard[:, rows].T.tolist(),
        end=end,
        xlabel="seconds" if is_power else "frames",
        alt="Taggram: "
        + ", ".join(
            f"{hearing.tag_names[n]} up to {percent(float(heard[:, n].max()))}" for n in rows
        ),
    )
    words = f"Taggram: what the model says when it hears each {end / NUM_PARTS:.3g}"
    unit = "s" if is_power else "frames"
    return [picture, Drawing(svg, f"{words} {unit} alone, over and over.")]


def _said(said: Sequence[str]) -> list[Item]:
    return [Points([(True, words) for words in dict.fromkeys(said)])] if said else []
