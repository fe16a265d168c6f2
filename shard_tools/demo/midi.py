"""Events -> a Standard MIDI File, and midirenderer's WAV -> samples."""

from __future__ import annotations

import struct

import numpy as np

from shard_tools.demo.room import Wave

# One tick is one millisecond: 1000 ticks a quarter note, one quarter note a second.
TICKS_PER_S = 1000
DRUM_CHANNEL = 9
VOLUME, NOTE_ON, NOTE_OFF, PROGRAM_CHANGE, CONTROL = 7, 0x90, 0x80, 0xC0, 0xB0
PITCH_BEND, BEND_RANGE_CENTS = 0xE0, 200

Event = tuple[int, int, bytes]  # tick, rank within the tick, message


def note(channel: int, onset_s: float, length_s: float, pitch: int, velocity: int) -> list[Event]:
    """A note's two events."""
    # Note-offs come first within a tick: a repeated note must not be ended by its predecessor.
    return [
        (round(onset_s * TICKS_PER_S), 3, bytes([NOTE_ON | channel, pitch, velocity])),
        (round((onset_s + length_s) * TICKS_PER_S), 2, bytes([NOTE_OFF | channel, pitch, 0])),
    ]


def bend(channel: int, cents: float) -> Event:
    """Puts a whole channel out of tune, by at most BEND_RANGE_CENTS."""
    assert abs(cents) < BEND_RANGE_CENTS, cents
    value = 8192 + round(8192 * cents / BEND_RANGE_CENTS)
    return (0, 1, bytes([PITCH_BEND | channel, value & 0x7F, value >> 7]))


def midi_file(events: list[Event], end_tick: int) -> bytes:
    """Sorted events -> file bytes; events after ``end_tick`` are left out."""
    tempo = b"\x00\xff\x51\x03" + (1_000_000).to_bytes(3, "big")  # microseconds a quarter note
    chunks, now = [tempo], 0
    for tick, _, message in events:
        if tick <= end_tick:
            chunks += [variable_length(tick - now), message]
            now = tick
    chunks += [variable_length(end_tick - now), b"\xff\x2f\x00"]
    track = b"".join(chunks)
    header = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, TICKS_PER_S)
    return header + struct.pack(">4sI", b"MTrk", len(track)) + track


def variable_length(number: int) -> bytes:
    """MIDI's variable-length quantity: seven bits a byte, the last one without the top bit."""
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(0x80 | (number & 0x7F))
    return bytes(reversed(groups))


def waveform(wav: bytes) -> Wave:
    """midirenderer's WAV (16 bits, stereo) -> mono."""
    frames = np.frombuffer(wav, dtype="<i2", offset=_data_offset(wav))
    wave: Wave = frames.reshape(-1, 2).astype(np.float32).sum(axis=1) / np.float32(2 * 32768)
    return wave


def _data_offset(wav: bytes) -> int:
    """Where the samples of a WAV file begin: after the data chunk's eight-byte header."""
    offset = 12
    while wav[offset : offset + 4] != b"data":
        offset += 8 + int.from_bytes(wav[offset + 4 : offset + 8], "little")
        assert offset < len(wav), "midirenderer returned a WAV without samples"
    return offset + 8
