"""The Million Song Dataset: labels from SQLite or a table, splits from lists of ids."""

import pickle
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from shared_data import REPOSITORY

from mstag.config import DatasetConfig, load_config
from mstag.data.clips import Catalogue, Clip
from shard_tools.catalogs import load_catalogue, msd

RNG = random.Random(0)
IDS = sorted(
    "TR"
    + "".join(RNG.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=5))
    + "".join(RNG.choices("0123456789ABCDEF", k=11))
    for _ in range(30)
)
TAGS = ("rock", "Mellow", "favorites", "HIP-HOP")


class Bomb:
    """A pickle that tells when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise RuntimeError('unpickled')",))


def write_tags(folder: Path) -> None:
    """Row n of tids has tag n % 4 with value 100, and the next one with value 50."""
    with closing(sqlite3.connect(folder / "lastfm_tags.db")) as database:
        database.executescript(
            "CREATE TABLE tags (tag TEXT); CREATE TABLE tids (tid TEXT);"
            "CREATE TABLE tid_tag (tid INT, tag INT, val FLOAT);"
        )
        database.executemany("INSERT INTO tags VALUES (?)", [(tag,) for tag in TAGS])
        database.executemany("INSERT INTO tids VALUES (?)", [(track,) for track in IDS])
        rows = [
            (n + 1, (n + more) % 4 + 1, value)
            for n in range(30)
            for more, value in ((0, 100), (1, 50))
        ]
        database.executemany("INSERT INTO tid_tag VALUES (?, ?, ?)", rows)
        database.commit()


def write_people(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "track_metadata.db")) as database:
        database.execute(
            "CREATE TABLE songs (track_id text PRIMARY KEY, title text, song_id text, "
            "release text, artist_id text, artist_mbid text, artist_name text, duration real)"
        )
        rows = [(t, f"T{n}", "S", "R", f"AR{n // 3}", "", f"N{n}", 1.0) for n, t in enumerate(IDS)]
        database.executemany("INSERT INTO songs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        database.commit()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tags(tmp_path)
    return tmp_path


def load(folder: Path, **settings: object) -> Catalogue:
    config = DatasetConfig(name="msd", kind="msd", **settings)  # type: ignore[arg-type]
    return load_catalogue(config, folder)


def test_labels_of_the_database(folder: Path) -> None:
    write_people(folder)
    before = sorted(path.name for path in folder.iterdir())
    catalogue = load(folder)
    first, track = catalogue.clips[0], IDS[0]
    assert first == Clip(
        id=track,
        path=f"{track[2]}/{track[3]}/{track[4]}/{track}.mp3",
        tags=frozenset({"rock"}),
        track="AR0-T0",
        artist="AR0",
        album="AR0-R",
        split=first.split,
    )
    # Only values above 50 count; "favorites" is none of the 50; case is the literature's.
    assert [(c.tag, c.positives) for c in catalogue.tags] == [
        ("rock", 8),
        ("Mellow", 8),
        ("Hip-Hop", 7),
    ]
    assert catalogue.split_rule.startswith("artist: no artist in two splits")
    assert catalogue.split_rule.endswith("; 7 tracks without one of the tags left out")
    assert len({(clip.artist, clip.split) for clip in catalogue.clips}) == 10
    assert sorted(path.name for path in folder.iterdir()) == before, "nothing is written beside it"


def test_every_tag(folder: Path) -> None:
    catalogue = load(folder, vocabulary="raw")
    assert {c.tag for c in catalogue.tags} == set(TAGS)
    assert len(catalogue.clips) == 30


def test_lists_of_any_format_are_searched_and_never_unpickled(folder: Path) -> None:
    (folder / "filtered_list_train.cP").write_bytes(
        pickle.dumps([Bomb(), *IDS[:20]], protocol=0) + pickle.dumps(IDS[:5])
    )
    (folder / "splits").mkdir()
    (folder / "splits" / "valid_list.json").write_text(str(IDS[20:24]))
    (folder / "test_x_msd_id.txt").write_text("\n".join(IDS[24:]) + "\n")
    catalogue = load(folder)
    names = {clip.id: clip.split for clip in catalogue.clips}
    listed = ["train"] * 20 + ["valid"] * 4 + ["test"] * 6
    assert names == {
        track: split for n, (track, split) in enumerate(zip(IDS, listed, strict=True)) if n % 4 != 2
    }
    assert [row.reason for row in catalogue.excluded] == ["none of the tags"] * 7
    assert catalogue.split_rule == "given: the lists of track ids"


@pytest.mark.parametrize("protocol", range(5))
def test_ids_are_found_in_every_pickle(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "filtered_list_test.cP").write_bytes(pickle.dumps(IDS, protocol))
    assert msd._listed(tmp_path) == dict.fromkeys(IDS, "test")


def test_the_published_train_list_ends_in_the_validation_tracks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real one has 213,454 ids; the numbers stand for it here."""
    monkeypatch.setattr(msd, "NUM_LISTED_TRAIN", 20)
    monkeypatch.setattr(msd, "NUM_LISTED_VALID", 5)
    shuffled = random.Random(1).sample(IDS, 30)
    (tmp_path / "filtered_list_train.cP").write_bytes(pickle.dumps(shuffled[:25], 0))
    (tmp_path / "filtered_list_test.cP").write_bytes(pickle.dumps(shuffled[25:], 0))
    split_of = msd._listed(tmp_path)
    assert [split_of[track] for track in shuffled] == ["train"] * 20 + ["valid"] * 5 + ["test"] * 5


def test_lists_without_valid_and_names_from_the_text_file(folder: Path) -> None:
    (folder / "train.txt").write_text("\n".join(IDS[:21]))
    (folder / "test.txt").write_text("\n".join(IDS[21:]))
    lines = [f"{t}<SEP>SOX<SEP>N{n // 3}<SEP>T" for n, t in enumerate(IDS)]
    (folder / "unique_tracks.txt").write_text("\n".join([*lines, "broken line"]))
    catalogue = load(folder)
    assert catalogue.clips[0].artist == "N0"
    assert {clip.split for clip in catalogue.clips} == {"train", "valid", "test"}
    assert len({(clip.artist, clip.split) for clip in catalogue.clips}) == 10
    assert "valid, which it lacks: 11.8% of its train part" in catalogue.split_rule


def test_labels_of_a_table(tmp_path: Path) -> None:
    lines = ["track_id,tags", f"{IDS[0]},rock|seen live", f"{IDS[1]},mellow", "nonsense,rock"]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    (tmp_path / "audio").mkdir()
    catalogue = load(tmp_path, table="labels.csv")
    assert {clip.id: clip.tags for clip in catalogue.clips} == {
        IDS[0]: {"rock"},
        IDS[1]: {"Mellow"},
    }
    assert catalogue.clips[0].path.startswith("audio/")
    assert set(load(tmp_path, table="labels.csv", vocabulary="raw").tag_names) == {
        "rock",
        "seen live",
        "mellow",
    }


def test_what_is_missing_or_damaged_is_named(folder: Path) -> None:
    (folder / "train.txt").write_text("\n".join(IDS[:21]))
    (folder / "test.txt").write_text("\n".join(IDS[20:]))
    with pytest.raises(ValueError, match=f"track {IDS[20]} is in two lists"):
        load(folder)
    (folder / "test_list.csv").write_text("\n".join(IDS[21:]))
    with pytest.raises(ValueError, match=r"test_list\.csv: test\.txt lists the test tracks too"):
        load(folder)
    (folder / "test_list.csv").unlink()
    (folder / "test.txt").write_text("nothing")
    with pytest.raises(ValueError, match=r"test\.txt: no track id"):
        load(folder)
    with pytest.raises(ValueError, match=r"labels\.csv: there is no such table"):
        load(folder, split="artist", table="labels.csv")
    (folder / "lastfm_tags.db").write_bytes(b"no database, but long enough to look like one" * 99)
    with pytest.raises(ValueError, match=r"lastfm_tags\.db: not the SQLite database"):
        load(folder, split="artist")
    (folder / "lastfm_tags.db").unlink()
    with pytest.raises(ValueError, match=r"lastfm_tags\.db: there is no such file"):
        load(folder, split="artist")


def test_the_shipped_config(folder: Path) -> None:
    dataset = load_config(REPOSITORY / "configs" / "msd.toml").dataset
    assert load_catalogue(dataset, folder).clips == load(folder).clips
