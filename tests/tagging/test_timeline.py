"""Which frames the network hears for a stretch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstag.data.clip_windows import Piece
from mstag.tagging.timeline import Timeline

HOP, WINDOW = 4, 30


def frames_heard(
    num_frames: int, every: float, chunk: int, silent: range = range(0)
) -> tuple[dict[int, list[list[int]]], int]:
    """Stretch -> the numbers of the frames that each of its chunks holds; and the stretches."""
    timeline = Timeline(every, chunk, HOP)
    found: dict[int, list[list[int]]] = {}
    num_samples = (num_frames - 1) * HOP + 1
    sound = np.ones(num_samples, np.float32)
    sound[silent.start * HOP : silent.stop * HOP] = 0

    def note(pairs: list[tuple[int, np.ndarray]]) -> None:
        for number, piece in pairs:
            assert piece.shape == (2, chunk)
            found.setdefault(number, []).append([int(value) for value in piece[0]])

    numbers = np.arange(num_frames, dtype=np.float32)
    for start in range(0, num_frames, WINDOW):
        mel = np.stack([numbers[start : start + WINDOW]] * 2)
        note(list(timeline.feed(Piece(mel, start, sound[start * HOP :][: WINDOW * HOP]))))
    note(list(timeline.finish(num_samples)))
    return found, timeline.num_stretches


@given(
    st.integers(1, 400),
    st.floats(2, 150, allow_nan=False),
    st.integers(1, 80),
)
def test_every_stretch_hears_its_own_time(num_frames: int, every: float, chunk: int) -> None:
    found, num_stretches = frames_heard(num_frames, every, chunk)
    assert num_stretches == max(1, math.ceil(((num_frames - 1) * HOP + 1) / (every * HOP) - 0.1))
    assert sorted(found) == list(range(num_stretches))
    for number, chunks in found.items():
        start = min(round(number * every), num_frames - 1)
        stop = max(start + 1, min(round((number + 1) * every), num_frames))
        for one in chunks:
            real = [frame for frame in one if frame >= 0]
            assert real == list(range(real[0], real[0] + len(real))), "frames in their order"
            assert len(real) == min(chunk, num_frames), "padding only behind a short piece"
        heard = {frame for one in chunks for frame in one}
        if num_frames >= chunk:
            covered = heard >= set(range(start, stop)) or len(heard) == chunk
            assert covered
        if stop - start <= chunk <= num_frames:
            (one,) = chunks
            middle = start + (stop - start) // 2
            ideal = start + (stop - start - chunk) // 2
            assert one[0] == min(max(0, ideal), num_frames - chunk)
            assert one[0] <= middle <= one[-1]


def test_the_rows_of_a_piece_by_hand() -> None:
    found, _ = frames_heard(100, 25, 50)
    assert {number: (one[0], one[-1]) for number, (one,) in found.items()} == {
        0: (0, 49),
        1: (12, 61),
        2: (37, 86),
        3: (50, 99),
    }
    long, _ = frames_heard(100, 50, 20)
    assert [(one[0], one[-1]) for one in long[1]] == [(50, 69), (65, 84), (80, 99)]


def test_silent_stretches_are_not_heard() -> None:
    found, num_stretches = frames_heard(100, 10, 20, silent=range(20, 40))
    assert num_stretches == 10
    assert sorted(found) == [0, 1, 4, 5, 6, 7, 8, 9]


def test_a_piece_of_any_length_needs_few_frames_at_a_time() -> None:
    timeline = Timeline(10, 20, HOP)
    most = 0
    for number in range(200):
        mel = np.zeros((2, WINDOW), np.float32)
        list(timeline.feed(Piece(mel, number * WINDOW, np.ones(WINDOW * HOP, np.float32))))
        most = max(most, timeline._mel.shape[1], len(timeline._sounds))
    assert most <= WINDOW + 2 * 20


def test_stretches_of_less_than_two_frames_are_our_mistake() -> None:
    with pytest.raises(AssertionError):
        Timeline(1.0, 20, HOP)
