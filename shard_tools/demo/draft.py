"""What a style is asked for (a brief) and what it hands back (a draft)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from shard_tools.demo import material
from shard_tools.demo.notes import Notes, end_of, onset_rate, to_notes
from shard_tools.demo.scores import COLLECTIONS, Score, pick_score, score_files

T = TypeVar("T")

# Tempo of procedural pieces, in beats a minute, and of scores, in heard onsets a second:
# a score's beat says little (a motet counts in breves, a reel in sixteenths).
BPM = {"slow": (46.0, 64.0), "medium": (88.0, 116.0), "fast": (142.0, 172.0)}
ONSETS_PER_S = {"slow": (1.1, 1.7), "medium": (2.6, 3.8), "fast": (5.6, 8.0)}


def no_hits() -> Notes:
    """Drum hits of a piece without drums."""
    return to_notes([])


@dataclass(frozen=True, slots=True)
class Voice:
    """One line of a draft: who plays what, and how loud against the first voice (dB)."""

    instrument: str
    notes: Notes
    level_db: float = 0.0


@dataclass(frozen=True, slots=True)
class Draft:
    """A piece on paper.

    Attributes:
        voices: the lead first; it is the one that never pauses.
        bpm: beats a minute.
        tags: true of the whole piece: its genre.
        hits: drum hits, see ``drums.beat``.
        title: of the score; "" where none was used.
        may_pause: whether other voices and drums may fall silent for a section.
    """

    voices: tuple[Voice, ...]
    bpm: float
    tags: frozenset[str]
    hits: Notes = field(default_factory=no_hits)
    title: str = ""
    may_pause: bool = False


def _whole_collection(collection: str) -> tuple[Path, ...]:
    return score_files(collection, COLLECTIONS[collection])


@dataclass(frozen=True, slots=True)
class Brief:
    """What a style may use to write one piece.

    Attributes:
        rng: the track's own generator.
        seed: of the whole dataset; it orders the scores.
        style: name of the style.
        artist_index: the artist's number among those of the style, from 0.
        piece_index: the piece's number among those of the style, from 0.
        pace: slow, medium or fast.
        length_s: how long the piece must last.
        files: collection -> the scores of it that may be played.
    """

    rng: np.random.Generator
    seed: int
    style: str
    artist_index: int
    piece_index: int
    pace: str
    length_s: float
    files: Callable[[str], tuple[Path, ...]] = _whole_collection

    def rotate(self, options: Sequence[T]) -> T:
        """One option per artist, in turn, so that all are used equally often."""
        return options[self.artist_index % len(options)]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def score(self, collection: str) -> Score:
        """The next score of a collection."""
        return pick_score(self.files(collection), self.piece_index, self.seed, self.style)

    def bpm(self) -> float:
        """A tempo for a procedural piece."""
        return float(self.rng.uniform(*BPM[self.pace]))

    def bpm_of_score(self, parts: Sequence[Notes]) -> float:
        """The tempo at which the parts together give the pace's onsets a second."""
        onsets = np.concatenate([part[:, 0] for part in parts])
        span = max(end_of(part) for part in parts)
        per_beat = onset_rate(onsets, span, resolution=0.05)
        return float(60 * self.rng.uniform(*ONSETS_PER_S[self.pace]) / per_beat)

    def num_bars(self, bpm: float, bar_beats: float = 4.0) -> int:
        """Bars that fill the piece."""
        return int(np.ceil(self.length_s * bpm / 60 / bar_beats)) + 1

    def melody(
        self, harmony: material.Harmony, num_bars: int, octave: int, step: float, rest: float = 0.15
    ) -> Notes:
        """A melody from the track's generator; see ``material.melody``."""
        return material.melody(self.rng, harmony, num_bars, octave, step, rest=rest)
