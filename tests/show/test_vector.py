from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mstag.show import vector

NUMBERS = st.floats(-1e6, 1e6)


def points(svg: str) -> list[list[tuple[float, float]]]:
    """The lines of a plot; fails where it is not well-formed."""
    return [
        [
            (float(x), float(y))
            for x, y in (pair.split(",") for pair in line.attrib["points"].split())
        ]
        for line in ElementTree.fromstring(svg).iter("polyline")
    ]


@given(st.dictionaries(st.text(max_size=8), st.lists(NUMBERS, min_size=1, max_size=9), max_size=5))
def test_lines_stay_inside_their_frame_and_rise_with_their_values(
    series: dict[str, list[float]],
) -> None:
    lines = {name: (range(len(y)), y) for name, y in series.items()}
    svg = vector.lines(lines, xlabel="x", ylabel='"<y>', alt='<&"', xticks=[(0, "first")])
    drawn = points(svg)
    assert len(drawn) == len(series)
    for y, line in zip(series.values(), drawn, strict=True):
        assert all(0 <= a <= vector.WIDTH and 0 <= b <= vector.HEIGHT for a, b in line)
        heights = [-b for _, b in line]
        assert all(
            (heights[i] - heights[j]) * (y[i] - y[j]) >= 0 for i in range(len(y)) for j in range(i)
        )


def test_histograms_stand_on_the_axis() -> None:
    one = points(vector.histogram([0, 1, 2], {"a": [10, 0]}, xlabel="x", ylabel="y", alt="z"))
    assert one[0][0][1] == one[0][-1][1] == one[0][3][1] == max(b for _, b in one[0])
    svg = vector.histogram([0, 1], {"a": [1], "b": [0]}, xlabel="x", ylabel="y", alt="z")
    texts = [text.text for text in ElementTree.fromstring(svg).iter("text")]
    assert {"a", "b", "x", "y"} <= set(texts) and "-0" not in texts
    assert points(vector.histogram([0, 1], {}, xlabel="x", ylabel="y", alt="z")) == []


@given(NUMBERS, st.floats(1e-6, 1e6), st.integers(2, 9))
def test_ticks_are_few_round_and_inside(low: float, span: float, most: int) -> None:
    assume(low + span > low and span > 1e-9 * abs(low))
    ticks = vector.round_ticks(low, low + span, most)
    assert len(ticks) <= most
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)


@pytest.mark.parametrize(
    ("low", "high", "ticks"), [(0, 10, [0, 2, 4, 6, 8, 10]), (-1, 1, [-1, -0.5, 0, 0.5, 1])]
)
def test_ticks_that_a_person_would_choose(low: float, high: float, ticks: list[float]) -> None:
    assert vector.round_ticks(low, high) == pytest.approx(ticks)


@given(
    st.lists(
        st.tuples(
            st.text(max_size=40),
            st.floats(-1, 1),
            st.none() | st.tuples(st.floats(-1, 0), st.floats(0, 1)),
        ),
        max_size=5,
    )
)
def test_dots_stand_on_their_rows_inside_the_drawing(rows: list[vector.Row]) -> None:
    svg = ElementTree.fromstring(
        vector.dots(rows, xlabel="<x>", alt='<&"', reference=0.5).encode("utf-8")
    )
    circles = list(svg.iter("circle"))
    assert len(circles) == len(rows)
    places = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in circles]
    assert [y for _, y in places] == sorted({y for _, y in places})
    for (x, _), (_, value, _) in zip(places, rows, strict=True):
        assert 0 <= x <= vector.WIDTH
        assert all((x - a) * (value - b) >= 0 for (a, _), (_, b, _) in zip(places, rows))  # noqa: B905


def test_shades_are_as_full_as_their_values_and_long_names_are_cut() -> None:
    name = "a tag with <a> very long name"
    text = vector.shades([name, "b"], [[0.0, 1.0], [0.5, 0.25]], end=29, xlabel="s", alt="z")
    svg = ElementTree.fromstring(text)
    assert [r.attrib["fill-opacity"] for r in svg.iter("rect")] == ["0.00", "1.00", "0.50", "0.25"]
    assert [title.text for title in svg.iter("title")] == [name]
    texts = [text.text for text in svg.iter("text")]
    assert {"b", "s", "10", "20"} <= set(texts) and name not in texts
    assert ElementTree.fromstring(vector.shades([], [], end=1, xlabel="s", alt="z")) is not None


def test_sixteen_lines_all_differ() -> None:
    series = {str(n): ([0.0, 1.0], [0.0, float(n)]) for n in range(16)}
    svg = ElementTree.fromstring(vector.lines(series, xlabel="x", ylabel="y", alt="z"))
    looks = {
        (line.attrib["style"], line.attrib["stroke-dasharray"]) for line in svg.iter("polyline")
    }
    assert len(looks) == 16
