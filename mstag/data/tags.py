"""Tag vocabularies: which tags a model learns, in which order, under which names.

The vocabulary "raw" takes tags as they stand. The vocabulary "merged" first joins the
29 synonym groups of the 2017 recipe (Multi-Scale-Music-Tagger), as its results depend on
them: MagnaTagATune's 188 tags become 135. A merged tag is the OR of its group and bears
the group's first name. "female vocal" is in no group, so both it and "female" are among
the 50 most frequent: an oversight of that recipe, kept because the setting is faithful.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mstag.data.clips import Clip, TagCount

SYNONYM_GROUPS: tuple[tuple[str, ...], ...] = (
    ("beat", "beats"),
    ("chant", "chanting"),
    ("choir", "choral"),
    ("classical", "clasical", "classic"),
    ("drum", "drums"),
    ("electro", "electronic", "electronica", "electric"),
    ("fast", "fast beat", "quick"),
    (
        "female",
        "female singer",
        "female singing",
        "female vocals",
        "female voice",
        "woman",
        "woman singing",
        "women",
    ),
    ("flute", "flutes"),
    ("guitar", "guitars"),
    ("hard", "hard rock"),
    ("harpsichord", "harpsicord"),
    ("heavy", "heavy metal", "metal"),
    ("horn", "horns"),
    ("india", "indian"),
    ("jazz", "jazzy"),
    (
        "male",
        "male singer",
        "male vocal",
        "male vocals",
        "male voice",
        "man",
        "man singing",
        "men",
    ),
    ("no beat", "no drums"),
    (
        "no singer",
        "no singing",
        "no vocal",
        "no vocals",
        "no voice",
        "no voices",
        "instrumental",
    ),
    ("opera", "operatic"),
    ("orchestra", "orchestral"),
    ("quiet", "silence"),
    ("singer", "singing"),
    ("space", "spacey"),
    ("string", "strings"),
    ("synth", "synthesizer"),
    ("violin", "violins"),
    ("vocal", "vocals", "voice", "voices"),
    ("strange", "weird"),
)


def renames(vocabulary: str) -> dict[str, str]:
    """Say which tags of a vocabulary bear another name than in the table.

    Args:
        vocabulary: "raw" or "table" (the same names in another order), or "merged".

    Returns:
        Name in the table -> name in the vocabulary, for the names that change.

    Raises:
        ValueError: the vocabulary is unknown.
    """
    if vocabulary in ("raw", "table"):
        return {}
    if vocabulary == "merged":
        return {name: group[0] for group in SYNONYM_GROUPS for name in group[1:]}
    raise ValueError(f'dataset.vocabulary = {vocabulary!r}: must be "raw", "table" or "merged"')


def merge(tags: Iterable[str], names: Mapping[str, str]) -> frozenset[str]:
    """Rename one clip's tags; synonyms fall together, which is the OR of their columns.

    Args:
        tags: tag names of the table.
        names: as :func:`renames` gives them.

    Returns:
        Tag names of the vocabulary.
    """
    return frozenset([names.get(tag, tag) for tag in tags])


def merge_known(
    known: Iterable[str], tags: Iterable[str], table_tags: Iterable[str], names: Mapping[str, str]
) -> frozenset[str]:
    """Rename the tags of which it is known whether they fit a clip.

    A merged tag is the OR of its group: known when one of the group is known to fit, or when
    all of the group are known.

    Args:
        known: tag names of the table.
        tags: those of them that fit.
        table_tags: every tag of the table.
        names: as :func:`renames` gives them.

    Returns:
        Tag names of the vocabulary.
    """
    unknown = merge(set(table_tags).difference(known), names)
    return (merge(known, names) - unknown) | merge(tags, names)


def count_tags(
    row_tags: Iterable[frozenset[str]], table_order: Iterable[str], names: Mapping[str, str]
) -> list[TagCount]:
    """Count the positives of every tag of a table.

    Args:
        row_tags: the tags of every row, also of rows that will not be packed.
        table_order: every tag once, in the order of the table.
        names: as :func:`renames` gives them.

    Returns:
        One count per tag of the vocabulary, most frequent first; tags of equal count in
        table order, where a merged tag stands at the first column of its group.
    """
    # Rows repeat the same few thousand combinations: merging each once saves most of the time.
    positives: Counter[str] = Counter()
    for combination, num_rows in Counter(row_tags).items():
        for tag in merge(combination, names):
            positives[tag] += num_rows
    ordered = dict.fromkeys(names.get(tag, tag) for tag in table_order)
    counts = [TagCount(tag, positives[tag]) for tag in ordered]
    return sorted(counts, key=lambda count: -count.positives)


def multi_hot(clips: Sequence[Clip], tag_names: Sequence[str]) -> NDArray[np.uint8]:
    """Write the clips' tags as vectors.

    Args:
        clips: their tags named as in the vocabulary; tags outside it are ignored.
        tag_names: the vocabulary in vector order, each name once.

    Returns:
        Array of 0 and 1, shape (n_clips, n_tags), uint8.
    """
    column = {tag: number for number, tag in enumerate(tag_names)}
    assert len(column) == len(tag_names), "a tag stands twice in the vocabulary"
    labels = np.zeros((len(clips), len(tag_names)), dtype=np.uint8)
    for row, clip in enumerate(clips):
        labels[row, [column[tag] for tag in clip.tags if tag in column]] = 1
    return labels


def known_mask(clips: Sequence[Clip], tag_names: Sequence[str]) -> NDArray[np.uint8] | None:
    """Write down which labels are known.

    Args:
        clips: their ``known`` named as in the vocabulary; tags outside it are ignored.
        tag_names: the vocabulary in vector order, each name once.

    Returns:
        Array of 0 and 1, shape (n_clips, n_tags), uint8, 1 = known; None when every label of
        every clip is known.
    """
    if all(clip.known is None for clip in clips):
        return None
    column = {tag: number for number, tag in enumerate(tag_names)}
    mask = np.ones((len(clips), len(tag_names)), dtype=np.uint8)
    for row, clip in enumerate(clips):
        if clip.known is not None:
            mask[row] = 0
            mask[row, [column[tag] for tag in clip.known if tag in column]] = 1
    return mask
