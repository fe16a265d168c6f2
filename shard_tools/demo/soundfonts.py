"""Soundfonts: where they are, what is in them, how loud they play each program.

The larger sets measure the loudness of a soundfont's programs before they mix them: without
that an accompanying horn would bury a piano. The small set has its figures in a table.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from shard_tools.demo.instruments import INSTRUMENTS
from shard_tools.demo.midi import (
    CONTROL,
    DRUM_CHANNEL,
    PROGRAM_CHANGE,
    TICKS_PER_S,
    VOLUME,
    Event,
    midi_file,
    note,
    waveform,
)
from shard_tools.demo.patches import EVERY
from shard_tools.demo.room import SOURCE_HZ, level_db

DRUMS = -1
"""The key of the drums among programs."""
# Measured here, pretty_midi's own soundfont is 3.8 dB louder than in the small set's table
# (0.8 dB standard deviation over 62 programs), whose notes were further apart.
TABLE_OFFSET_DB = -3.8
SLOT_S = 2
NOTES_A_SLOT = 4
# Debian's package (and its kin's) -> its file: Frank Wen's Fluid, MIT; Csound's, public domain.
# One a set and no more, so that a set is the same wherever it is made; .sf3 files cannot be played.
PACKAGES: dict[str, Path] = {
    "fluid-soundfont-gm": Path("/usr/share/sounds/sf2/FluidR3_GM.sf2"),
    "csound-soundfont": Path("/usr/share/sounds/sf2/sf_GMbank.sf2"),
}


def own() -> Path:
    """TimGM6mb.sf2, which pretty_midi carries."""
    spec = importlib.util.find_spec("pretty_midi")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "TimGM6mb.sf2"


def find_foreign(named: Sequence[str], package: str) -> tuple[Path, ...]:
    """The soundfonts for a foreign set: those that are named, or the one of its package.

    Raises:
        ValueError: there is none, or one cannot be used; says which package has one.
    """
    remedy = f"`apt install {package}`, or name .sf2 files in dataset.soundfonts"
    if not named:
        path = PACKAGES[package]
        if not path.is_file():
            raise ValueError(
                "this demo set needs a soundfont other than pretty_midi's, and "
                f"{path} is not there; {remedy}"
            )
        return (path,)
    paths = tuple(map(Path, named))
    for path in paths:
        if not path.is_file():
            raise ValueError(f"dataset.soundfonts: {path}: no such file; correct it, or {remedy}")
        if kind := fault(path):
            raise ValueError(
                f"dataset.soundfonts: {path}: {kind}, which the renderer cannot read; {remedy}"
            )
    return paths


def fault(path: Path) -> str | None:
    """Why a file is no soundfont that midirenderer plays; None when it seems to be one."""
    with path.open("rb") as file:
        head = file.read(512)
    if head[:4] != b"RIFF" or head[8:12] != b"sfbk":
        return "is no soundfont"
    version = head.find(b"ifil")
    major = int.from_bytes(head[version + 8 : version + 10], "little") if version > 0 else 0
    if major != 2:
        return f"is a soundfont of version {major} (.sf3: compressed)"
    return None


@cache
def read(path: Path) -> bytes:
    """The bytes of a soundfont, read once in a process."""
    return path.read_bytes()


@cache
def program_levels(path: Path) -> Mapping[int, float]:
    """Level of each program at velocity 90 and full volume, on the scale of the small set's table.

    Detached notes over the range of the first instrument that has the program; DRUMS is a
    beat of the standard kit. One rendering, a third of a second for a small soundfont.
    """
    import midirenderer

    programs = {patch.program: name for name in reversed([*EVERY]) for patch in EVERY[name]}
    order = sorted(programs)
    events: list[Event] = [(0, 1, bytes([CONTROL | DRUM_CHANNEL, VOLUME, 127]))]
    events.append((0, 1, bytes([CONTROL, VOLUME, 127])))
    for slot, program in enumerate(order):
        start = slot * SLOT_S
        events.append((start * TICKS_PER_S, 0, bytes([PROGRAM_CHANGE, program])))
        instrument = INSTRUMENTS[programs[program]]
        pitches = np.linspace(instrument.low, instrument.high, NOTES_A_SLOT + 2)[1:-1]
        events += _detached(0, start, pitches.round().astype(int).tolist())
    events += _detached(DRUM_CHANNEL, len(order) * SLOT_S, (36, 38, 42, 38))
    events.sort(key=lambda event: event[:2])
    num_slots = len(order) + 1
    data = midi_file(events, num_slots * SLOT_S * TICKS_PER_S)
    wave = waveform(midirenderer.render_wave_from(read(path), data))
    size = SLOT_S * SOURCE_HZ
    wave = np.pad(wave, (0, max(0, num_slots * size - len(wave))))
    levels = [level_db(wave[i * size : (i + 1) * size]) for i in range(num_slots)]
    by_key = dict(zip((*order, DRUMS), levels, strict=True))
    return {key: db + TABLE_OFFSET_DB for key, db in by_key.items()}


def _detached(channel: int, start_s: float, pitches: Iterable[int]) -> list[Event]:
    """Notes of 0.4 s, half a second apart."""
    step_s = SLOT_S / NOTES_A_SLOT
    return [
        event
        for i, pitch in enumerate(pitches)
        for event in note(channel, start_s + i * step_s, 0.8 * step_s, pitch, 90)
    ]
