"""Track number -> artist and piece, and which tags are true of a window of it.

Everything here is a pure function of (recipe, seed, number): generators are seeded with them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from shard_tools.demo import material
from shard_tools.demo.chain import LEVEL_SPREAD_DB, Chain, draw_chain
from shard_tools.demo.draft import Brief, Draft
from shard_tools.demo.drums import is_steady
from shard_tools.demo.instruments import INSTRUMENTS
from shard_tools.demo.notes import SAME_ONSET_S, Notes, into_range, onset_rate, sounding_s
from shard_tools.demo.patches import Layer
from shard_tools.demo.recipe import SMALL, Recipe
from shard_tools.demo.room import Room, draw_room

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
# What a piece with a drifting tempo is written too long by: it may run ahead.
SPARE_S = 4.0


@dataclass(frozen=True, slots=True)
class Artist:
    """Who plays: a style with its own instruments, room and habits.

    Attributes:
        name: "STYLE ensemble N".
        album: the only one.
        style: what is played.
        index: the artist's number among those of the style, from 0.
        programs: instrument -> General-MIDI program, from 0.
        kit: drum kit.
        room: of a clean recording.
        pace: slow, medium or fast, mostly.
        level: quiet, soft, medium or loud, mostly.
        gap_share: share of sections in which a voice pauses.
        split: train, valid or test; "" where the recipe deals none.
        index_in_split: the artist's number among those of the style and split, from 0: scores
            are handed out by it.
        layers: instrument -> what is laid on top of its program.
        chain: of a rough recording; None: it is a clean one.
        soundfont: number of the soundfont among those of the set.
    """

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
    split: str = ""
    index_in_split: int = 0
    layers: dict[str, Layer] = field(default_factory=dict)
    chain: Chain | None = None
    soundfont: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """One line as it is played.

    Attributes:
        instrument: a key of INSTRUMENTS.
        program: General-MIDI program, from 0.
        level_db: against the other parts.
        notes: shape (num_notes, 3): onset and length in seconds, pitch.
        velocities: shape (num_notes,), 1 to 127.
        layer: a second voice of the same notes; None: there is none.
    """

    instrument: str
    program: int
    level_db: float
    notes: Notes
    velocities: Notes
    layer: Layer | None = None


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


def artist_of_track(track: int, recipe: Recipe = SMALL) -> tuple[int, int]:
    """Track number -> (artist number, which of the artist's tracks), both from 0.

    A round of artists plays its first tracks, then its second ones, before the next round comes.
    """
    size = len(recipe.round)
    round_number, place = divmod(track, size * TRACKS_PER_ARTIST)
    take, slot = divmod(place, size)
    return round_number * size + slot, take


def make_artist(seed: int, number: int, recipe: Recipe = SMALL, num_fonts: int = 1) -> Artist:
    """The artist of a number; its style follows from the number, its habits from the seed."""
    rng = recipe.rng(seed, 1, number)
    style_name = recipe.round[number % len(recipe.round)]
    style = recipe.styles[style_name]
    split = recipe.split_of(seed, number)
    index = recipe.index_in_style(seed, number, in_split=False)
    name = f"{style_name} ensemble {index + 1}"
    patches = {
        k: choices[int(rng.choice(len(choices)))] for k, choices in recipe.patches[split].items()
    }
    kit = int(rng.choice(style.kits))
    return Artist(
        name=name,
        album=f"{name} volume 1",
        style=style_name,
        index=index,
        programs={k: patch.program for k, patch in patches.items()},
        kit=recipe.kits[split][kit] if recipe.kits else kit,
        room=draw_room(rng),
        pace=str(rng.choice(style.paces)),
        level=str(rng.choice(style.levels)),
        gap_share=float(rng.choice([0.0, 0.1, 0.25])),
        split=split,
        index_in_split=recipe.index_in_style(seed, number, in_split=True),
        layers={k: patch.layer for k, patch in patches.items() if patch.layer is not None},
        chain=draw_chain(recipe.rng(seed, 6, number)) if recipe.is_rough else None,
        soundfont=number % num_fonts,
    )


def compose(seed: int, track: int, recipe: Recipe = SMALL, num_fonts: int = 1) -> Piece:
    """The piece of a track number: at least TRACK_S long, the same wherever it is called."""
    artist_number, take = artist_of_track(track, recipe)
    artist = make_artist(seed, artist_number, recipe, num_fonts)
    style = recipe.styles[artist.style]
    rng = recipe.rng(seed, 2, track)
    # An artist mostly keeps to a pace and a level, but not always.
    pace = artist.pace if rng.random() < 0.7 else str(rng.choice(style.paces))
    level = artist.level if rng.random() < 0.7 else str(rng.choice(style.levels))
    brief = Brief(
        rng=rng,
        seed=seed,
        style=artist.style,
        artist_index=artist.index,
        piece_index=artist.index_in_split * TRACKS_PER_ARTIST + take,
        pace=pace,
        length_s=TRACK_S + _spare_s(artist),
        files=lambda collection: recipe.score_files(collection, artist.split),
    )
    draft = style.write(brief)
    parts = _play(rng, draft, artist, VELOCITY[level])
    hits = _drum(rng, draft, artist)
    spread_db = LEVEL_SPREAD_DB if recipe.is_rough else 1.5
    target_db = TARGET_LEVEL_DB[level] + float(rng.uniform(-spread_db, spread_db))
    if artist.chain is not None:
        start = recipe.rng(seed, 4, track).random()
        parts = tuple(_drifted_part(part, artist.chain, start) for part in parts)
        hits = hits.copy()
        hits[:, 0] = drifted(hits[:, 0], artist.chain, start)
        hits = hits[hits[:, 0] < TRACK_S]
    return Piece(
        artist=artist,
        number=take + 1,
        title=draft.title or f"{artist.style} piece {artist.index * TRACKS_PER_ARTIST + take + 1}",
        parts=parts,
        hits=hits,
        tags=draft.tags,
        pace=pace,
        velocity=VELOCITY[level],
        level_db=target_db,
    )


def _spare_s(artist: Artist) -> float:
    return SPARE_S if artist.chain is not None else 0.0


def drifted(times_s: Notes, chain: Chain, start: float) -> Notes:
    """Times under a tempo that swings slowly around its mean; their order stays.

    Args:
        times_s: shape (num,).
        chain: how far and how slowly.
        start: where in its swing the tempo begins, 0 to 1.
    """
    cycle, phase = 2 * np.pi / chain.drift_s, 2 * np.pi * start
    swing = (np.cos(phase) - np.cos(cycle * times_s + phase)) * chain.drift / cycle
    moved: Notes = np.maximum(times_s + swing, 0.0)
    return moved


def _drifted_part(part: Part, chain: Chain, start: float) -> Part:
    onsets = drifted(part.notes[:, 0], chain, start)
    ends = drifted(part.notes[:, 0] + part.notes[:, 1], chain, start)
    notes = np.column_stack([onsets, ends - onsets, part.notes[:, 2]])
    heard = onsets < TRACK_S
    return replace(part, notes=notes[heard], velocities=part.velocities[heard])


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
        notes = notes[notes[:, 0] < TRACK_S + _spare_s(artist)]
        velocities = np.clip(rng.normal(velocity, 8, len(notes)), 20, 127)
        program = artist.programs[voice.instrument]
        layer = artist.layers.get(voice.instrument)
        parts.append(Part(voice.instrument, program, voice.level_db, notes, velocities, layer))
    return tuple(parts)


def _drum(rng: np.random.Generator, draft: Draft, artist: Artist) -> Notes:
    """A draft's drum hits in seconds, with pauses where the draft allows them."""
    hits = draft.hits
    if draft.may_pause:
        hits = material.with_gaps(rng, hits, 32.0, artist.gap_share / 2)
    hits = hits * np.array([60 / draft.bpm, 1, 1])
    heard: Notes = hits[hits[:, 0] < TRACK_S + _spare_s(artist)]
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
