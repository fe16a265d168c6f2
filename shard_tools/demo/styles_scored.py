"""Styles whose notes come from a score, played by other instruments than it was written for."""

from __future__ import annotations

from collections.abc import Iterable

from shard_tools.demo import drums, material
from shard_tools.demo.draft import Brief, Draft, Voice, no_hits
from shard_tools.demo.notes import Notes, repeat_until
from shard_tools.demo.scores import Score


def chorale(brief: Brief) -> Draft:
    """A Bach chorale on one keyboard, plucked instrument or string section."""
    player = brief.rotate(("organ", "harpsichord", "piano", "strings", "guitar", "harp"))
    return _arranged(brief, brief.score("chorale"), [player] * 5, {"classical", "baroque"})


def quartet(brief: Brief) -> Draft:
    """A quartet movement; every third piece is a chorale played by the quartet."""
    players = ["violin", "violin", "viola", "cello", "cello"]
    if brief.piece_index % 3 == 2:
        return _arranged(brief, brief.score("chorale"), players, {"classical", "baroque"})
    return _arranged(brief, brief.score("quartet"), players, {"classical"})


def choir(brief: Brief) -> Draft:
    """A motet, madrigal or chorale for choir (vowels, no words), with or without organ."""
    is_chorale = brief.piece_index % 3 == 0
    score = brief.score("chorale" if is_chorale else "motet")
    tags = {"classical", "choir"} | ({"baroque"} if is_chorale else set())
    draft = _arranged(brief, score, ["choir"] * 5, tags)
    if brief.artist_index % 3 != 1:
        return draft
    organ = tuple(Voice("organ", voice.notes, -5.0) for voice in draft.voices)
    return Draft(draft.voices + organ, draft.bpm, draft.tags, title=draft.title)


def medieval(brief: Brief) -> Draft:
    """Fourteenth-century Italian polyphony on two or three kinds of instruments."""
    players = brief.rotate(
        (
            ["flute", "harp", "fiddle"],
            ["oboe", "guitar", "guitar"],
            ["fiddle", "organ", "organ"],
            ["clarinet", "harp", "cello"],
        )
    )
    return _arranged(brief, brief.score("medieval"), [*players, *players[-1:] * 2], {"medieval"})


def fiddle_solo(brief: Brief) -> Draft:
    """A dance tune on one instrument."""
    player = brief.rotate(("violin", "flute", "guitar", "banjo", "harp", "clarinet"))
    score = brief.score("fiddle")
    return _arranged(brief, score, [player], {"folk"}, parts=score.parts[:1])


def ceilidh(brief: Brief) -> Draft:
    """A dance tune over broken chords, sometimes with a frame drum's part."""
    lead, under = brief.rotate((("flute", "harp"), ("fiddle", "guitar"), ("flute", "guitar")))
    score = brief.score("fiddle")
    tune, bpm, harmony, num_bars = _tune(brief, score)
    step = score.bar_beats / 6 if score.bar_beats in (1.5, 3.0) else score.bar_beats / 4
    voices = (
        Voice(lead, tune),
        Voice(under, material.broken(harmony, num_bars, 4, step), -3.0),
    )
    hits = no_hits()
    if brief.artist_index % 2:
        hits = drums.beat(brief.rng, "jig", num_bars, score.bar_beats)
    return Draft(voices, bpm, frozenset({"folk"}), hits, score.title, may_pause=True)


def country(brief: Brief) -> Draft:
    """A dance tune with steel-string chords, bass and a train beat."""
    score = brief.score("fiddle")
    tune, bpm, harmony, num_bars = _tune(brief, score)
    half = score.bar_beats / 2
    eighth = score.bar_beats / 8
    voices = [
        Voice(brief.rotate(("fiddle", "banjo", "fiddle", "steel guitar")), tune),
        Voice(
            "steel guitar",
            material.struck(harmony, num_bars, 4, (half / 2, half * 1.5), half / 3),
            -3.0,
        ),
        Voice("bass", material.bass_line(harmony, num_bars, (0, half), half * 0.8, walk=(0, 4))),
    ]
    if brief.artist_index % 2 == 0:
        roll = material.broken(harmony, num_bars, 5, eighth, (0, 1, 2, 1, 0, 2))
        voices.append(Voice("banjo", roll, -3.0))
    hits = drums.beat(brief.rng, "country", num_bars, score.bar_beats)
    return Draft(tuple(voices), bpm, frozenset({"country"}), hits, score.title, may_pause=True)


def piano(brief: Brief) -> Draft:
    """A dance, rag or sonata of the nineteenth century's drawing rooms."""
    return _arranged(brief, brief.score("piano"), ["piano"] * 5, {"classical"})


def _arranged(
    brief: Brief,
    score: Score,
    players: list[str],
    tags: Iterable[str],
    parts: tuple[Notes, ...] | None = None,
) -> Draft:
    """A score's parts given to players, in order, and repeated until the piece is long enough."""
    chosen = parts or score.parts
    bpm = brief.bpm_of_score(chosen)
    num_beats = brief.length_s * bpm / 60
    voices = tuple(
        Voice(player, repeat_until(part, score.num_beats, num_beats))
        for player, part in zip(players, chosen, strict=False)
    )
    return Draft(voices, bpm, frozenset(tags), title=score.title)


def _tune(brief: Brief, score: Score) -> tuple[Notes, float, material.Harmony, int]:
    """The first part of a score as a tune: its notes, tempo, harmony and number of bars."""
    tune = score.parts[0]
    bpm = brief.bpm_of_score([tune])
    num_bars = brief.num_bars(bpm, score.bar_beats)
    harmony = material.harmonise(tune, score.bar_beats)
    # Rounds of whole bars keep the chords under the tune when it starts again.
    period = len(harmony.degrees) * score.bar_beats
    return repeat_until(tune, period, num_bars * score.bar_beats), bpm, harmony, num_bars
