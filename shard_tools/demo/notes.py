"""Notes as arrays, and what can be asked of them.

Notes are float64 arrays of shape (num_notes, 3) with one row per note: onset
and length in beats (quarter notes), and MIDI pitch (60 is middle C). A drum hit
is the same row with the General-MIDI drum key in place of the pitch and its
strength, 0 to 1, in place of the length.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Notes = NDArray[np.float64]

# Onsets closer than this are heard as one (a chord, a flam).
SAME_ONSET_S = 0.04


def to_notes(rows: Iterable[tuple[float, float, float]]) -> Notes:
    """Rows of (onset, length, pitch) -> notes sorted by onset, then pitch."""
    notes = np.array(list(rows), dtype=np.float64).reshape(-1, 3)
    return notes[np.lexsort((notes[:, 2], notes[:, 0]))]


def end_of(notes: Notes) -> float:
    """The beat at which the last note ends; 0 without notes."""
    return float((notes[:, 0] + notes[:, 1]).max()) if len(notes) else 0.0


def repeat_until(notes: Notes, period: float, num_beats: float) -> Notes:
    """Repeats ``notes`` every ``period`` beats and cuts them at ``num_beats``.

    Args:
        notes: shape (num_notes, 3).
        period: length of one round in beats, > 0.
        num_beats: how long the result lasts.
    """
    num_rounds = int(np.ceil(num_beats / period))
    rounds = np.concatenate([notes + np.array([i * period, 0, 0]) for i in range(num_rounds)])
    rounds = rounds[rounds[:, 0] < num_beats]
    rounds[:, 1] = np.minimum(rounds[:, 1], num_beats - rounds[:, 0])
    return rounds


def into_range(notes: Notes, low: int, high: int) -> Notes:
    """Moves notes by whole octaves: all together first, then the few outside one by one.

    Args:
        notes: shape (num_notes, 3).
        low: lowest pitch allowed.
        high: highest pitch allowed; at least an octave above ``low``.
    """
    assert high - low >= 12, (low, high)
    moved = notes.copy()
    if len(moved):
        centre = float(np.median(moved[:, 2]))
        moved[:, 2] += 12 * np.round(((low + high) / 2 - centre) / 12)
        moved[:, 2] += 12 * np.ceil(np.maximum(low - moved[:, 2], 0) / 12)
        moved[:, 2] -= 12 * np.ceil(np.maximum(moved[:, 2] - high, 0) / 12)
    return moved


def onset_rate(onsets: NDArray[np.float64], span: float, resolution: float) -> float:
    """Number of onsets that are heard apart, per unit of time.

    Args:
        onsets: times, any order, in the unit of ``span``.
        span: how long to count over, > 0.
        resolution: onsets within this time after the one before count as one.
    """
    if not len(onsets):
        return 0.0
    gaps = np.diff(np.sort(onsets))
    return float(1 + np.count_nonzero(gaps > resolution)) / span


def sounding_s(onsets_s: Notes, lengths_s: Notes, start_s: float, end_s: float) -> float:
    """Seconds of sound within a window, summed over notes."""
    overlap = np.minimum(onsets_s + lengths_s, end_s) - np.maximum(onsets_s, start_s)
    return float(np.maximum(overlap, 0.0).sum())
