"""Scores of a piece as a whole and over time; files that browsers can play."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from tiny_tagger import FEATURES, WINDOW_SAMPLES, make_bundle, make_wav, music

from mstag.data.audio import load_audio
from mstag.tagging import hearing
from mstag.tagging.hearing import Stopped, hear, part_edges, read
from mstag.tagging.tagger import Tagger

RATE_HZ = FEATURES.sample_rate_hz


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    return Tagger.load(make_bundle(tmp_path_factory.mktemp("bundle")), "cpu")


def test_the_whole_is_scored_as_the_command_does(tagger: Tagger, tmp_path: Path) -> None:
    path = make_wav(tmp_path / "a.wav", 3.7)
    waveform, to_play = read(path, RATE_HZ)
    assert to_play == path
    heard = hear(tagger, path, waveform, lambda share: None)
    assert tagger.ranked(heard.scores) == tagger.tag(path)
    assert heard.duration_s == pytest.approx(3.7 * WINDOW_SAMPLES / RATE_HZ, abs=1 / RATE_HZ)


def test_parts_are_heard_alone_and_over_and_over(
    tagger: Tagger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing, "LEAST_PART_S", 0.1)
    path = make_wav(tmp_path / "a.wav", 2)
    waveform = music(2 * WINDOW_SAMPLES)
    heard = hear(tagger, path, waveform, lambda share: None)
    assert heard.over_time.shape == (2 * hearing.PARTS_PER_WINDOW, len(tagger.tag_names))
    part = waveform[3 * WINDOW_SAMPLES // 8 : 4 * WINDOW_SAMPLES // 8]
    alone = tagger.scores(np.tile(part, 8), RATE_HZ)
    np.testing.assert_allclose(heard.over_time[3], alone, atol=1e-6)
    # What is far away changes nothing.
    other = waveform.copy()
    other[: 3 * WINDOW_SAMPLES // 8] = 0
    np.testing.assert_array_equal(
        hear(tagger, path, other, lambda share: None).over_time[3:], heard.over_time[3:]
    )


@given(st.integers(1, 10**9), st.integers(1000, 96_000), st.floats(0.5, 30))
def test_parts_cover_a_piece(num_samples: int, rate_hz: int, window_s: float) -> None:
    edges = part_edges(num_samples, rate_hz, window_s)
    lengths = np.diff(edges)
    assert edges[0] == 0 and edges[-1] == num_samples
    assert 1 <= len(lengths) <= hearing.MOST_PARTS
    assert lengths.min() >= 1 and lengths.max() - lengths.min() <= 1


def test_an_hour_has_no_more_parts_than_a_screen_has_room_for() -> None:
    assert len(part_edges(3600 * 11_025, 11_025, 29.2)) == hearing.MOST_PARTS + 1
    assert len(part_edges(29 * 11_025, 11_025, 29.2)) == 9


def test_progress_is_told_and_ends_the_work(tagger: Tagger, tmp_path: Path) -> None:
    told: list[float] = []
    path = make_wav(tmp_path / "a.wav", 2)
    hear(tagger, path, music(5 * WINDOW_SAMPLES), told.append)
    assert told == sorted(told) and told[0] == 0 and told[-1] < 1

    def stop(share: float) -> None:
        if share:
            raise Stopped

    with pytest.raises(Stopped):
        hear(tagger, path, music(2 * WINDOW_SAMPLES), stop)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_what_browsers_play_is_played_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, music(8000), RATE_HZ)
    waveform, to_play = read(path, RATE_HZ)
    assert to_play == path
    np.testing.assert_array_equal(waveform, load_audio(path, RATE_HZ))


def test_other_kinds_get_a_copy_to_play(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"  # whatever its name says
    soundfile.write(path, np.stack([music(96_000), music(96_000)], 1), 96_000, format="AIFF")
    waveform, to_play = read(path, RATE_HZ)
    np.testing.assert_array_equal(waveform, load_audio(path, RATE_HZ))
    copy = soundfile.info(to_play)
    assert (copy.format, copy.samplerate, copy.frames) == ("WAV", 48_000, 48_000)
    before = to_play.stat().st_mtime_ns
    assert read(path, RATE_HZ)[1] == to_play and to_play.stat().st_mtime_ns == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.wav", "a.wav.to-play.wav"]


def test_days_of_silence_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "MOST_HOURS", 1 / 3600)
    with pytest.raises(ValueError, match=r"holds more than 0\.0\d+ hours of audio: cut it"):
        read(make_wav(tmp_path / "a.wav", 2), RATE_HZ)
    read(make_wav(tmp_path / "b.wav", 0.9), RATE_HZ)
