"""Drum patterns, one bar each, as grids that can be read aloud."""

from __future__ import annotations

import numpy as np

from shard_tools.demo.material import Rng
from shard_tools.demo.notes import Notes, to_notes

# General MIDI keys of channel 10 (9 when counted from 0).
KEYS = {
    "kick": 36,
    "stick": 37,
    "snare": 38,
    "clap": 39,
    "hat": 42,
    "pedal": 44,
    "open": 46,
    "ride": 51,
    "low": 41,
    "mid": 45,
    "high": 48,
    "tabla": 61,
    "baya": 64,
    "shaker": 70,
}
CRASH = 49
STRENGTH = {"x": 1.0, "o": 0.7, ".": 0.45}

# Cymbals ring for seconds and cost most to render: the ride is used sparingly.
# One character a step: x strong, o medium, . weak, - silent. A grid of 12 swings.
PATTERNS: dict[str, tuple[dict[str, str], ...]] = {
    "house": (
        {"kick": "x---x---x---x---", "clap": "----x-------x---", "open": "--x---x---x---x-"},
        {"kick": "x---x---x---x---", "snare": "----o-------o--.", "hat": ".oxo.oxo.oxo.oxo"},
        {"kick": "x---x---x--xx---", "hat": "x.o.x.o.x.o.x.o.", "clap": "----x-------x---"},
    ),
    "rock": (
        {"kick": "x-------x-o-----", "snare": "----x-------x---", "hat": "x-o-x-o-x-o-x-o-"},
        {"kick": "x--o----x--o----", "snare": "----x-------x---", "open": "x---x---x---x---"},
    ),
    "metal": (
        {"kick": "xxxxxxxxxxxxxxxx", "snare": "----x-------x---", "hat": "x-x-x-x-x-x-x-x-"},
        {"kick": "x-xxx-xxx-xxx-xx", "snare": "----x-------x---", "open": "x---x---x---x---"},
    ),
    "pop": (
        {"kick": "x-----o-x-------", "snare": "----x-------x---", "hat": ".-.-.-.-.-.-.-.-"},
        {"kick": "x-------x-o-----", "clap": "----x-------x---", "shaker": "xoxoxoxoxoxoxoxo"},
    ),
    "swing": (
        {
            "ride": "x--x--x--x--",
            "hat": "-----o-----o",
            "pedal": "---x-----x--",
            "kick": ".-------.---",
        },
        {"ride": "x-----x-----", "hat": "o--o-oo--o-o", "snare": "--.-----.--."},
    ),
    "downtempo": (
        {"kick": "x--------o------", "snare": "----o-------o---", "hat": ".-.-.-.-.-.-.-.-"},
        {"kick": "x------o--x-----", "stick": "----x-------x---", "shaker": "o-o-o-o-o-o-o-o-"},
    ),
    "country": (
        {"kick": "x-------x-------", "snare": "----o-------o---", "stick": "--.---.---.---.-"},
        {"kick": "x-------x-------", "snare": "..o...o...o...o."},
    ),
    "jig": ({"kick": "x-----x-----", "snare": "--.o-.--.o-."},),
    "tabla": (
        {"tabla": "x-.ox-.-o-.ox.o-", "baya": "x-----x---x-----"},
        {"tabla": "x.o-x.o-..o-x.o-", "baya": "x---o-----x---o-"},
    ),
    "toms": (
        {"low": "x--o--x---o-x---", "mid": "--o--x--o----x-o", "high": "-o----o--x-o----"},
        {"low": "x-x-----x-x-----", "mid": "----x-x-----xo--", "kick": "x---x---x---x---"},
    ),
}


def beat(rng: Rng, name: str, num_bars: int, bar_beats: float = 4.0) -> Notes:
    """Drum hits: a pattern for every bar, small departures, a crash every eighth bar.

    Args:
        rng: chooses the variant and the departures.
        name: a key of PATTERNS.
        num_bars: length in bars.
        bar_beats: a bar's length in beats; the grid is stretched to it.

    Returns:
        shape (num_hits, 3): onset in beats, strength 0 to 1, drum key.
    """
    variants = PATTERNS[name]
    pattern = variants[rng.integers(len(variants))]
    bar = [
        (step * bar_beats / len(grid), STRENGTH[mark], float(KEYS[drum]))
        for drum, grid in pattern.items()
        for step, mark in enumerate(grid)
        if mark != "-"
    ]
    crashes = name in ("rock", "metal", "pop", "house", "toms")
    rows = []
    for i in range(num_bars):
        kept = rng.random(len(bar)) > (0.25 if i % 4 == 3 else 0.03)
        rows += [
            (i * bar_beats + onset, strength, key)
            for (onset, strength, key), keep in zip(bar, kept, strict=True)
            if keep
        ]
        if crashes and i % 8 == 0:
            rows.append((i * bar_beats, 0.8, float(CRASH)))
    return to_notes(rows)


def is_steady(hits: Notes, start: float, end: float) -> bool:
    """Whether a window has a beat that one can tap to: kick, snare or clap hits throughout."""
    inside = (hits[:, 0] >= start) & (hits[:, 0] < end)
    strong = np.isin(hits[:, 2], [KEYS["kick"], KEYS["snare"], KEYS["clap"], KEYS["low"]])
    return int(np.count_nonzero(inside & strong & (hits[:, 1] >= 0.6))) >= 24
