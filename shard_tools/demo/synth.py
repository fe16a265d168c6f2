"""A piece -> MIDI bytes -> a soundfont's waveform.

pretty_midi's soundfont, TimGM6mb.sf2 (GPL-2), is used where the user installed it and is
never copied; pretty_midi itself is not imported, for it costs a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shard_tools.demo import soundfonts
from shard_tools.demo.instruments import PROGRAM_LEVEL_DB
from shard_tools.demo.midi import (
    CONTROL,
    DRUM_CHANNEL,
    PROGRAM_CHANGE,
    TICKS_PER_S,
    VOLUME,
    Event,
    bend,
    midi_file,
    note,
    waveform,
)
from shard_tools.demo.piece import TRACK_S, Part, Piece
from shard_tools.demo.room import SOURCE_HZ, Wave

DRUM_HIT_S = 0.2
# What every line is brought to before its own level. It is the drums' level at full
# volume; much louder would clip the renderer's 16-bit output.
REFERENCE_DB = -36.0
# The level of pretty_midi's own drums at full volume, as soundfonts.program_levels measures it.
DRUMS_DB = -37.6


def render(piece: Piece, soundfont: Path | None = None) -> Wave:
    """Renders a whole piece; mono at SOURCE_HZ, shape (TRACK_S * SOURCE_HZ,).

    Args:
        piece: what is played.
        soundfont: whose programs' loudness is measured first; None: pretty_midi's own with
            the small set's table of loudness.
    """
    import midirenderer

    levels = soundfonts.program_levels(soundfont) if soundfont else PROGRAM_LEVEL_DB
    data = to_midi(piece, levels)
    wave = waveform(
        midirenderer.render_wave_from(soundfonts.read(soundfont or soundfonts.own()), data)
    )
    num = TRACK_S * SOURCE_HZ
    return np.pad(wave[:num], (0, max(0, num - len(wave))))


def to_midi(piece: Piece, levels: Mapping[int, float] = PROGRAM_LEVEL_DB) -> bytes:
    """A piece as a Standard MIDI File of format 0: a channel per voice, drums on channel 9.

    Args:
        piece: what is played.
        levels: loudness of each program, dB; see ``soundfonts.program_levels``.
    """
    events: list[Event] = []
    channels = iter(c for c in range(16) if c != DRUM_CHANNEL)
    tuning_cents = piece.artist.chain.tuning_cents if piece.artist.chain else 0.0
    for part in piece.parts:
        gain_db = part.level_db + REFERENCE_DB - levels[part.program]
        events += _part_events(part, next(channels), gain_db, tuning_cents)
        if part.layer is not None:
            cents = tuning_cents + part.layer.cents
            gain_db += part.layer.level_db
            events += _part_events(part, next(channels), gain_db, cents, part.layer.semitones)
    if len(piece.hits):
        gain_db = DRUMS_DB - levels.get(soundfonts.DRUMS, DRUMS_DB)
        events.append((0, 0, bytes([PROGRAM_CHANGE | DRUM_CHANNEL, piece.artist.kit])))
        events.append((0, 1, bytes([CONTROL | DRUM_CHANNEL, VOLUME, _volume(gain_db)])))
        for onset, strength, key in piece.hits.tolist():
            velocity = min(127, max(1, round(strength * piece.velocity * 1.15)))
            events += note(DRUM_CHANNEL, onset, DRUM_HIT_S, int(key), velocity)
    events.sort(key=lambda event: event[:2])
    return midi_file(events, TRACK_S * TICKS_PER_S)


def _volume(gain_db: float) -> int:
    """General MIDI: a volume of v plays at 40 log10(v / 127) dB."""
    return min(127, round(127 * 10 ** (gain_db / 40)))


def _part_events(
    part: Part, channel: int, gain_db: float, cents: float, semitones: int = 0
) -> list[Event]:
    events: list[Event] = [
        (0, 0, bytes([PROGRAM_CHANGE | channel, part.program])),
        (0, 1, bytes([CONTROL | channel, VOLUME, _volume(gain_db)])),
    ]
    if cents:
        events.append(bend(channel, cents))
    for (onset, length, pitch), velocity in zip(
        part.notes.tolist(), part.velocities.tolist(), strict=True
    ):
        sounding = int(pitch) + semitones
        events += note(channel, onset, max(length, 0.03), sounding, int(velocity))
    return events
