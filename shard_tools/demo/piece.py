"""Track number -> artist and piece, and which tags are true of a window of it.

Everything here is a pure function of (seed, number): generators are seeded with both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shard_tools.demo import material
from shard_tools.demo.draft import Brief, Draft
from shard_tools.demo.drums import is_steady
from shard_tools.demo.instruments import INSTRUMENTS
from shard_tools.demo.notes import SAME_ONSET_S, Notes, into_range, onset_rate, sounding_s
from shard_tools.demo.room import Room, draw_room
from shard_tools.demo.styles import ROUND, STYLES

CLIP_S = 29
CLIPS_PER_TRACK = 3
TRACKS_PER_ARTIST = 2
TRACK_S = CLIP_S * CLIPS_PER_TRACK

# The table's columns, in MTT's names. Words are never sung, so there is no female, male or opera.
VOCABULARY: tuple[str, ...] = (
    *("guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast"),
    *("piano", "ambient", "beat", "violin", "vocal", "synth", "indian", "no vocals"),
    *("harpsichord", "loud", "quiet", "flute", "pop", "soft", "sitar", "solo", "choir"),
    *("new age", "dance", "harp", "cello", "weird", "country", "metal", "jazz", "folk", "organ"),
    *("bass", "baroque", "orchestra", "banjo", "trumpet", "sax", "bells", "woodwind", "horn"),
    *("no beat", "medieval", "acoustic guitar", "electric guitar"),
)

# Root-mean-square level of a track in dB of full scale; and where a clip's own level earns a tag.
TARGET_LEVEL_DB = {"quiet": -36.0, "soft": -28.0, "medium": -20.5, "loud": -14.0}
QUIET_DB, SOFT_DB, LOUD_DB = -32.0, -24.5, -17.0
VELOCITY = {"quiet": 60.0, "soft": 70.0, "medium": 88.0, "loud": 106.0}
FAST_ONSETS_PER_S, SLOW_ONSETS_PER_S = 4.0, 2.3
MIN_SOUNDING_S = 2.0
MIN_DRUM_HITS = 10


@dataclass(frozen=True, slots=True)
class Artist:
    """Who plays: a style with its own instruments, room and habits."""

    name: str
    album: str
    style: str
    index: int
    programs: dict[str, int]
    kit: int
    room: Room
    pace: str
    level: str
    gap_share: float


@dataclass(frozen=True, slots=True)
class Part:
    """One line as it is played.

    Attributes:
        instrument: a key of INSTRUMENTS.
        program: General-MIDI program, from 0.
        level_db: against the other parts.
        notes: shape (num_notes, 3): onset and length in seconds, pitch.
        velocities: shape (num_notes,), 1 to 127.
    """

    instrument: str
    program: int
    level_db: float
    notes: Notes
    velocities: Notes


@dataclass(frozen=True, slots=True)
class Piece:
    """One track before it sounds.

    Attributes:
        artist: who plays it.
        number: its number on the album, from 1.
        title: of the score, or made up.
        parts: the lines.
        hits: drums: onset in seconds, strength 0 to 1, drum key.
        tags: true of the whole track.
        pace: slow, medium or fast.
        velocity: of an average note.
        level_db: target level of the track.
    """

    artist: Artist
    number: int
    title: str
    parts: tuple[Part, ...]
    hits: Notes
    tags: frozenset[str]
    pace: str
    velocity: float
    level_db: float


def artist_of_track(track: int) -> tuple[int, int]:
    """Track number -> (artist number, which of the artist's tracks), both from 0.

    A round of artists plays its first tracks, then its second ones, before the next round comes.
    """
    per_round = len(ROUND) * TRACKS_PER_ARTIST
    round_number, place = divmod(track, per_round)
    take, slot = divmod(place, len(ROUND))
    return round_number * len(ROUND) + slot, take


def make_artist(seed: int, number: int) -> Artist:
    """The artist of a number; its style follows from the number, its habits from the seed."""
    rng = np.random.default_rng([seed, 1, number])
    round_number, slot = divmod(number, len(ROUND))
    style_name = ROUND[slot]
    style = STYLES[style_name]
    index = round_number * ROUND.count(style_name) + ROUND[:slot].count(style_name)
    name = f"{style_name} ensemble {index + 1}"
    return Artist(
        name=name,
        album=f"{name} volume 1",
        style=style_name,
        index=index,
        programs={k: int(rng.choice(v.programs)) for k, v in INSTRUMENTS.items()},
        kit=int(rng.choice(style.kits)),
        room=draw_room(rng),
        pace=str(rng.choice(style.paces)),
        level=str(rng.choice(style.levels)),
        gap_share=float(rng.choice([0.0, 0.1, 0.25])),
    )


def compose(seed: int, track: int) -> Piece:
    """The piece of a track number: at least TRACK_S long, the same wherever it is called."""
    artist_number, take = artist_of_track(track)
    artist = make_artist(seed, artist_number)
    style = STYLES[artist.style]
    rng = np.random.default_rng([seed, 2, track])
    # An artist mostly keeps to a pace and a level, but not always.
    pace = artist.pace if rng.random() < 0.7 else str(rng.choice(style.paces))
    level = artist.level if rng.random() < 0.7 else str(rng.choice(style.levels))
    brief = Brief(
        rng=rng,
        seed=seed,
        style=artist.style,
        artist_index=artist.index,
        piece_index=artist.index * TRACKS_PER_ARTIST + take,
        pace=pace,
        length_s=float(TRACK_S),
    )
    draft = style.write(brief)
    return Piece(
        artist=artist,
        number=take + 1,
        title=draft.title or f"{artist.style} piece {brief.piece_index + 1}",
        parts=_play(rng, draft, artist, VELOCITY[level]),
        hits=_drum(rng, draft, artist),
        tags=draft.tags,
        pace=pace,
        velocity=VELOCITY[level],
        level_db=TARGET_LEVEL_DB[level] + float(rng.uniform(-1.5, 1.5)),
    )


def _play(
    rng: np.random.Generator, draft: Draft, artist: Artist, velocity: float
) -> tuple[Part, ...]:
    """Draft -> what is played: in seconds, within each instrument's range, humanly uneven."""
    beat_s = 60 / draft.bpm
    transposition = int(rng.integers(-3, 4))
    parts = []
    for i, voice in enumerate(draft.voices):
        instrument = INSTRUMENTS[voice.instrument]
        notes = voice.notes
        if draft.may_pause and i > 0:
            notes = material.with_gaps(rng, notes, 32.0, artist.gap_share)
        notes = into_range(notes + np.array([0, 0, transposition]), instrument.low, instrument.high)
        notes[:, :2] *= beat_s
        notes[:, 0] = np.maximum(notes[:, 0] + rng.normal(0, 0.008, len(notes)), 0)
        notes = notes[notes[:, 0] < TRACK_S]
        velocities = np.clip(rng.normal(velocity, 8, len(notes)), 20, 127)
        program = artist.programs[voice.instrument]
        parts.append(Part(voice.instrument, program, voice.level_db, notes, velocities))
    return tuple(parts)


def _drum(rng: np.random.Generator, draft: Draft, artist: Artist) -> Notes:
    """A draft's drum hits in seconds, with pauses where the draft allows them."""
    hits = draft.hits
    if draft.may_pause:
        hits = material.with_gaps(rng, hits, 32.0, artist.gap_share / 2)
    hits = hits * np.array([60 / draft.bpm, 1, 1])
    heard: Notes = hits[hits[:, 0] < TRACK_S]
    return heard


def tags_of(piece: Piece, window: int, level_db: float) -> frozenset[str]:
    """The tags that are true of one window of a piece.

    Args:
        piece: the track.
        window: which stretch of CLIP_S seconds, from 0.
        level_db: measured root-mean-square level of the window's sound, dB of full scale.
    """
    start, end = window * CLIP_S, (window + 1) * CLIP_S
    sounding: dict[str, float] = {}
    for part in piece.parts:
        seconds = sounding_s(part.notes[:, 0], part.notes[:, 1], start, end)
        sounding[part.instrument] = sounding.get(part.instrument, 0.0) + seconds
    heard = [name for name, seconds in sounding.items() if seconds >= MIN_SOUNDING_S]
    tags = set(piece.tags).union(*(INSTRUMENTS[name].tags for name in heard))

    num_hits = int(np.count_nonzero((piece.hits[:, 0] >= start) & (piece.hits[:, 0] < end)))
    if num_hits >= MIN_DRUM_HITS:
        tags.add("drums")
    if is_steady(piece.hits, start, end):
        tags.add("beat")
    tags.add("vocal" if any(INSTRUMENTS[name].is_voice for name in heard) else "no vocals")
    programs = {part.program for part in piece.parts if sounding[part.instrument] > 0}
    if len(programs) == 1 and not num_hits and not any(INSTRUMENTS[n].is_group for n in heard):
        tags.add("solo")

    onsets = np.concatenate([piece.hits[:, 0], *(part.notes[:, 0] for part in piece.parts)])
    inside = onsets[(onsets >= start) & (onsets < end)]
    rate = onset_rate(inside, CLIP_S, SAME_ONSET_S)
    if piece.pace == "fast" and rate >= FAST_ONSETS_PER_S:
        tags.add("fast")
    if piece.pace == "slow" and rate <= SLOW_ONSETS_PER_S:
        tags.add("slow")

    if level_db >= LOUD_DB:
        tags.add("loud")
    if level_db <= SOFT_DB and "drums" not in tags:
        tags.add("soft")
    if level_db <= QUIET_DB:
        tags.add("quiet")
    assert tags <= set(VOCABULARY), tags - set(VOCABULARY)
    return frozenset(tags)
