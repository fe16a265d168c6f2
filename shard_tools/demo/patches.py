"""Which sounds training hears and which only the test split: patches of the larger sets.

A patch is a General-MIDI program, alone or with a second voice of it laid on top. Where an
instrument has several programs, training has some and the test split the others. Where there
is but one, the test split plays it in another registration (doubled and out of tune by a few
cents, or with its octave): the same samples, and yet a sound that training never had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shard_tools.demo.instruments import INSTRUMENTS


@dataclass(frozen=True, slots=True)
class Layer:
    """A second voice of the same program.

    Attributes:
        semitones: above (or below) the first.
        cents: out of tune with it.
        level_db: against it.
    """

    semitones: int = 0
    cents: float = 0.0
    level_db: float = 0.0


@dataclass(frozen=True, slots=True)
class Patch:
    """One sound of an instrument: a program from 0, and what is laid on top of it."""

    program: int
    layer: Layer | None = None


PatchTable = Mapping[str, tuple[Patch, ...]]

DOUBLED = Layer(cents=11.0, level_db=-1.0)
OCTAVE = Layer(semitones=12, level_db=-5.0)
SUB_OCTAVE = Layer(semitones=-12, level_db=-6.0)


def _plain(*programs: int) -> tuple[Patch, ...]:
    return tuple(Patch(program) for program in programs)


def _layered(program: int, *layers: Layer) -> tuple[Patch, ...]:
    return tuple(Patch(program, layer) for layer in layers)


# Instrument -> (patches of train and valid, patches of test).
_DIVIDED: dict[str, tuple[tuple[Patch, ...], tuple[Patch, ...]]] = {
    "piano": (_plain(0, 1), _plain(2, 3)),
    "harpsichord": (_plain(6), _layered(6, DOUBLED, OCTAVE)),
    "organ": (_plain(16, 17, 19), _plain(18, 20)),
    "guitar": (_plain(24) + _layered(24, DOUBLED), _plain(25)),
    "steel guitar": (_plain(24), _plain(25) + _layered(25, OCTAVE)),
    "clean guitar": (_plain(26, 28), _plain(27)),
    "distorted guitar": (_plain(30), _plain(29) + _layered(29, DOUBLED)),
    "harp": (_plain(46), _layered(46, DOUBLED, OCTAVE)),
    "banjo": (_plain(105), _layered(105, DOUBLED, OCTAVE)),
    "sitar": (_plain(104), _layered(104, DOUBLED, OCTAVE)),
    "violin": (_plain(40), _plain(110)),
    "viola": (_plain(41), _layered(41, DOUBLED)),
    "cello": (_plain(42), _layered(42, DOUBLED, OCTAVE)),
    "fiddle": (_plain(40), _plain(110)),
    "strings": (_plain(44, 48), _plain(49)),
    "flute": (_plain(72, 73), _plain(74, 75)),
    "oboe": (_plain(68), _plain(69)),
    "clarinet": (_plain(71), _layered(71, DOUBLED, SUB_OCTAVE)),
    "trumpet": (_plain(56), _plain(59)),
    "horn": (_plain(60), _layered(60, DOUBLED, SUB_OCTAVE)),
    "sax": (_plain(65, 67), _plain(64, 66)),
    "choir": (_plain(52, 54), _plain(53)),
    "voice": (_plain(52, 54), _plain(53)),
    "bass": (_plain(32, 33, 36), _plain(34, 35)),
    "synth bass": (_plain(38), _plain(39)),
    "lead": (_plain(80, 82, 84), _plain(81, 83, 86)),
    "pad": (_plain(88, 89, 92, 94), _plain(90, 93, 95)),
    "effect": (_plain(96, 98, 101, 103), _plain(97, 99, 100, 102)),
    "bells": (_plain(9, 11, 14), _plain(10, 112)),
}

SMALL: PatchTable = {name: _plain(*one.programs) for name, one in INSTRUMENTS.items()}
TRAIN: PatchTable = {name: train for name, (train, _) in _DIVIDED.items()}
TEST: PatchTable = {name: test for name, (_, test) in _DIVIDED.items()}
# In another soundfont every program is a stranger.
EVERY: PatchTable = {name: train + test for name, (train, test) in _DIVIDED.items()}

# Drum kits (programs of channel 10): what an artist's kit becomes.
TRAIN_KITS = {0: 0, 8: 0, 16: 0, 24: 24, 25: 24, 40: 40}
TEST_KITS = {0: 8, 8: 8, 16: 16, 24: 25, 25: 25, 40: 8}
EVERY_KIT = {kit: kit for kit in TRAIN_KITS}
