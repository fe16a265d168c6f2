"""What makes one demo set different from another: a recipe.

``SMALL`` is the demo set that `make train` makes. ``LARGE`` is the one that networks are
compared on: its splits are part of it, and the test split is played on patches and from
scores that training never has. ``STRANGER`` is a test split alone, from another soundfont;
``SCOUT`` a validation split alone, from a third one, by which settings may be chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shard_tools.demo import patches, scores
from shard_tools.demo.styles import ROUND, STYLES, Style
from shard_tools.demo.styles_more import ALL_STYLES, LARGE_ROUND

# Ten artists that follow each other in one place of the round, in an order drawn per place.
LARGE_LOTS = ("train",) * 7 + ("valid",) + ("test",) * 2


@dataclass(frozen=True, slots=True)
class Recipe:
    """One kind of demo set.

    Attributes:
        name: as ``dataset.variant`` has it.
        num_clips: its size when none is asked for.
        version: raised whenever the same request gives other clips than before.
        stream: sets the random numbers of recipes apart; 0 is the small set's own.
        styles: by name.
        round: the style of each artist of a round.
        lots: splits that are dealt to artists; () leaves the split to the config's rule.
        patches: per split ("" without lots), the sounds that its artists choose from.
        kits: per split, what an artist's drum kit becomes; {} changes none.
        collections: where scores are taken from, see ``scores.COLLECTIONS``.
        shelves: per split, the part of the scores that it plays from; {} is all of them.
        is_rough: with tempo drift, odd tunings and the recording chain of ``chain``.
        package: of ``soundfonts.PACKAGES``, whose soundfont it is rendered with unless the user
            names others; "": with pretty_midi's.
    """

    name: str
    num_clips: int
    version: int
    stream: int
    styles: Mapping[str, Style]
    round: tuple[str, ...]
    lots: tuple[str, ...]
    patches: Mapping[str, patches.PatchTable]
    kits: Mapping[str, Mapping[int, int]]
    collections: Mapping[str, scores.Sources]
    shelves: Mapping[str, str]
    is_rough: bool
    package: str

    @property
    def is_foreign(self) -> bool:
        """Whether it is rendered with soundfonts that the user has, not with pretty_midi's."""
        return bool(self.package)

    def rng(self, seed: int, *numbers: int) -> np.random.Generator:
        """A generator of this recipe's own for a purpose and a number."""
        streams = (self.stream,) if self.stream else ()
        return np.random.default_rng([seed, *streams, *numbers])

    def split_of(self, seed: int, artist: int) -> str:
        """The split that an artist belongs to; "" where the recipe deals none."""
        if not self.lots:
            return ""
        round_number, place = divmod(artist, len(self.round))
        block, turn = divmod(round_number, len(self.lots))
        order = self.rng(seed, 5, place, block).permutation(len(self.lots))
        return self.lots[int(order[turn])]

    def index_in_style(self, seed: int, artist: int, *, in_split: bool) -> int:
        """How many artists of the same style, or style and split, come before this one."""
        style, split = self.round[artist % len(self.round)], self.split_of(seed, artist)
        return sum(
            1
            for other in range(artist)
            if self.round[other % len(self.round)] == style
            and (not in_split or self.split_of(seed, other) == split)
        )

    def score_files(self, collection: str, split: str) -> tuple[Path, ...]:
        """The scores of a collection that a split plays from."""
        files = scores.score_files(collection, self.collections[collection])
        if not self.shelves:
            return files
        return scores.shelf(collection, files, self.shelves[split])


SMALL = Recipe(
    name="small",
    num_clips=800,
    version=1,
    stream=0,
    styles=STYLES,
    round=ROUND,
    lots=(),
    patches={"": patches.SMALL},
    kits={},
    collections=scores.COLLECTIONS,
    shelves={},
    is_rough=False,
    package="",
)
LARGE = Recipe(
    name="large",
    num_clips=2400,
    version=1,
    stream=101,
    styles=ALL_STYLES,
    round=LARGE_ROUND,
    lots=LARGE_LOTS,
    patches={"train": patches.TRAIN, "valid": patches.TRAIN, "test": patches.TEST},
    kits={
        "train": patches.TRAIN_KITS,
        "valid": patches.TRAIN_KITS,
        "test": patches.TEST_KITS,
    },
    collections=scores.LARGE_COLLECTIONS,
    shelves={"train": "train", "valid": "valid", "test": "test"},
    is_rough=True,
    package="",
)
STRANGER = Recipe(
    name="stranger",
    num_clips=480,
    version=1,
    stream=102,
    styles=ALL_STYLES,
    round=LARGE_ROUND,
    lots=("test",),
    patches={"test": patches.EVERY},
    kits={},
    collections=scores.LARGE_COLLECTIONS,
    shelves={"test": "stranger"},
    is_rough=True,
    package="fluid-soundfont-gm",
)
SCOUT = Recipe(
    name="scout",
    num_clips=240,
    version=1,
    stream=103,
    styles=ALL_STYLES,
    round=LARGE_ROUND,
    lots=("valid",),
    patches={"valid": patches.EVERY},
    kits={},
    collections=scores.LARGE_COLLECTIONS,
    shelves={"valid": "valid"},
    is_rough=True,
    package="csound-soundfont",
)
RECIPES = {recipe.name: recipe for recipe in (SMALL, LARGE, STRANGER, SCOUT)}
