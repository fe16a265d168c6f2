"""The larger demo sets: what their splits share and do not share, and that the small one stays."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import REPOSITORY

from mstag.config import load_config
from mstag.data import splits
from shard_tools.catalogs import load_catalogue
from shard_tools.catalogs.demo import make_demo
from shard_tools.demo import (
    chain,
    draft,
    make,
    patches,
    piece,
    recipe,
    room,
    scores,
    soundfonts,
    synth,
    tables,
)
from shard_tools.demo.instruments import INSTRUMENTS

for package in ("music21", "pretty_midi", "midirenderer", "lameenc"):
    pytest.importorskip(package, reason=f"{package} (extra `demo`) is not installed")

LARGE, STRANGER, SCOUT = recipe.LARGE, recipe.STRANGER, recipe.SCOUT
NUM_ARTISTS = LARGE.num_clips // (piece.CLIPS_PER_TRACK * piece.TRACKS_PER_ARTIST)


@pytest.fixture(scope="module")
def artists() -> list[piece.Artist]:
    return [piece.make_artist(0, number, LARGE) for number in range(NUM_ARTISTS)]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "data"
    make_demo(folder, num_clips=1, variant="large", num_workers=1, progress=False)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ------------------------------------------------------------------ the small set stays


# Of the generator before there were recipes (version 1).
@pytest.mark.parametrize(
    ("track", "midi_sha256", "level_db"),
    [
        (0, "9ee469e60eea286e", -19.809163371598828),
        (3, "72a18104b06982be", -28.040764286319988),
        (20, "bd709236828e17d8", -37.080976192491164),
        (70, "b9be1e14e71ffa5f", -21.83550486686261),
    ],
)
def test_the_small_set_is_what_it_was(track: int, midi_sha256: str, level_db: float) -> None:
    work = piece.compose(0, track)
    assert hashlib.sha256(synth.to_midi(work)).hexdigest().startswith(midi_sha256)
    assert work.level_db == level_db
    assert work.artist.chain is None
    assert work.artist.split == ""


def test_the_small_set_asks_for_what_it_asked() -> None:
    stored = {"seed": 0, "num_clips": 800, "generator_version": 1}
    assert make.Request(seed=0, num_clips=800).stored() == stored
    row = tables.ClipRow(1, 1, "piece", "techno ensemble 1", "volume 1", 0, 29, ())
    assert row.mp3_path == "1/techno_ensemble_1-volume_1-01-piece-0-29.mp3"
    assert piece.make_artist(0, 2).room.bump_hz == 1496.3850497557085


# ------------------------------------------------------------------ what splits share


def test_no_patch_and_no_kit_of_the_test_split_is_heard_in_training(
    artists: list[piece.Artist],
) -> None:
    assert set(patches.TRAIN) == set(patches.TEST) == set(INSTRUMENTS)
    for kind in ("patches", "kits"):
        heard: dict[str, set[object]] = {"train": set(), "valid": set(), "test": set()}
        for artist in artists:
            own: Iterable[object] = (artist.kit,)
            if kind == "patches":
                own = ((p, artist.layers.get(name)) for name, p in artist.programs.items())
            heard[artist.split].update(own)
        assert not heard["test"] & (heard["train"] | heard["valid"])
        assert heard["test"]
        assert heard["valid"] <= heard["train"]


def test_a_layer_stands_only_where_programs_run_out() -> None:
    plain = [p.program for some in patches.TRAIN.values() for p in some if p.layer is None]
    for name, some in patches.TEST.items():
        for patch in some:
            assert patch.layer is not None or patch.program not in plain, name


def test_a_score_is_on_one_shelf_only() -> None:
    everything = []
    for collection, sources in LARGE.collections.items():
        files = scores.score_files(collection, sources)
        shelves = [set(scores.shelf(collection, files, name)) for name in scores.SHELVES]
        assert sum(map(len, shelves)) == len(set().union(*shelves)) == len(files)
        assert len(shelves[0]) > len(files) * 0.45
        everything += files
    assert len(set(everything)) == len(everything)


def test_artists_play_from_the_shelf_of_their_split(monkeypatch: pytest.MonkeyPatch) -> None:
    played: dict[str, set[Path]] = {}
    score = scores.read_score(scores.score_files("fiddle", scores.COLLECTIONS["fiddle"])[0])
    assert score is not None

    def pick(files: tuple[Path, ...], *_: object) -> scores.Score:
        played.setdefault(split, set()).update(files)
        return score

    monkeypatch.setattr(draft, "pick_score", pick)
    for kind, numbers in ((LARGE, range(240)), (STRANGER, range(80)), (SCOUT, range(80))):
        for number in numbers:
            first = number // 40 * 80 + number % 40
            if kind.styles[kind.round[number % 40]].write.__module__.endswith("scored"):
                split = kind.name if kind is STRANGER else kind.split_of(0, number)
                piece.compose(0, first, kind)
    assert {*played} == {"train", "valid", "test", "stranger"}
    for one, other in combinations(played, 2):
        assert not played[one] & played[other], (one, other)


def test_every_style_is_in_every_split_in_fair_shares(artists: list[piece.Artist]) -> None:
    sizes = {split: sum(a.split == split for a in artists) for split in splits.SPLITS}
    assert sizes == {"train": 280, "valid": 40, "test": 80}
    for split in splits.SPLITS:
        assert {a.style for a in artists if a.split == split} == set(LARGE.styles)
    assert len({artist.name for artist in artists}) == NUM_ARTISTS
    # Another piece next door is one of the same split: its score and patches are, too.
    request = make.Request(seed=0, num_clips=2400, recipe="large")
    for track in range(0, 800, 13):
        heard = make._next_door(request, track)
        own, other = (artists[piece.artist_of_track(t, LARGE)[0] % 400] for t in (track, heard))
        assert heard > track
        if heard < 800:
            assert own.split == other.split
            assert own.name != other.name


def test_the_folders_are_the_split_and_all_sets_have_the_same_tags(
    artists: list[piece.Artist], tmp_path: Path
) -> None:
    names = {}
    alone = {"demo-stranger": "test", "demo-scout": "valid"}
    for name in ("demo-large", *alone):
        members = artists[::9] if name in alone else artists
        tags = [piece.VOCABULARY[i % 49 : i % 49 + 3] for i in range(len(members))]
        rows = [
            tables.ClipRow(
                *(i + 1, 1, "piece", artist.name, artist.album, 0, 29, tags[i]),
                split=alone.get(name, artist.split),
            )
            for i, artist in enumerate(members)
        ]
        (tmp_path / name).mkdir()
        text = tables.annotations_table(rows, piece.VOCABULARY)
        (tmp_path / name / make.ANNOTATIONS).write_text(text)
        config = load_config(REPOSITORY / "configs" / f"{name}.toml")
        catalogue = load_catalogue(config.dataset, tmp_path / name)
        assert [clip.split for clip in catalogue.clips] == [row.split for row in rows]
        leaks = splits.leak_report(catalogue.clips)[alone.get(name, "test")]
        assert leaks["artist"] == leaks["recording"] == 0.0
        names[name] = catalogue.tag_names
    assert all(tag_names == list(piece.VOCABULARY) for tag_names in names.values())


def test_a_missing_set_is_made_by_its_own_config(tmp_path: Path) -> None:
    config = load_config(REPOSITORY / "configs" / "demo-large.toml")
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(ValueError, match=r"fetch --config configs/demo-large\.toml --to"):
            load_catalogue(config.dataset, folder)


# ------------------------------------------------------------------ playing and recording


@pytest.mark.parametrize("track", [3, 8, 18, 29])
def test_tags_are_true_of_the_midi_of_a_large_piece(track: int) -> None:
    import pretty_midi

    work = piece.compose(0, track, LARGE)
    levels = dict.fromkeys(range(128), -30.0)
    plain = replace(work, parts=tuple(replace(part, layer=None) for part in work.parts))
    read = pretty_midi.PrettyMIDI(io.BytesIO(synth.to_midi(plain, levels)))
    drums = [n.start for one in read.instruments if one.is_drum for n in one.notes]
    for window in range(piece.CLIPS_PER_TRACK):
        start, end = window * piece.CLIP_S, (window + 1) * piece.CLIP_S
        tags = piece.tags_of(work, window, -20.0)
        seconds: dict[int, float] = {}
        for one in read.instruments:
            spans = [min(note.end, end) - max(note.start, start) for note in one.notes]
            if not one.is_drum:
                sum_s = sum(max(0.0, span) for span in spans)
                seconds[one.program] = seconds.get(one.program, 0.0) + sum_s
        assert set(seconds) == {part.program for part in work.parts}
        for part in work.parts:
            own = set(INSTRUMENTS[part.instrument].tags)
            if seconds[part.program] > 2.05:
                assert tags >= own, part.instrument
            elif seconds[part.program] < 1.95 and len(work.parts) == 1:
                assert not tags & own, part.instrument
        assert ("drums" in tags) == (sum(start <= onset < end for onset in drums) >= 10)


def test_a_layer_is_a_second_channel_and_a_tuning_bends_all() -> None:
    import pretty_midi

    work = next(
        w for w in (piece.compose(0, t, LARGE) for t in (3, 83, 163, 243, 323)) if w.artist.chain
    )
    assert work.artist.chain is not None
    (part, *_) = work.parts
    layer = patches.Layer(semitones=12, cents=11.0, level_db=-6.0)
    work = replace(work, parts=(replace(part, layer=layer),), hits=work.hits[:0])
    read = pretty_midi.PrettyMIDI(io.BytesIO(synth.to_midi(work, {part.program: -36.0})))
    own, above = read.instruments
    assert own.program == above.program == part.program
    assert [n.pitch + 12 for n in own.notes] == [n.pitch for n in above.notes]
    cents = [one.pitch_bends[0].pitch * 200 / 8192 for one in (own, above)]
    assert cents[0] == pytest.approx(work.artist.chain.tuning_cents, abs=0.05)
    assert cents[1] == pytest.approx(cents[0] + 11, abs=0.05)


@given(
    st.lists(st.floats(0, 90, allow_nan=False), min_size=2, max_size=30),
    st.integers(0, 1000),
    st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_a_drift_keeps_the_order_and_stays_near(times: list[float], seed: int, at: float) -> None:
    drawn = chain.draw_chain(np.random.default_rng(seed))
    given_s = np.sort(np.array(times))
    moved = piece.drifted(given_s, drawn, at)
    assert np.all(np.diff(moved) >= -1e-9)
    # The spare end of a piece is at least what a drift can swallow.
    assert np.abs(moved - given_s).max() <= drawn.drift * drawn.drift_s / np.pi + 1e-9
    assert drawn.drift * drawn.drift_s / np.pi < piece.SPARE_S
    assert 430 <= drawn.tuning_hz <= 446
    assert drawn.crowd_db <= -20
    assert drawn.other_db <= -20


def clean(**changes: object) -> chain.Chain:
    plain = {
        **{"room": room.Room(0.0, 0.3, 0.0, 500.0, 0.0, -120.0), "peaks": (), "low_cut_hz": 20.0},
        **{"high_cut_hz": 8000.0, "drive_db": 0.0, "noise_db": chain.NONE_DB, "noise_colour": 0.0},
        **{"hum_db": chain.NONE_DB, "hum_hz": 50.0, "crowd_db": chain.NONE_DB},
        **{"other_db": chain.NONE_DB, "tuning_hz": 440.0, "drift": 0.0, "drift_s": 30.0},
        "bit_rate_kbps": 32,
    }
    return chain.Chain(**{**plain, **changes})  # type: ignore[arg-type]


def tone(hz: float, num_s: int = 2) -> room.Wave:
    seconds = np.arange(num_s * room.SOURCE_HZ) / room.SOURCE_HZ
    return np.sin(2 * np.pi * hz * seconds).astype(np.float32) * np.float32(0.2)


def recorded(wave: room.Wave, other: room.Wave | None = None, **changes: object) -> room.Wave:
    rng = np.random.default_rng(0)
    return chain.record_roughly(wave, other, clean(**changes), -20.0, rng)


def test_a_clean_chain_is_a_clean_recording() -> None:
    dry = room.record(tone(440), clean().room, -20.0, np.random.default_rng(0))
    np.testing.assert_allclose(recorded(tone(440)), dry, atol=1e-5)


@pytest.mark.parametrize("setting", ["noise_db", "hum_db", "crowd_db"])
def test_noise_is_as_loud_as_it_says(setting: str) -> None:
    extra = recorded(tone(440), **{setting: -25.0}) - recorded(tone(440))
    assert room.level_db(extra) == pytest.approx(-45, abs=0.1)


def test_the_piece_next_door_is_as_loud_as_it_says() -> None:
    heard = recorded(tone(440), tone(1000) * 3, other_db=-25.0)
    power = np.abs(np.fft.rfft(heard)) ** 2
    ratio_db = 10 * np.log10(power[1900:2100].sum() / power[800:960].sum())
    assert ratio_db == pytest.approx(-25, abs=0.2)


def test_a_band_limit_and_a_low_cut_cut() -> None:
    for hz, changes in ((5000, {"high_cut_hz": 3800.0}), (60, {"low_cut_hz": 250.0})):
        both = tone(1000) + tone(hz)
        power = np.abs(np.fft.rfft(recorded(both, **changes))) ** 2
        size = len(power) / 8000
        kept, cut = (power[int((f - 9) * size) : int((f + 9) * size)].sum() for f in (1000, hz))
        assert 10 * np.log10(cut / kept) < -20, hz


def test_drive_flattens_peaks_and_loudness_stays() -> None:
    rng = np.random.default_rng(1)
    music = (rng.standard_normal(room.SOURCE_HZ) ** 3).astype(np.float32)
    soft, driven = recorded(music), recorded(music, drive_db=14.0)
    assert np.abs(driven).max() < 0.6 * np.abs(soft).max()
    assert room.level_db(driven) == pytest.approx(-20, abs=0.3)


# ------------------------------------------------------------------ the folders


def test_a_large_clip_is_the_same_twice_and_encoded_as_its_artist_is(
    large: Path, tmp_path: Path
) -> None:
    import soundfile

    request = make.Request(seed=0, num_clips=1, recipe="large")
    make.make_track(tmp_path, request, 0)
    made = contents(large)
    ((path, data),) = ((k, v) for k, v in contents(tmp_path).items() if k.endswith(".mp3"))
    assert made[path] == data
    artist = piece.make_artist(0, 0, LARGE)
    assert artist.chain is not None
    assert path[0] in tables.FOLDERS[artist.split]
    assert len(data) == pytest.approx(artist.chain.bit_rate_kbps * 125 * piece.CLIP_S, rel=0.03)
    wave, rate = soundfile.read(io.BytesIO(data))
    assert rate == room.SAMPLE_RATE_HZ
    assert np.abs(wave).max() < 1.0
    assert json.loads(made[make.REQUEST])["variant"] == "large"


def test_a_folder_of_another_variant_is_refused(large: Path) -> None:
    with pytest.raises(ValueError, match=r"variant 'large', not 'small'") as error:
        make_demo(large, num_clips=1)
    assert 'dataset.variant = "large"' in str(error.value)
    make_demo(large, num_clips=1, variant="large")  # whole: nothing to do


def test_without_its_soundfont_a_foreign_set_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = dict.fromkeys(soundfonts.PACKAGES, tmp_path / "none.sf2")
    monkeypatch.setattr(soundfonts, "PACKAGES", nowhere)
    packages = {"stranger": "fluid-soundfont-gm", "scout": "csound-soundfont"}
    for variant, package in packages.items():
        with pytest.raises(ValueError, match=f"apt install {package}"):
            make_demo(tmp_path / "data", variant=variant)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no such file"),
        (b"MThd", "is no soundfont"),
        (b"RIFF....sfbkLIST....INFOifil\4\0\0\0\3\0\1\0", r"of version 3 \(.sf3: compressed\)"),
    ],
)
def test_a_soundfont_that_cannot_be_played_is_named(
    tmp_path: Path, data: bytes | None, message: str
) -> None:
    path = tmp_path / "mine.sf2"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        make_demo(tmp_path / "data", variant="stranger", soundfonts=[str(path)])
    assert "apt install fluid-soundfont-gm" in str(error.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("variant", "split"), [("stranger", "test"), ("scout", "valid")])
def test_a_foreign_set_is_one_split_and_keeps_to_its_soundfonts(
    tmp_path: Path, variant: str, split: str
) -> None:
    font = soundfonts.own()  # no stranger, but there on every machine
    folder = tmp_path / "data"
    make_demo(
        *(folder,),
        **{"num_clips": 1, "variant": variant, "soundfonts": [str(font)]},  # type: ignore[arg-type]
        num_workers=1,
        progress=False,
    )
    (clip,) = folder.rglob("*.mp3")
    assert clip.parent.name in tables.FOLDERS[split]
    made_with = json.loads((folder / make.REQUEST).read_text())["made_with"]
    assert made_with[font.name] == hashlib.sha256(font.read_bytes()).hexdigest()
    other = tmp_path / "other.sf2"
    other.write_bytes(font.read_bytes())
    # Whole, and then begun alone: another soundfont would make a set of two kinds.
    for _ in range(2):
        with pytest.raises(ValueError, match=r"made with the soundfonts TimGM6mb\.sf2"):
            make_demo(folder, num_clips=1, variant=variant, soundfonts=[str(other)])
        (folder / make.ANNOTATIONS).unlink(missing_ok=True)


def test_measured_levels_agree_with_the_small_sets_table() -> None:
    levels = soundfonts.program_levels(soundfonts.own())
    from shard_tools.demo.instruments import PROGRAM_LEVEL_DB

    shared = sorted(set(levels) & set(PROGRAM_LEVEL_DB))
    differences = np.array([levels[p] - PROGRAM_LEVEL_DB[p] for p in shared])
    assert abs(differences.mean()) < 0.3
    assert differences.std() < 1.2
    assert levels[soundfonts.DRUMS] == pytest.approx(synth.DRUMS_DB, abs=0.2)
    assert {patch.program for some in patches.EVERY.values() for patch in some} <= set(levels)
