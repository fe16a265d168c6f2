"""Styles whose notes are made up: harmony, lines over it, a drum pattern."""

from __future__ import annotations

from shard_tools.demo import drums, material
from shard_tools.demo.draft import BPM, Brief, Draft, Voice
from shard_tools.demo.material import Harmony

EIGHTHS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
SOLOISTS = (
    *("guitar", "sax", "harpsichord", "flute", "bells", "trumpet"),
    *("harp", "cello", "organ", "violin", "clarinet", "piano"),
)
SELF_SUFFICIENT = ("guitar", "piano", "harp", "harpsichord", "organ")


def solo(brief: Brief) -> Draft:
    """One instrument alone; those that can accompany themselves do."""
    bpm, harmony, num_bars = _start(brief, "major", "minor", "dorian")
    player = brief.rotate(SOLOISTS)
    voices = [Voice(player, brief.melody(harmony, num_bars, 5, 0.5))]
    if player in SELF_SUFFICIENT:
        voices.append(Voice(player, material.broken(harmony, num_bars, 4, 1.0), -4.0))
    return Draft(tuple(voices), bpm, frozenset())


def duet(brief: Brief) -> Draft:
    """A melody instrument over another one's chords."""
    bpm, harmony, num_bars = _start(brief, "major", "minor", "dorian")
    lead = brief.rotate(("cello", "flute", "trumpet", "violin", "sax", "oboe", "horn"))
    under = brief.rotate(("harpsichord", "guitar", "piano", "harp", "organ"))
    chords = material.broken(harmony, num_bars, 4, 0.5)
    voices = (
        Voice(lead, brief.melody(harmony, num_bars, 5, 0.5)),
        Voice(under, chords, -2.0),
    )
    return Draft(voices, bpm, frozenset())


def orchestra(brief: Brief) -> Draft:
    """String section, a wind melody, horns."""
    bpm, harmony, num_bars = _start(brief, "major", "minor", "dorian")
    wind = brief.rotate(("oboe", "trumpet", "flute", "clarinet"))
    voices = (
        Voice("strings", brief.melody(harmony, num_bars, 5, 1.0, 0.05)),
        Voice("strings", material.held(harmony, num_bars, 4, size=2), -3.0),
        Voice("horn", brief.melody(harmony, num_bars, 4, 2.0, 0.3), -2.0),
        Voice(wind, brief.melody(harmony, num_bars, 5, 0.5, 0.4), -1.0),
        Voice("cello", material.bass_line(harmony, num_bars, (0, 2), 1.9), -1.0),
    )
    return Draft(voices, bpm, frozenset({"classical", "orchestra"}))


def techno(brief: Brief) -> Draft:
    """Four on the floor, a synth bass, a riff; with a pad it is dance music."""
    bpm, harmony, num_bars = _start(brief, "minor")
    riff = (
        brief.melody(harmony, num_bars, 5, 0.25, 0.35)
        if brief.chance(0.5)
        else material.broken(harmony, num_bars, 5, 0.25)
    )
    voices = [
        Voice("synth bass", material.bass_line(harmony, num_bars, EIGHTHS, 0.4)),
        Voice("lead", riff, -3.0),
    ]
    tags = {"techno", "electronic"}
    if brief.artist_index % 2:
        voices.append(Voice("pad", material.held(harmony, num_bars, 4, size=3), -3.0))
        tags.add("dance")
    hits = drums.beat(brief.rng, "house", num_bars)
    return Draft(tuple(voices), bpm, frozenset(tags), hits, may_pause=True)


def downtempo(brief: Brief) -> Draft:
    """A slow electronic groove under an acoustic or electronic soloist."""
    bpm, harmony, num_bars = _start(brief, "minor", "dorian")
    soloist = brief.rotate(("voice", "lead", "sax", "piano", "flute", "guitar"))
    voices = (
        Voice("pad", material.held(harmony, num_bars, 4), -2.0),
        Voice("synth bass", material.bass_line(harmony, num_bars, (0, 2.5), 0.9)),
        Voice(soloist, brief.melody(harmony, num_bars, 5, 0.5, 0.35), 2.0),
    )
    hits = drums.beat(brief.rng, "downtempo", num_bars)
    return Draft(voices, bpm, frozenset({"electronic"}), hits, may_pause=True)


def ambient(brief: Brief) -> Draft:
    """Layers of held chords without a pulse."""
    bpm, harmony, num_bars = _start(brief, "major", "minor", "dorian")
    voices = [
        Voice("pad", material.held(harmony, num_bars, 4, every=2)),
        Voice("pad", material.held(harmony, num_bars, 3, size=1), -2.0),
    ]
    if brief.artist_index % 3 == 1:
        voices.append(Voice("bells", brief.melody(harmony, num_bars, 6, 1.0, 0.5), -3.0))
    elif brief.artist_index % 3 == 2:
        voices.append(Voice("effect", material.held(harmony, num_bars, 5, size=1, every=2), -2.0))
    return Draft(tuple(voices), bpm, frozenset({"ambient", "electronic", "no beat"}))


def new_age(brief: Brief) -> Draft:
    """A quiet instrument, or a voice, over a pad."""
    bpm, harmony, num_bars = _start(brief, "major", "dorian")
    player = brief.rotate(("voice", "harp", "bells", "flute", "piano", "guitar"))
    voices = [
        Voice(player, brief.melody(harmony, num_bars, 5, 1.0, 0.25)),
        Voice("pad", material.held(harmony, num_bars, 4, every=2), -4.0),
    ]
    if player in SELF_SUFFICIENT:
        voices.append(Voice(player, material.broken(harmony, num_bars, 4, 1.0), -4.0))
    return Draft(tuple(voices), bpm, frozenset({"new age", "ambient", "no beat"}))


def rock(brief: Brief) -> Draft:
    """Power chords, electric bass, a solo guitar."""
    bpm, harmony, num_bars = _start(brief, "minor", "dorian")
    at = (0.0, 1.0, 1.5, 2.5, 3.0)
    voices = [
        Voice("distorted guitar", material.power_chords(harmony, num_bars, at, 0.9)),
        Voice("bass", material.bass_line(harmony, num_bars, EIGHTHS, 0.45), -1.0),
    ]
    if brief.artist_index % 2:
        voices.append(Voice("distorted guitar", brief.melody(harmony, num_bars, 5, 0.5), -1.0))
    else:
        voices.append(Voice("organ", material.held(harmony, num_bars, 4), -4.0))
    hits = drums.beat(brief.rng, "rock", num_bars)
    return Draft(tuple(voices), bpm, frozenset({"rock"}), hits, may_pause=True)


def metal(brief: Brief) -> Draft:
    """Rock with palm-muted eighths and a double bass drum."""
    bpm, harmony, num_bars = _start(brief, "phrygian", "minor")
    riff = material.power_chords(harmony, num_bars, EIGHTHS, 0.4)
    voices = [
        Voice("distorted guitar", riff),
        Voice("bass", material.bass_line(harmony, num_bars, EIGHTHS, 0.45), -1.0),
    ]
    if brief.chance(0.5):
        voices.append(Voice("distorted guitar", brief.melody(harmony, num_bars, 5, 0.25), -2.0))
    hits = drums.beat(brief.rng, "metal", num_bars)
    return Draft(tuple(voices), bpm, frozenset({"rock", "metal"}), hits, may_pause=True)


def pop(brief: Brief) -> Draft:
    """Broken chords, bass, backbeat and something to hum."""
    bpm, harmony, num_bars = _start(brief, "major")
    under = brief.rotate(("piano", "clean guitar", "steel guitar"))
    lead = brief.rotate(("voice", "lead", "sax", "clean guitar"))
    voices = [
        Voice(lead, brief.melody(harmony, num_bars, 5, 0.5, 0.25), 2.0),
        Voice(under, material.broken(harmony, num_bars, 4, 0.5), -2.0),
        Voice("bass", material.bass_line(harmony, num_bars, (0, 1.5, 2), 0.9), -1.0),
    ]
    if brief.artist_index % 3 == 0:
        voices.append(Voice("strings", material.held(harmony, num_bars, 5, size=2), -4.0))
    hits = drums.beat(brief.rng, "pop", num_bars)
    return Draft(tuple(voices), bpm, frozenset({"pop"}), hits, may_pause=True)


def jazz(brief: Brief) -> Draft:
    """A soloist over a walking bass, off-beat piano or guitar chords and a swung ride."""
    bpm, harmony, num_bars = _start(brief, "dorian", "major")
    lead = brief.rotate(("sax", "trumpet", "piano", "clarinet"))
    chords = brief.rotate(("piano", "piano", "clean guitar"))
    walk = material.bass_line(harmony, num_bars, (0, 1, 2, 3), 0.9, walk=(0, 2, 4, 5))
    voices = (
        Voice(lead, brief.melody(harmony, num_bars, 5, 1 / 3, 0.25)),
        Voice(chords, material.struck(harmony, num_bars, 4, (2 / 3, 8 / 3), 0.4), -3.0),
        Voice("bass", walk, -1.0),
    )
    hits = drums.beat(brief.rng, "swing", num_bars)
    return Draft(voices, bpm, frozenset({"jazz"}), hits, may_pause=True)


def indian(brief: Brief) -> Draft:
    """A sitar over its drone, with tabla, with flute, or alone."""
    bpm, harmony, num_bars = _start(brief, "bhairav", "phrygian", "dorian")
    harmony = Harmony(harmony.root, harmony.scale, (0,))
    voices = [
        Voice("sitar", brief.melody(harmony, num_bars, 5, 0.25, 0.1)),
        Voice("sitar", material.drone(harmony, num_bars, 4), -5.0),
    ]
    if brief.artist_index % 3 == 2:
        voices.append(Voice("flute", brief.melody(harmony, num_bars, 5, 1.0, 0.4), -1.0))
    hits = drums.beat(brief.rng, "tabla", num_bars)
    if brief.artist_index % 3 == 0:
        hits = hits[:0]
    return Draft(tuple(voices), bpm, frozenset({"indian"}), hits, may_pause=True)


def weird(brief: Brief) -> Draft:
    """Sound effects at random, with stray notes of an instrument."""
    bpm = BPM["medium"][0]
    num_beats = brief.length_s * bpm / 60
    stray = brief.rotate(("bells", "piano", "cello", "effect", "clarinet"))
    voices = (
        Voice("effect", material.scattered(brief.rng, num_beats, 0.45, 1.6)),
        Voice(stray, material.scattered(brief.rng, num_beats, 0.5, 0.8), -1.0),
    )
    return Draft(voices, bpm, frozenset({"weird", "no beat"}))


def drum_circle(brief: Brief) -> Draft:
    """Drums alone."""
    bpm = brief.bpm()
    name = brief.rotate(("toms", "tabla"))
    return Draft((), bpm, frozenset(), drums.beat(brief.rng, name, brief.num_bars(bpm)))


def _start(brief: Brief, *scales: str) -> tuple[float, Harmony, int]:
    """Tempo, harmony and number of bars."""
    bpm = brief.bpm()
    return bpm, material.draw_harmony(brief.rng, *scales), brief.num_bars(bpm)
