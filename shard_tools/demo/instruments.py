"""The instruments: General-MIDI programs, how loud the soundfont plays them, the tags they earn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Instrument:
    """One instrument as the styles name it.

    Attributes:
        programs: General-MIDI programs (from 0) that an artist may choose from.
        tags: what a listener may call it.
        low: lowest pitch.
        high: highest pitch.
        is_group: many players or layers: never a solo.
        is_voice: a vocal sound.
    """

    programs: tuple[int, ...]
    tags: tuple[str, ...]
    low: int
    high: int
    is_group: bool = False
    is_voice: bool = False


INSTRUMENTS: dict[str, Instrument] = {
    "piano": Instrument((0, 1), ("piano",), 36, 96),
    "harpsichord": Instrument((6,), ("harpsichord",), 40, 86),
    "organ": Instrument((19, 20, 16), ("organ",), 36, 88),
    "guitar": Instrument((24, 25), ("guitar", "acoustic guitar"), 40, 79),
    "steel guitar": Instrument((25,), ("guitar", "acoustic guitar"), 40, 79),
    "clean guitar": Instrument((26, 28), ("guitar", "electric guitar"), 40, 79),
    "distorted guitar": Instrument((29, 30), ("guitar", "electric guitar"), 36, 76),
    "harp": Instrument((46,), ("harp",), 40, 91),
    "banjo": Instrument((105,), ("banjo",), 48, 79),
    "sitar": Instrument((104,), ("sitar",), 46, 80),
    "violin": Instrument((40,), ("violin", "strings"), 55, 91),
    "viola": Instrument((41,), ("strings",), 48, 79),
    "cello": Instrument((42,), ("cello", "strings"), 36, 67),
    "fiddle": Instrument((110, 40), ("violin", "strings"), 55, 91),
    "strings": Instrument((48, 49), ("strings",), 43, 84, is_group=True),
    "flute": Instrument((73, 75), ("flute", "woodwind"), 60, 91),
    "oboe": Instrument((68,), ("woodwind",), 58, 86),
    "clarinet": Instrument((71,), ("woodwind",), 52, 84),
    "trumpet": Instrument((56,), ("trumpet",), 55, 82),
    "horn": Instrument((60,), ("horn",), 43, 70),
    "sax": Instrument((65, 66), ("sax",), 50, 80),
    "choir": Instrument((52, 53), ("vocal",), 45, 77, is_group=True, is_voice=True),
    "voice": Instrument((53, 52), ("vocal",), 55, 79, is_voice=True),
    "bass": Instrument((32, 33), ("bass",), 28, 52),
    "synth bass": Instrument((38, 39), ("synth", "bass"), 28, 52),
    "lead": Instrument((80, 81, 82), ("synth",), 55, 86),
    "pad": Instrument((89, 90, 92, 94, 95), ("synth",), 45, 81, is_group=True),
    "effect": Instrument((96, 98, 99, 101, 102, 103), ("synth",), 36, 91, is_group=True),
    "bells": Instrument((11, 14, 112), ("bells",), 60, 91),
}

# RMS in dB of full scale of detached notes at velocity 90 in TimGM6mb.sf2, measured
# with midirenderer 0.1.3 over the instrument's range. Programs differ by 16 dB: without
# this an accompanying horn would bury a piano.
PROGRAM_LEVEL_DB: dict[int, float] = {
    **{0: -38.2, 1: -38.1, 6: -36.8, 11: -29.1, 14: -32.6, 16: -32.5, 19: -34.3, 20: -32.2},
    **{24: -32.0, 25: -35.9, 26: -31.9, 28: -35.0, 29: -35.6, 30: -32.5, 32: -31.2, 33: -31.6},
    **{38: -31.2, 39: -31.6, 40: -29.0, 41: -30.0, 42: -28.3, 46: -29.2, 48: -34.2, 49: -36.7},
    **{52: -32.9, 53: -32.8, 54: -31.8, 56: -33.4, 60: -27.3, 65: -32.3, 66: -33.1, 68: -29.7},
    **{71: -31.5, 73: -28.5, 75: -30.9, 80: -29.4, 81: -30.8, 82: -29.0, 89: -36.8, 90: -33.9},
    **{92: -33.5, 94: -33.4, 95: -35.8, 96: -31.7, 98: -32.0, 99: -30.4, 101: -41.0, 102: -29.5},
    **{103: -31.0, 104: -37.3, 105: -34.9, 110: -30.3, 112: -39.0},
}
