"""More styles, for the larger sets: what the small one's would otherwise give away by habit.

They break rules that hold in the small set and not in music: a beat without bass, distorted
guitars without rock, voices in dance music, strings without an orchestra.
"""

from __future__ import annotations

from shard_tools.demo import drums, material
from shard_tools.demo.draft import Brief, Draft, Voice
from shard_tools.demo.styles import ANY_PACE, GENTLE, PLAIN, ROUND, STROLL, STRONG, STYLES, Style
from shard_tools.demo.styles_free import EIGHTHS


def blues(brief: Brief) -> Draft:
    """A guitar, reed or harmonica-like lead over shuffled chords and a walking bass."""
    bpm, harmony, num_bars = _start(brief, "dorian")
    harmony = material.Harmony(
        harmony.root, harmony.scale, (0, 0, 0, 0, 3, 3, 0, 0, 4, 3, 0, 4), harmony.bar_beats
    )
    lead = brief.rotate(("distorted guitar", "clean guitar", "sax", "clarinet"))
    chords = brief.rotate(("piano", "organ", "clean guitar", "guitar", "piano"))
    walk = material.bass_line(harmony, num_bars, (0, 1, 2, 3), 0.9, walk=(0, 2, 4, 2))
    voices = (
        Voice(lead, brief.melody(harmony, num_bars, 5, 1 / 3, 0.35)),
        Voice(chords, material.struck(harmony, num_bars, 4, (0, 2 / 3, 2, 8 / 3), 0.5), -3.0),
        Voice("bass", walk, -1.0),
    )
    hits = drums.beat(brief.rng, "swing", num_bars)
    return Draft(voices, bpm, frozenset(), hits, may_pause=True)


def minimal(brief: Brief) -> Draft:
    """Broken chords against one another, three against four, on like or unlike instruments."""
    bpm, harmony, num_bars = _start(brief, "major", "minor", "dorian")
    players = brief.rotate(
        (
            ("piano", "piano", "strings"),
            ("bells", "piano", "clarinet"),
            ("strings", "harp", "flute"),
            ("lead", "bells", "piano"),
            ("guitar", "guitar", "cello"),
        )
    )
    lines = (
        material.broken(harmony, num_bars, 5, 0.5, (0, 1, 2)),
        material.broken(harmony, num_bars, 4, 0.5, (0, 2, 1, 2)),
        material.held(harmony, num_bars, 4, size=2, every=2),
    )
    voices = tuple(
        Voice(player, line, level)
        for player, line, level in zip(players, lines, (0.0, -2.0, -3.0), strict=True)
    )
    return Draft(voices, bpm, frozenset({"no beat"}), may_pause=True)


def disco(brief: Brief) -> Draft:
    """Four on the floor with bass octaves, guitar chops, and strings or a voice on top."""
    bpm, harmony, num_bars = _start(brief, "minor", "dorian")
    lead = brief.rotate(("voice", "strings", "trumpet", "sax", "lead"))
    voices = [
        Voice(lead, brief.melody(harmony, num_bars, 5, 0.5, 0.3), 1.0),
        Voice(
            brief.rotate(("clean guitar", "piano")),
            material.struck(harmony, num_bars, 4, (0.5, 1.5, 2.5, 3.5), 0.2),
            -3.0,
        ),
        Voice("bass", material.bass_line(harmony, num_bars, EIGHTHS, 0.4, walk=(0, 7))),
    ]
    if brief.chance(0.5):
        voices.append(Voice("strings", material.held(harmony, num_bars, 5, size=2), -4.0))
    hits = drums.beat(brief.rng, "house", num_bars)
    return Draft(tuple(voices), bpm, frozenset({"dance", "pop"}), hits, may_pause=True)


def march(brief: Brief) -> Draft:
    """A wind band: tune, horns after the beat, low brass or clarinets on it, a snare."""
    bpm, harmony, num_bars = _start(brief, "major")
    lead = brief.rotate(("trumpet", "flute", "clarinet", "oboe"))
    voices = (
        Voice(lead, brief.melody(harmony, num_bars, 5, 0.5, 0.1)),
        Voice("horn", material.struck(harmony, num_bars, 4, (1.0, 3.0), 0.4), -3.0),
        Voice(
            brief.rotate(("horn", "clarinet")),
            material.bass_line(harmony, num_bars, (0, 2), 0.8, walk=(0, 4)),
            -1.0,
        ),
    )
    hits = drums.beat(brief.rng, brief.rotate(("rock", "country", "pop")), num_bars)
    if brief.artist_index % 3 == 1:
        hits = hits[:0]
    return Draft(voices, bpm, frozenset(), hits, may_pause=True)


def ballad(brief: Brief) -> Draft:
    """A slow song without words: one accompanist, a long-breathed lead, hardly a beat."""
    bpm, harmony, num_bars = _start(brief, "major", "minor")
    lead = brief.rotate(("voice", "cello", "voice", "flute", "voice", "violin", "horn"))
    under = brief.rotate(("piano", "guitar", "clean guitar", "organ", "harp"))
    voices = [
        Voice(lead, brief.melody(harmony, num_bars, 5, 1.0, 0.2), 2.0),
        Voice(under, material.broken(harmony, num_bars, 4, 0.5), -2.0),
    ]
    if brief.chance(0.4):
        voices.append(Voice("bass", material.bass_line(harmony, num_bars, (0, 2), 1.8), -2.0))
    hits = drums.beat(brief.rng, "downtempo", num_bars)
    if brief.artist_index % 2:
        hits = hits[:0]
    return Draft(tuple(voices), bpm, frozenset({"pop"}), hits, may_pause=True)


def drone(brief: Brief) -> Draft:
    """One held fifth, and something that wanders above it."""
    bpm, harmony, num_bars = _start(brief, "phrygian", "dorian", "bhairav")
    harmony = material.Harmony(harmony.root, harmony.scale, (0,))
    ground = brief.rotate(("organ", "strings", "pad", "choir", "distorted guitar"))
    above = brief.rotate(("flute", "violin", "guitar", "oboe", "voice", "sax", "harp"))
    voices = (
        Voice(ground, material.held(harmony, num_bars, 3, size=2, every=2), -3.0),
        Voice(above, brief.melody(harmony, num_bars, 5, 0.5, 0.3)),
    )
    return Draft(voices, bpm, frozenset({"no beat"}))


def _start(brief: Brief, *scales: str) -> tuple[float, material.Harmony, int]:
    """Tempo, harmony and number of bars."""
    bpm = brief.bpm()
    return bpm, material.draw_harmony(brief.rng, *scales), brief.num_bars(bpm)


MORE_STYLES: dict[str, Style] = {
    "blues": Style(blues, STROLL, ("soft", "medium", "loud"), (0, 8)),
    "minimal": Style(minimal, ANY_PACE, PLAIN),
    "disco": Style(disco, ("medium", "medium", "fast"), STRONG, (0, 8, 24)),
    "march": Style(march, ("medium", "fast"), STRONG, (0, 40)),
    "ballad": Style(ballad, STROLL, GENTLE, (0, 8, 24)),
    "drone": Style(drone, STROLL, ("quiet", "soft", "medium", "loud")),
}
ALL_STYLES: dict[str, Style] = STYLES | MORE_STYLES

# Forty artists: the small set's round with the new styles among them.
LARGE_ROUND: tuple[str, ...] = (
    *(*ROUND[:8], "blues", "minimal", *ROUND[8:16], "disco", "march"),
    *(*ROUND[16:24], "ballad", "drone", *ROUND[24:], "piano", "chorale"),
)
