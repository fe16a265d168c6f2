"""A piece -> MIDI bytes -> the soundfont's waveform.

The soundfont, TimGM6mb.sf2 (GPL-2), is used where the user installed pretty_midi and is
never copied; pretty_midi itself is not imported, for it costs a second.
"""

from __future__ import annotations

import importlib.util
import struct
from functools import cache
from pathlib import Path

import numpy as np

from shard_tools.demo.instruments import PROGRAM_LEVEL_DB
from shard_tools.demo.piece import TRACK_S, Part, Piece
from shard_tools.demo.room import SOURCE_HZ, Wave

# One tick is one millisecond: 1000 ticks a quarter note, one quarter note a second.
TICKS_PER_S = 1000
DRUM_CHANNEL = 9
DRUM_HIT_S = 0.2
# What every line is brought to before its own level. It is the drums' level at full
# volume; much louder would clip the renderer's 16-bit output.
REFERENCE_DB = -36.0
VOLUME, NOTE_ON, NOTE_OFF, PROGRAM_CHANGE, CONTROL = 7, 0x90, 0x80, 0xC0, 0xB0

Event = tuple[int, int, bytes]  # tick, rank within the tick, message


def render(piece: Piece) -> Wave:
    """Renders a whole piece; mono at SOURCE_HZ, shape (TRACK_S * SOURCE_HZ,)."""
    import midirenderer

    wav = midirenderer.render_wave_from(_soundfont(), to_midi(piece))
    frames = np.frombuffer(wav, dtype="<i2", offset=_data_offset(wav))
    wave = frames.reshape(-1, 2).astype(np.float32).sum(axis=1) / np.float32(2 * 32768)
    num = TRACK_S * SOURCE_HZ
    return np.pad(wave[:num], (0, max(0, num - len(wave))))


def to_midi(piece: Piece) -> bytes:
    """A piece as a Standard MIDI File of format 0: a channel per part, drums on channel 9."""
    events: list[Event] = []
    channels = iter(c for c in range(16) if c != DRUM_CHANNEL)
    for part in piece.parts:
        events += _part_events(part, next(channels))
    if len(piece.hits):
        events.append((0, 0, bytes([PROGRAM_CHANGE | DRUM_CHANNEL, piece.artist.kit])))
        events.append((0, 1, bytes([CONTROL | DRUM_CHANNEL, VOLUME, 127])))
        for onset, strength, key in piece.hits.tolist():
            velocity = min(127, max(1, round(strength * piece.velocity * 1.15)))
            events += _note(DRUM_CHANNEL, onset, DRUM_HIT_S, int(key), velocity)
    events.sort(key=lambda event: event[:2])
    return _midi_file(events, TRACK_S * TICKS_PER_S)


def _part_events(part: Part, channel: int) -> list[Event]:
    gain_db = part.level_db + REFERENCE_DB - PROGRAM_LEVEL_DB[part.program]
    # General MIDI: a volume of v plays at 40 log10(v / 127) dB.
    volume = min(127, round(127 * 10 ** (gain_db / 40)))
    events: list[Event] = [
        (0, 0, bytes([PROGRAM_CHANGE | channel, part.program])),
        (0, 1, bytes([CONTROL | channel, VOLUME, volume])),
    ]
    for (onset, length, pitch), velocity in zip(
        part.notes.tolist(), part.velocities.tolist(), strict=True
    ):
        events += _note(channel, onset, max(length, 0.03), int(pitch), int(velocity))
    return events


def _note(channel: int, onset_s: float, length_s: float, pitch: int, velocity: int) -> list[Event]:
    # Note-offs come first within a tick: a repeated note must not be ended by its predecessor.
    return [
        (round(onset_s * TICKS_PER_S), 3, bytes([NOTE_ON | channel, pitch, velocity])),
        (round((onset_s + length_s) * TICKS_PER_S), 2, bytes([NOTE_OFF | channel, pitch, 0])),
    ]


def _midi_file(events: list[Event], end_tick: int) -> bytes:
    """Sorted events -> file bytes; events after ``end_tick`` are left out."""
    tempo = b"\x00\xff\x51\x03" + (1_000_000).to_bytes(3, "big")  # microseconds a quarter note
    chunks, now = [tempo], 0
    for tick, _, message in events:
        if tick <= end_tick:
            chunks += [_variable_length(tick - now), message]
            now = tick
    chunks += [_variable_length(end_tick - now), b"\xff\x2f\x00"]
    track = b"".join(chunks)
    header = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, TICKS_PER_S)
    return header + struct.pack(">4sI", b"MTrk", len(track)) + track


def _variable_length(number: int) -> bytes:
    """MIDI's variable-length quantity: seven bits a byte, the last one without the top bit."""
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(0x80 | (number & 0x7F))
    return bytes(reversed(groups))


def _data_offset(wav: bytes) -> int:
    """Where the samples of a WAV file begin: after the data chunk's eight-byte header."""
    offset = 12
    while wav[offset : offset + 4] != b"data":
        offset += 8 + int.from_bytes(wav[offset + 4 : offset + 8], "little")
        assert offset < len(wav), "midirenderer returned a WAV without samples"
    return offset + 8


@cache
def _soundfont() -> bytes:
    spec = importlib.util.find_spec("pretty_midi")
    assert spec is not None and spec.submodule_search_locations
    return (Path(spec.submodule_search_locations[0]) / "TimGM6mb.sf2").read_bytes()
