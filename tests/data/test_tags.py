"""Vocabularies: the merge, the order, the vectors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstag.data.clips import Clip, TagCount
from mstag.data.tags import SYNONYM_GROUPS, count_tags, merge, multi_hot, renames

TAG = st.sampled_from(
    [name for group in SYNONYM_GROUPS for name in group] + ["piano", "female vocal"]
)


def test_groups_are_disjoint_and_complete() -> None:
    names = [name for group in SYNONYM_GROUPS for name in group]
    assert len(SYNONYM_GROUPS) == 29
    assert len(names) == len(set(names)) == 82  # 188 tags less 82 plus 29 groups = 135
    assert "female vocal" not in names


def test_merged_tag_bears_the_groups_first_name() -> None:
    names = renames("merged")
    assert names["clasical"] == "classical"
    assert names["silence"] == "quiet"
    assert names["instrumental"] == "no singer"
    assert "classical" not in names
    assert renames("raw") == {}
    with pytest.raises(ValueError, match=r"dataset\.vocabulary"):
        renames("corrected")


def test_merging_is_the_or_of_the_columns() -> None:
    assert merge(["clasical", "classic", "piano"], renames("merged")) == {"classical", "piano"}


def test_counts_are_sorted_down_then_in_table_order() -> None:
    rows = [frozenset({"c", "b"}), frozenset({"b"}), frozenset({"a"}), frozenset({"c"})]
    counts = count_tags(rows, ["d", "a", "c", "b"], {})
    assert counts == [TagCount("c", 2), TagCount("b", 2), TagCount("a", 1), TagCount("d", 0)]


def test_merged_tag_stands_at_its_groups_first_column() -> None:
    # "voices" comes first in the table, so "vocal" ranks before "piano" at equal count.
    order = ["voices", "piano", "vocal"]
    rows = [frozenset({"vocal", "voices"}), frozenset({"piano"})]
    assert count_tags(rows, order, renames("merged")) == [
        TagCount("vocal", 1),
        TagCount("piano", 1),
    ]


@given(st.lists(st.frozensets(TAG, max_size=5), max_size=20))
def test_counts_do_not_depend_on_the_order_of_rows(rows: list[frozenset[str]]) -> None:
    order = sorted({tag for row in rows for tag in row})
    names = renames("merged")
    counts = count_tags(rows, order, names)
    assert counts == count_tags(reversed(rows), order, names)
    for count in counts:
        assert count.positives == sum(count.tag in merge(row, names) for row in rows)


def test_multi_hot() -> None:
    clips = [Clip("1", "1.mp3", frozenset({"b", "other"})), Clip("2", "2.mp3", frozenset())]
    labels = multi_hot(clips, ["a", "b"])
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[0, 1], [0, 0]]
    assert multi_hot([], ["a", "b"]).shape == (0, 2)
