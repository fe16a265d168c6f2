"""The styles: who writes them, how fast and how loud they tend to be, and how often they come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shard_tools.demo import styles_free as free
from shard_tools.demo import styles_scored as scored
from shard_tools.demo.draft import Brief, Draft


@dataclass(frozen=True, slots=True)
class Style:
    """One style.

    Attributes:
        write: brief -> draft.
        paces: an artist's pace is drawn from these; a repeated one is more likely.
        levels: the same for loudness: quiet, soft, medium, loud.
        kits: drum kits (programs of channel 10) that an artist may own.
    """

    write: Callable[[Brief], Draft]
    paces: tuple[str, ...]
    levels: tuple[str, ...]
    kits: tuple[int, ...] = (0,)


STROLL = ("slow", "medium")
ANY_PACE = ("slow", "medium", "fast")
GENTLE = ("quiet", "soft", "medium")
PLAIN = ("soft", "medium", "medium", "quiet")
STRONG = ("medium", "loud", "loud")

STYLES: dict[str, Style] = {
    "chorale": Style(scored.chorale, STROLL, PLAIN),
    "quartet": Style(scored.quartet, ANY_PACE, PLAIN),
    "choir": Style(scored.choir, STROLL, GENTLE),
    "medieval": Style(scored.medieval, STROLL, PLAIN),
    "fiddle solo": Style(scored.fiddle_solo, ("medium", "fast"), PLAIN),
    "ceilidh": Style(scored.ceilidh, ("medium", "fast", "fast"), ("medium",)),
    "country": Style(scored.country, ("medium", "fast"), ("medium", "loud"), (0, 8, 40)),
    "piano": Style(scored.piano, ANY_PACE, PLAIN),
    "solo": Style(free.solo, ANY_PACE, GENTLE),
    "duet": Style(free.duet, ANY_PACE, PLAIN),
    "orchestra": Style(free.orchestra, ANY_PACE, ("soft", "medium", "loud")),
    "techno": Style(free.techno, ("fast", "fast", "medium"), STRONG, (24, 25)),
    "downtempo": Style(free.downtempo, STROLL, ("medium",), (24, 25, 8)),
    "ambient": Style(free.ambient, ("slow",), ("quiet", "soft", "soft", "medium")),
    "new age": Style(free.new_age, ("slow",), ("quiet", "soft", "soft", "medium")),
    "rock": Style(free.rock, ("medium", "fast"), STRONG, (0, 16)),
    "metal": Style(free.metal, ("fast",), ("loud",), (16, 0)),
    "pop": Style(free.pop, ("medium", "fast"), ("medium", "medium", "loud"), (0, 8, 24)),
    "jazz": Style(free.jazz, ("medium", "fast"), ("medium", "soft"), (0, 8)),
    "indian": Style(free.indian, STROLL, ("soft", "medium")),
    "weird": Style(free.weird, ("medium",), ("soft", "medium", "loud", "quiet")),
    "drum circle": Style(free.drum_circle, ("medium", "fast"), ("medium", "loud"), (0, 24, 25)),
}

# One round of artists. Styles with a tag of their own come twice, and neighbours differ, so
# that every beginning of the dataset is a fair mixture of it.
ROUND: tuple[str, ...] = (
    *("techno", "quartet", "jazz", "solo", "metal", "choir", "indian", "country"),
    *("ambient", "chorale", "pop", "orchestra", "weird", "fiddle solo", "rock", "new age"),
    *("piano", "drum circle", "medieval", "downtempo", "duet", "techno", "choir", "metal"),
    *("solo", "jazz", "orchestra", "indian", "ceilidh", "weird", "country", "quartet"),
)
