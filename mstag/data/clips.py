"""What a dataset is to mstag: a list of clips and the tags that may describe them.

Every dataset adapter (``shard_tools.catalogs``) ends in a :class:`Catalogue`;
nothing downstream knows which dataset it came from.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass


@functools.lru_cache(maxsize=1 << 16)
def _shared(tags: frozenset[str]) -> frozenset[str]:
    """The first set that was seen of all that are equal."""
    return tags


@dataclass(frozen=True, slots=True)
class Clip:
    """One piece of audio with its tags.

    Attributes:
        id: unique within the catalogue.
        path: audio file, relative to the data folder, with forward slashes.
        tags: names of the tags that people (or the score) gave it; all of them,
            also those outside the vocabulary.
        track: identity of the track it was cut from ("" when unknown).
        artist: identity of the artist ("" when unknown).
        album: identity of the album ("" when unknown).
        split: "train", "valid" or "test"; None until a split rule has run.
        start_s: where the clip starts inside the file, in seconds.
        duration_s: how long it lasts, in seconds; None: to the end of the file.
        known: where labels are partial, the tags of which it is known whether they fit;
            of all others it is unknown. None: every tag is known.
    """

    id: str
    path: str
    tags: frozenset[str]
    track: str = ""
    artist: str = ""
    album: str = ""
    split: str | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    known: frozenset[str] | None = None

    def __post_init__(self) -> None:
        # Clips share what they have in common: a table of millions takes half the memory.
        for name in ("track", "artist", "album"):
            object.__setattr__(self, name, sys.intern(getattr(self, name)))
        object.__setattr__(self, "tags", _shared(self.tags))
        if self.known is not None:
            object.__setattr__(self, "known", _shared(self.known))


@dataclass(frozen=True, slots=True)
class TagCount:
    """A tag of the vocabulary and its positives over every row of the table."""

    tag: str
    positives: int


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A row that is not packed, and why."""

    id: str
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A dataset, ready to be packed.

    Attributes:
        dataset: its name, as in ``dataset.name``.
        tags: the vocabulary in vector order.
        clips: every clip that is packed, each with a split.
        split_rule: how clips were assigned, in words a reader understands.
        excluded: rows that are left out, each with its reason.
    """

    dataset: str
    tags: list[TagCount]
    clips: list[Clip]
    split_rule: str
    excluded: list[Exclusion]

    @property
    def tag_names(self) -> list[str]:
        """Tag names in vector order."""
        return [count.tag for count in self.tags]
