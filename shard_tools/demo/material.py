"""Procedural material: harmony, and the lines that are drawn over it.

Every function is pure: the same generator state gives the same notes. Octaves
count as in MIDI: octave 5 begins at pitch 60, middle C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shard_tools.demo.notes import Notes, to_notes

Rng = np.random.Generator

SCALES: dict[str, tuple[int, ...]] = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
    "bhairav": (0, 1, 4, 5, 7, 8, 11),
}
# Scale degrees of one chord per bar, counted from 0 (0 is the tonic, 4 the dominant).
PROGRESSIONS: tuple[tuple[int, ...], ...] = (
    (0, 4, 5, 3),
    (0, 5, 3, 4),
    (5, 3, 0, 4),
    (0, 3, 4, 3),
    (0, 6, 5, 6),
    (0, 3, 0, 4),
)
LEGATO = 0.95  # a note's length as a share of its step


@dataclass(frozen=True, slots=True)
class Harmony:
    """A key and one chord per bar, repeated for ever.

    Attributes:
        root: pitch class of the tonic, 0 to 11.
        scale: semitones above the root.
        degrees: scale degree of each bar's chord.
        bar_beats: length of a bar in beats.
    """

    root: int
    scale: tuple[int, ...]
    degrees: tuple[int, ...]
    bar_beats: float = 4.0

    def pitch(self, degree: int, octave: int) -> int:
        """MIDI pitch of a scale degree, which may lie beyond the octave."""
        turns, step = divmod(degree, len(self.scale))
        return self.root + 12 * (octave + turns) + self.scale[step]

    def chord(self, bar: int, octave: int, size: int = 3) -> list[int]:
        """Pitches of a bar's chord, in thirds from its root."""
        degree = self.degrees[bar % len(self.degrees)]
        return [self.pitch(degree + 2 * i, octave) for i in range(size)]


def draw_harmony(rng: Rng, *scales: str) -> Harmony:
    """A random key in one of the scales named, with a random progression."""
    scale = SCALES[scales[rng.integers(len(scales))]]
    degrees = PROGRESSIONS[rng.integers(len(PROGRESSIONS))]
    return Harmony(int(rng.integers(12)), scale, degrees)


def harmonise(tune: Notes, bar_beats: float) -> Harmony:
    """A key and a chord per bar for a tune: of I, IV and V the one that shares most with the bar.

    The tonic is the tune's last pitch, the mode the third that sounds longer.
    """
    root = int(tune[-1, 2]) % 12
    classes = tune[:, 2].astype(int) % 12

    def time_on(pitch_class: int) -> float:
        return float(tune[classes == pitch_class % 12, 1].sum())

    scale = SCALES["major" if time_on(root + 4) >= time_on(root + 3) else "dorian"]
    bars = (tune[:, 0] // bar_beats).astype(int)
    degrees = []
    for bar in range(int(bars.max()) + 1):
        shares = {}
        for degree in (0, 3, 4):
            triad = {(root + scale[(degree + i) % 7]) % 12 for i in (0, 2, 4)}
            hits = np.isin(classes, list(triad)) & (bars == bar)
            shares[degree] = float(tune[hits, 1].sum())
        degrees.append(max(shares, key=lambda d: shares[d]))
    return Harmony(root, scale, tuple(degrees), bar_beats)


def held(harmony: Harmony, num_bars: int, octave: int, *, size: int = 3, every: int = 1) -> Notes:
    """Chords that last ``every`` bars."""
    length = every * harmony.bar_beats
    return to_notes(
        (bar * harmony.bar_beats, length * LEGATO, pitch)
        for bar in range(0, num_bars, every)
        for pitch in harmony.chord(bar, octave, size)
    )


def broken(
    harmony: Harmony, num_bars: int, octave: int, step: float, order: Sequence[int] = (0, 1, 2, 1)
) -> Notes:
    """Chords played one note after the other, ``step`` beats apart."""
    per_bar = round(harmony.bar_beats / step)
    return to_notes(
        (
            bar * harmony.bar_beats + i * step,
            step * LEGATO,
            harmony.chord(bar, octave)[order[i % len(order)]],
        )
        for bar in range(num_bars)
        for i in range(per_bar)
    )


def struck(
    harmony: Harmony, num_bars: int, octave: int, at: Sequence[float], length: float
) -> Notes:
    """Whole chords at the beats ``at`` of every bar."""
    return to_notes(
        (bar * harmony.bar_beats + beat, length, pitch)
        for bar in range(num_bars)
        for beat in at
        for pitch in harmony.chord(bar, octave)
    )


def bass_line(
    harmony: Harmony,
    num_bars: int,
    at: Sequence[float],
    length: float,
    *,
    walk: Sequence[int] = (0,),
) -> Notes:
    """Low notes at the beats ``at`` of every bar, ``walk`` degrees above the chord's root."""
    return to_notes(
        (
            bar * harmony.bar_beats + beat,
            length,
            harmony.pitch(harmony.degrees[bar % len(harmony.degrees)] + walk[i % len(walk)], 3),
        )
        for bar in range(num_bars)
        for i, beat in enumerate(at)
    )


def power_chords(harmony: Harmony, num_bars: int, at: Sequence[float], length: float) -> Notes:
    """Root, fifth and octave, as on a distorted guitar."""
    return to_notes(
        (bar * harmony.bar_beats + beat, length, harmony.chord(bar, 3)[0] + interval)
        for bar in range(num_bars)
        for beat in at
        for interval in (0, 7, 12)
    )


def drone(harmony: Harmony, num_bars: int, octave: int) -> Notes:
    """Tonic and fifth struck in turn, each left to ring for a bar."""
    bar = harmony.bar_beats
    return to_notes(
        (i * bar + beat * bar / 4, bar, harmony.root + 12 * octave + interval)
        for i in range(num_bars)
        for beat, interval in ((0, 0), (1, 7), (2, 12), (3, 12))
    )


def melody(
    rng: Rng, harmony: Harmony, num_bars: int, octave: int, step: float, *, rest: float = 0.15
) -> Notes:
    """A line that walks the scale and comes back to one motif of twelve steps.

    Args:
        rng: where motif and departures come from.
        harmony: gives the scale.
        num_bars: length in bars.
        octave: where degree 0 lies; the line stays within -3 to +10 degrees.
        step: unit of rhythm in beats; notes last 1 to 3 units.
        rest: share of steps that are silent.
    """
    moves = np.array([-3, -2, -1, -1, 0, 1, 1, 2, 3])
    motif = list(
        zip(
            rng.choice(moves, 12).tolist(),
            (rng.random(12) < rest).tolist(),
            rng.choice([1, 1, 2, 2, 3], 12).tolist(),
            strict=True,
        )
    )
    rows: list[tuple[float, float, float]] = []
    beat, degree, i = 0.0, int(rng.integers(7)), 0
    while beat < num_bars * harmony.bar_beats:
        move, silent, units = motif[i % len(motif)]
        if rng.random() < 0.3:
            move, silent = int(rng.choice(moves)), bool(rng.random() < rest)
        degree = int(np.clip(degree + move, -3, 10))
        if not silent:
            rows.append((beat, units * step * LEGATO, harmony.pitch(degree, octave)))
        beat += units * step
        i += 1
    return to_notes(rows)


def scattered(rng: Rng, num_beats: float, rate: float, mean_beats: float) -> Notes:
    """Notes without key or pulse: uniform onsets and pitches, exponential lengths.

    Args:
        rng: where they come from.
        num_beats: length.
        rate: notes per beat.
        mean_beats: mean length of a note.
    """
    num = max(2, int(rate * num_beats))
    lengths = rng.exponential(mean_beats, num) + 0.1
    pitches = rng.integers(36, 92, num)
    return to_notes(zip(rng.uniform(0, num_beats, num), lengths, pitches, strict=True))


def with_gaps(rng: Rng, notes: Notes, section_beats: float, gap_share: float) -> Notes:
    """Silences a line for whole sections, each with probability ``gap_share``."""
    if not len(notes):
        return notes
    section = (notes[:, 0] // section_beats).astype(int)
    silent = rng.random(int(section.max()) + 1) < gap_share
    kept: Notes = notes[~silent[section]]
    return kept
