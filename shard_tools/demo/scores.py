"""Scores from music21's corpus -> notes, part by part.

music21 takes two seconds to import and is needed only where a score is read, so
it is imported there. The scores are of mixed licences: they are read where the
user installed them, and none is copied.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from shard_tools.demo.notes import Notes, end_of, to_notes

# What is read of the corpus: (folder, ending, largest file in bytes). Larger files
# take more than a second to parse (a Beethoven quartet: 15 s), so they are left out.
Sources = tuple[tuple[str, str, int], ...]
COLLECTIONS: Mapping[str, Sources] = {
    "chorale": (("bach", ".mxl", 12_000),),
    "quartet": (
        ("haydn", ".mxl", 16_000),
        ("mozart/k80", ".mxl", 16_000),
        ("mozart/k155", ".mxl", 16_000),
        ("mozart/k156", ".mxl", 16_000),
        ("mozart/k458", ".mxl", 21_000),
        ("schumann_robert/opus41no1", ".mxl", 18_000),
        ("beethoven/opus18no1", ".mxl", 16_000),
    ),
    "motet": (("palestrina", ".krn", 6_000), ("monteverdi", ".mxl", 12_000)),
    "medieval": (("trecento", ".xml", 330_000),),
    "fiddle": (("ryansMammoth", ".abc", 10_000),),
    "piano": (
        ("schumann_clara", ".mxl", 18_000),
        ("joplin", ".mxl", 23_000),
        ("mozart/k545", ".mxl", 18_000),
        ("chopin", ".krn", 18_000),
    ),
}
# The larger sets have use for more quartets and piano music, and the patience for longer ones.
# No file is in two collections: a score is on one shelf only.
LARGE_COLLECTIONS: Mapping[str, Sources] = {
    **COLLECTIONS,
    "quartet": (
        ("haydn", ".mxl", 31_000),
        ("mozart/k80", ".mxl", 16_000),
        ("mozart/k155", ".mxl", 19_000),
        ("mozart/k156", ".mxl", 16_000),
        ("mozart/k458", ".mxl", 38_000),
        ("schumann_robert/opus41no1", ".mxl", 45_000),
        ("beethoven/opus18no1", ".mxl", 41_000),
        ("beethoven/opus59no2", ".mxl", 45_000),
    ),
    "piano": (
        *COLLECTIONS["piano"],
        ("cpebach", ".mxl", 40_000),
        ("handel", ".mxl", 8_000),
        ("verdi", ".mxl", 8_000),
    ),
}
# The shelves of the larger sets, in shares of each collection.
SHELVES = {"train": 0.55, "valid": 0.1, "test": 0.2, "stranger": 0.15}
MIN_NOTES_PER_PART = 12
MIN_BEATS = 16.0
MAX_PARTS = 5


@dataclass(frozen=True, slots=True)
class Score:
    """One piece of the corpus.

    Attributes:
        title: from the file's name.
        parts: notes of each part, highest first as in the score.
        bar_beats: length of a bar in beats, from the first time signature.
        num_beats: length of the piece in beats.
    """

    title: str
    parts: tuple[Notes, ...]
    bar_beats: float
    num_beats: float


@cache
def _corpus_dir() -> Path:
    # find_spec does not import the package, which would cost two seconds here.
    spec = importlib.util.find_spec("music21")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "corpus"


@cache
def score_files(collection: str, sources: Sources) -> tuple[Path, ...]:
    """The files of a collection, sorted, so that the order is the same everywhere."""
    root = _corpus_dir()
    files = [
        path
        for folder, ending, max_bytes in sources
        for path in sorted((root / folder).rglob(f"*{ending}"))
        if path.stat().st_size <= max_bytes
    ]
    assert files, f"music21 has no scores for {collection!r} in {root}"
    return tuple(files)


@cache
def shelf(collection: str, files: tuple[Path, ...], name: str) -> tuple[Path, ...]:
    """The part of a collection that one of SHELVES holds, at least one file.

    Which file stands where is drawn once and for all, not per seed: what another set was
    trained on stays on its own shelf.
    """
    order = np.random.default_rng([*collection.encode()]).permutation(len(files))
    ends = np.cumsum([max(1, round(share * len(files))) for share in SHELVES.values()][1:])
    # Train comes last and takes what the others leave.
    cuts = dict(zip([*SHELVES][1:], zip([0, *ends[:-1]], ends, strict=True), strict=True))
    start, end = cuts.get(name, (ends[-1], len(files)))
    assert name in SHELVES and start < end, (collection, name, len(files))
    return tuple(files[i] for i in sorted(order[start:end].tolist()))


def pick_score(files: Sequence[Path], number: int, seed: int, style: str) -> Score:
    """The ``number``-th score of some files, in an order of the style's own.

    Files that cannot be parsed or are too short are passed over. Within a style no score
    comes twice before every other one has come (but for stand-ins for a bad one).
    """
    order = np.random.default_rng([seed, *style.encode()]).permutation(len(files))
    for attempt in range(len(files)):
        score = read_score(files[order[(number + attempt) % len(files)]])
        if score is not None:
            return score
    raise AssertionError(f"no usable score among {len(files)} files such as {files[0]}")


def read_score(path: Path) -> Score | None:
    """Reads one score; None when it has too little in it or music21 cannot parse it.

    Costs 0.05 s (fiddle tune) to 0.7 s (quartet movement).
    """
    from music21 import converter, stream

    reader = converter.Converter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the corpus has its own oddities; they are not the user's
        try:
            # Not corpus.parse: that reads and writes pickles in the temporary folder.
            reader.parseFileNoPickle(path)
        except Exception:  # music21 raises whatever its parsers raise
            return None
    score: Any = reader.stream
    if isinstance(score, stream.Opus):
        score = score.scores[0]
    parts = tuple(p for p in map(_part_notes, score.parts) if len(p) >= MIN_NOTES_PER_PART)
    num_beats = max(map(end_of, parts), default=0.0)
    if num_beats < MIN_BEATS:
        return None
    meters = list(score.recurse().getElementsByClass("TimeSignature"))
    bar_beats = float(meters[0].barDuration.quarterLength) if meters else 4.0
    return Score(_title(path), parts[:MAX_PARTS], bar_beats, num_beats)


def _part_notes(part: Any) -> Notes:
    """One part -> notes. Chord symbols and grace notes have no length and are left out."""
    return to_notes(
        (float(event.offset), float(event.quarterLength), float(pitch.midi))
        for event in part.flatten().notes
        if event.quarterLength > 0
        for pitch in event.pitches
    )


def _title(path: Path) -> str:
    """``haydn/opus1no1/movement1.mxl`` -> ``Haydn Opus1no1 Movement1``."""
    names = path.relative_to(_corpus_dir()).with_suffix("").as_posix()
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z0-9]+", " ", names).split()
    return " ".join(word[0].upper() + word[1:] for word in words)
