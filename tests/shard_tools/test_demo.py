"""The demo dataset: deterministic, true, in MTT's layout, and safe to interrupt."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard_tools.catalogs.demo import make_demo
from shard_tools.demo import make, material, midi, notes, piece, room, synth, tables
from shard_tools.demo.instruments import INSTRUMENTS, PROGRAM_LEVEL_DB
from shard_tools.demo.styles import ROUND, STYLES

for package in ("music21", "pretty_midi", "midirenderer", "lameenc"):
    pytest.importorskip(package, reason=f"{package} (extra `demo`) is not installed")

REPOSITORY = Path(__file__).resolve().parents[2]
REAL_TABLES = REPOSITORY.parent / "shared" / "data" / "mtt"
NUM_CLIPS = 4  # one whole track and the first clip of the next


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def children_of(pid: int) -> list[int]:
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listing.read_text().split()] if listing.exists() else []


def wait_until_gone(pids: list[int]) -> None:
    """Waits for processes to end, at most 20 s."""
    deadline = time.monotonic() + 20
    for pid in pids:
        status = Path(f"/proc/{pid}/stat")
        with contextlib.suppress(OSError):
            while status.read_text().rpartition(")")[2].split()[0] != "Z":
                assert time.monotonic() < deadline, f"process {pid} outlives its parent"
                time.sleep(0.01)


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    make_demo(folder, num_clips=NUM_CLIPS, num_workers=1, progress=False)
    return folder


# ------------------------------------------------------------------ the folder


def test_bytes_do_not_depend_on_the_number_of_workers(demo: Path, tmp_path: Path) -> None:
    make_demo(tmp_path / "two", num_clips=NUM_CLIPS, num_workers=2, progress=False)
    assert contents(tmp_path / "two") == contents(demo)


def test_a_smaller_set_is_the_beginning_of_a_larger_one(demo: Path, tmp_path: Path) -> None:
    make_demo(tmp_path / "one", num_clips=1, num_workers=1, progress=False)
    small, large = contents(tmp_path / "one"), contents(demo)
    for name in (make.ANNOTATIONS, make.INFO):
        assert large.pop(name).startswith(small.pop(name))
    del small[make.REQUEST]
    assert len(small) == 1
    assert small.items() <= large.items()


def test_tables_are_written_as_mtt_writes_its_own(demo: Path) -> None:
    for name, columns in (
        (make.ANNOTATIONS, ("clip_id", *piece.VOCABULARY, "mp3_path")),
        (make.INFO, tables.INFO_COLUMNS),
    ):
        text = (demo / name).read_text()
        assert text.endswith("\n")
        lines = [line.split("\t") for line in text.splitlines()]
        assert len(lines) == NUM_CLIPS + 1
        assert lines[0] == [f'"{column}"' for column in columns]
        for line in lines:
            assert len(line) == len(columns)
            assert all(cell[0] == cell[-1] == '"' and len(cell) >= 2 for cell in line)


@pytest.mark.skipif(not REAL_TABLES.exists(), reason="needs ../shared/data/mtt: MTT's own tables")
def test_columns_are_those_of_the_real_tables() -> None:
    def first_line(name: str) -> list[str]:
        with gzip.open(REAL_TABLES / f"{name}.gz", "rt") as file:
            return file.readline().rstrip("\n").split("\t")

    assert first_line(make.INFO) == [f'"{column}"' for column in tables.INFO_COLUMNS]
    header = [cell.strip('"') for cell in first_line(make.ANNOTATIONS)]
    assert (header[0], header[-1]) == ("clip_id", "mp3_path")
    assert set(piece.VOCABULARY) <= set(header[1:-1])


def test_file_names_tell_artist_album_number_title_and_window(demo: Path) -> None:
    rows = read_table(demo / make.INFO)
    assert [row["clip_id"] for row in rows] == ["1", "2", "3", "4"]
    for row in rows:
        folder, _, name = row["mp3_path"].partition("/")
        assert folder in set("0123456789abcdef")
        artist, album, number, title, start, end = name.removesuffix(".mp3").split("-")
        assert (artist, album) == (tables.slug(row["artist"]), tables.slug(row["album"]))
        assert (number, title) == (row["track_number"], tables.slug(row["title"]))
        assert (start, end) == (row["segmentStart"], row["segmentEnd"])
    assert [int(row["segmentStart"]) for row in rows] == [0, 29, 58, 0]


def test_clips_are_29_s_of_unclipped_sound_with_tags(demo: Path) -> None:
    import soundfile

    for row in read_table(demo / make.ANNOTATIONS):
        data = (demo / row["mp3_path"]).read_bytes()
        assert 115_000 < len(data) < 118_000  # 32 kbit/s
        wave, rate = soundfile.read(io.BytesIO(data))
        assert rate == room.SAMPLE_RATE_HZ
        assert wave.ndim == 1
        assert 29.0 <= len(wave) / rate < 29.3
        assert -40 < room.level_db(wave) < -8
        assert np.abs(wave).max() < 1.0
        assert sum(row[tag] == "1" for tag in piece.VOCABULARY) >= 3


def test_a_whole_folder_is_left_alone(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not even the packages are needed any more.
    monkeypatch.setattr(make, "PACKAGES", ("no_such_package",))
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    make_demo(demo, num_clips=NUM_CLIPS)
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before


def test_a_killed_generation_goes_on_where_it_was(demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    call = f"make_demo(Path({str(folder)!r}), num_clips={NUM_CLIPS}, num_workers=2, progress=False)"
    code = f"from pathlib import Path; from shard_tools.catalogs.demo import make_demo; {call}"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)
    first_record = folder / make.RECORDS / "00000.json"
    while not first_record.exists():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    workers = children_of(process.pid)
    process.kill()
    process.wait()
    wait_until_gone(workers)
    assert not (folder / make.ANNOTATIONS).exists()
    finished = [folder / row["mp3_path"] for row in read_table(demo / make.INFO)[:3]]
    before = [path.stat().st_mtime_ns for path in finished]

    make_demo(folder, num_clips=NUM_CLIPS, num_workers=1, progress=False)
    assert contents(folder) == contents(demo)
    assert [path.stat().st_mtime_ns for path in finished] == before


def test_a_lost_clip_is_made_again_when_a_generation_goes_on(demo: Path, tmp_path: Path) -> None:
    request = make.Request(seed=0, num_clips=1)
    (tmp_path / make.RECORDS).mkdir()
    make.make_track(tmp_path, request, 0)
    assert make._is_made(tmp_path, request, 0)
    (clip,) = tmp_path.rglob("*.mp3")
    clip.unlink()
    assert not make._is_made(tmp_path, request, 0)
    make.make(tmp_path, request, num_workers=1, progress=False)
    assert clip.read_bytes() == contents(demo)[clip.relative_to(tmp_path).as_posix()]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"seed": 1}, "with seed 0, not 1"), ({"num_clips": 5}, "with num_clips 4, not 5")],
)
def test_another_request_is_refused(demo: Path, change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make_demo(demo, **{"num_clips": NUM_CLIPS, **change})
    assert "choose another folder, or remove this one" in str(error.value)


def test_a_foreign_folder_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "song.mp3").write_bytes(b"mine")
    with pytest.raises(ValueError, match="choose an empty folder or move these away"):
        make_demo(tmp_path, num_clips=1)
    assert contents(tmp_path) == {"song.mp3": b"mine"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(ValueError, match="not a folder"):
        make_demo(tmp_path / "data", num_clips=1)


def test_a_damaged_request_is_named(tmp_path: Path) -> None:
    for text in ("{", "[]", json.dumps({"seed": 0})):
        (tmp_path / make.REQUEST).write_text(text)
        with pytest.raises(ValueError, match=r"demo\.json: cannot be read"):
            make_demo(tmp_path, num_clips=1)


@pytest.mark.parametrize(("name", "value"), [("num_clips", 0), ("seed", -1)])
def test_settings_out_of_range_are_named(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        make_demo(tmp_path, **{name: value})


def test_missing_packages_are_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "PACKAGES", ("numpy", "no_such_package"))
    with pytest.raises(ValueError, match=r"no_such_package not installed; run `make setup`"):
        make_demo(tmp_path / "data", num_clips=1)
    assert not (tmp_path / "data").exists()


# ------------------------------------------------------------------ the tags


def programs_of(*instruments: str) -> set[int]:
    return {program for name in instruments for program in INSTRUMENTS[name].programs}


@pytest.mark.parametrize("track", [0, 2, 3, 4, 5, 6, 7, 8, 12, 15, 17, 20])
def test_tags_are_true_of_the_midi_that_is_rendered(track: int) -> None:
    """pretty_midi reads the file back, so that nothing of the generator judges itself."""
    import pretty_midi

    work = piece.compose(0, track)
    read = pretty_midi.PrettyMIDI(io.BytesIO(synth.to_midi(work)))
    for window in range(piece.CLIPS_PER_TRACK):
        start, end = window * piece.CLIP_S, (window + 1) * piece.CLIP_S
        tags = piece.tags_of(work, window, level_db=-20.0)
        seconds: dict[int, float] = {}
        num_hits = 0
        onsets = []
        for instrument in read.instruments:
            for note in instrument.notes:
                if start <= note.start < end:
                    onsets.append(note.start)
                    num_hits += instrument.is_drum
                if not instrument.is_drum:
                    overlap = min(note.end, end) - max(note.start, start)
                    before = seconds.get(instrument.program, 0.0)
                    seconds[instrument.program] = before + max(0.0, overlap)
        heard = {program for program, sum_s in seconds.items() if sum_s > 2.05}
        barely = {program for program, sum_s in seconds.items() if sum_s > 1.95}

        assert ("drums" in tags) == (num_hits >= 10)
        assert ("vocal" in tags) == bool(heard & programs_of("choir", "voice"))
        assert ("no vocals" in tags) != ("vocal" in tags)
        if "solo" in tags:
            assert num_hits == 0
            assert len({p for p, sum_s in seconds.items() if sum_s > 0.1}) == 1
        for name, instrument in INSTRUMENTS.items():
            sounds = any(
                part.instrument == name and work.artist.programs[name] in heard
                for part in work.parts
            )
            if sounds:
                assert tags >= set(instrument.tags), name
        for tag, names in (
            ("piano", ("piano",)),
            ("organ", ("organ",)),
            ("synth", ("synth bass", "lead", "pad", "effect")),
            ("electric guitar", ("clean guitar", "distorted guitar")),
            ("sitar", ("sitar",)),
        ):
            if tag in tags:
                assert barely & programs_of(*names), tag
        apart = 1 + np.count_nonzero(np.diff(np.sort(onsets)) > notes.SAME_ONSET_S)
        if "fast" in tags:
            assert apart / piece.CLIP_S >= 3.9
        if "slow" in tags:
            assert apart / piece.CLIP_S <= 2.4


def test_an_instrument_must_sound_for_two_seconds_of_the_window() -> None:
    duet = piece.compose(0, 20)
    lead, under = duet.parts
    (tag,) = set(INSTRUMENTS[under.instrument].tags) - set(INSTRUMENTS[lead.instrument].tags)
    for length_s, sounds in ((1.9, False), (2.1, True)):
        short = replace(under, notes=np.array([[30.0, length_s, 60.0]]))
        changed = replace(duet, parts=(lead, short))
        windows = [tag in piece.tags_of(changed, window, -20.0) for window in range(3)]
        assert windows == [False, sounds, False]


def test_loudness_tags_follow_the_measured_level() -> None:
    solo = piece.compose(0, 3)  # no drums
    levels = {db: piece.tags_of(solo, 0, db) & {"loud", "soft", "quiet"} for db in (-12, -20)}
    assert levels == {-12: {"loud"}, -20: set()}
    assert piece.tags_of(solo, 0, -28.0) & {"loud", "soft", "quiet"} == {"soft"}
    assert piece.tags_of(solo, 0, -36.0) & {"loud", "soft", "quiet"} == {"soft", "quiet"}
    techno = piece.compose(0, 0)
    assert piece.tags_of(techno, 0, -28.0) & {"loud", "soft", "quiet"} == set()


def test_every_style_writes_for_every_artist_within_the_tables() -> None:
    for name, style in STYLES.items():
        if style.write.__module__.endswith("scored"):
            continue  # the scores take seconds; the ones below and the fixture read some
        for artist_index in range(12):
            for pace in sorted(set(style.paces)):
                draft = style.write(brief_for(name, artist_index, pace))
                assert draft.tags <= set(piece.VOCABULARY)
                assert all(voice.instrument in INSTRUMENTS for voice in draft.voices)
                ends = [notes.end_of(v.notes) * 60 / draft.bpm for v in draft.voices]
                if len(draft.hits):
                    ends.append(float(draft.hits[:, 0].max()) * 60 / draft.bpm + 4)
                assert max(ends) > 85, (name, pace)


@pytest.mark.parametrize("name", ["medieval", "ceilidh", "country", "piano"])
def test_a_scored_style_fills_its_piece(name: str) -> None:
    draft = STYLES[name].write(brief_for(name, 1, "medium"))
    assert draft.title
    assert max(notes.end_of(v.notes) for v in draft.voices) * 60 / draft.bpm > 85


def brief_for(style: str, artist_index: int, pace: str) -> piece.Brief:
    rng = np.random.default_rng(artist_index)
    return piece.Brief(rng, 0, style, artist_index, artist_index, pace, float(piece.TRACK_S))


def test_every_program_has_a_measured_level_and_every_tag_a_column() -> None:
    for instrument in INSTRUMENTS.values():
        assert set(instrument.programs) <= set(PROGRAM_LEVEL_DB)
        assert set(instrument.tags) <= set(piece.VOCABULARY)
    assert set(ROUND) == set(STYLES)
    assert len(set(piece.VOCABULARY)) == len(piece.VOCABULARY)


def test_any_beginning_is_a_mixture_of_artists_and_styles() -> None:
    places = [piece.artist_of_track(track) for track in range(4 * len(ROUND))]
    assert len(set(places)) == len(places)
    assert {artist for artist, _ in places} == set(range(2 * len(ROUND)))
    first = [piece.make_artist(0, artist).style for artist, _ in places[: len(ROUND)]]
    assert set(first) == set(STYLES)
    assert len(set(first[:8])) == 8
    # 800 clips: at least 80 artists, so that a split by artist has some of everything.
    num_tracks = -(-800 // piece.CLIPS_PER_TRACK)
    assert len({piece.artist_of_track(track)[0] for track in range(num_tracks)}) >= 80


def test_artists_differ_and_are_named_apart() -> None:
    artists = [piece.make_artist(0, number) for number in range(96)]
    assert len({artist.name for artist in artists}) == 96
    assert len({artist.room for artist in artists}) == 96
    assert piece.make_artist(0, 5) == piece.make_artist(0, 5)
    assert piece.make_artist(0, 5).room != piece.make_artist(1, 5).room


# ------------------------------------------------------------------ notes, MIDI, room

pitches = st.integers(0, 127).map(float)
spans = st.floats(0.01, 50, allow_nan=False)


@st.composite
def note_arrays(draw: st.DrawFn) -> notes.Notes:
    return notes.to_notes(draw(st.lists(st.tuples(spans, spans, pitches), min_size=1, max_size=20)))


@given(note_arrays(), st.integers(20, 60), st.integers(12, 50))
@settings(max_examples=60, deadline=None)
def test_into_range_moves_by_octaves_into_the_range(
    line: notes.Notes, low: int, width: int
) -> None:
    moved = notes.into_range(line, low, low + width)
    assert moved[:, 2].min() >= low
    assert moved[:, 2].max() <= low + width
    np.testing.assert_array_equal((moved[:, 2] - line[:, 2]) % 12, 0)
    np.testing.assert_array_equal(moved[:, :2], line[:, :2])


@given(note_arrays(), st.floats(1, 300))
@settings(max_examples=60, deadline=None)
def test_repeat_until_is_periodic_and_ends_in_time(line: notes.Notes, num_beats: float) -> None:
    period = notes.end_of(line)
    repeated = notes.repeat_until(line, period, num_beats)
    assert notes.end_of(repeated) <= num_beats + 1e-9
    first = line[line[:, 0] < num_beats]
    np.testing.assert_array_equal(repeated[: len(first), 0], first[:, 0])


def test_onsets_that_sound_together_count_once() -> None:
    onsets = np.array([1.0, 0.0, 1.01, 1.02, 2.0])
    assert notes.onset_rate(onsets, span=2.0, resolution=0.04) == 1.5
    assert notes.onset_rate(np.array([]), span=2.0, resolution=0.04) == 0.0


def test_a_tune_is_harmonised_by_its_own_notes() -> None:
    # C E G C | F A C F | G B D G | C: tonic, subdominant, dominant, tonic.
    line = [60, 64, 67, 60, 65, 69, 72, 65, 67, 71, 74, 67, 60]
    tune = notes.to_notes((float(i), 1.0, float(pitch)) for i, pitch in enumerate(line))
    harmony = material.harmonise(tune, bar_beats=4.0)
    assert harmony.root == 0
    assert harmony.scale == material.SCALES["major"]
    assert harmony.degrees == (0, 3, 4, 0)


# From the examples in the Standard MIDI File specification (MMA, 1996).
@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "00"), (0x7F, "7f"), (0x80, "8100"), (0x3FFF, "ff7f"), (0x100000, "c08000")],
)
def test_variable_length_quantities(number: int, expected: str) -> None:
    assert midi.variable_length(number).hex() == expected


@given(st.integers(1, 3_000_000))
@settings(max_examples=200, deadline=None)
def test_fast_lengths_are_even_and_have_small_factors(at_least: int) -> None:
    length = room.fast_length(at_least)
    assert at_least <= length <= max(8, 1.3 * at_least)
    assert length % 2 == 0
    for prime in (2, 3, 5):
        while length % prime == 0:
            length //= prime
    assert length == 1


def dry(**changes: float) -> room.Room:
    plain = {"decay_s": 0.0, "wet": 0.3, "tilt_db": 0.0, "bump_hz": 500.0, "bump_db": 0.0}
    return room.Room(**{**plain, "hiss_db": -120.0, **changes})


def test_a_dry_flat_room_only_resamples_and_sets_the_level() -> None:
    seconds = np.arange(3 * room.SOURCE_HZ) / room.SOURCE_HZ
    tone = np.sin(2 * np.pi * 440 * seconds).astype(np.float32)
    above = np.sin(2 * np.pi * 11_000 * seconds).astype(np.float32)  # beyond what 16 kHz can hold
    out = room.record(tone + above, dry(), -20.0, np.random.default_rng(0))
    expected = tone[:: room.FACTOR] * 0.1 * np.sqrt(2)
    middle = slice(4000, -4000)  # a tone that starts at once rings at its ends
    np.testing.assert_allclose(out[middle], expected[middle], atol=2e-3)


def test_reverberation_lasts_and_a_tilt_tilts() -> None:
    click = np.zeros(2 * room.SOURCE_HZ, dtype=np.float32)
    click[1000] = 1.0
    rng = np.random.default_rng(0)
    after = slice(8_000, 12_000)  # half a second after the click
    plain = room.record(click, dry(), -40.0, rng)
    wet = room.record(click, dry(decay_s=1.4), -40.0, rng)
    assert room.level_db(wet[after]) > room.level_db(plain[after]) + 20
    noise = rng.standard_normal(2 * room.SOURCE_HZ, dtype=np.float32)

    def treble_db(tilt_db: float) -> float:
        wave = room.record(noise, dry(tilt_db=tilt_db), -30.0, np.random.default_rng(0))
        power = np.abs(np.fft.rfft(wave)) ** 2
        # 0.5 to 1 kHz against 4 to 8 kHz: three octaves, and eight times the bins.
        return float(10 * np.log10(power[8000:16000].mean() / power[1000:2000].mean()))

    assert treble_db(2.0) - treble_db(0.0) == pytest.approx(6.0, abs=0.5)


def test_loud_peaks_are_rounded_off() -> None:
    noise = np.random.default_rng(0).standard_normal(room.SOURCE_HZ, dtype=np.float32)
    out = room.record(noise, dry(), -6.0, np.random.default_rng(0))
    assert np.abs(out).max() <= room.PEAK
    assert np.count_nonzero(np.abs(out) > 0.999 * room.PEAK) < len(out) / 100


@pytest.fixture(autouse=True)
def _no_leftovers(tmp_path: Path) -> Iterator[None]:
    """Whatever happened, no half-written file stays in a finished folder."""
    yield
    for request in tmp_path.rglob(make.REQUEST):
        if (request.parent / make.ANNOTATIONS).exists():
            assert not list(request.parent.rglob(".*"))
            assert not (request.parent / make.RECORDS).exists()
