"""MTG-Jamendo: ragged tables with CR LF, its own splits, two qualities of audio."""

from pathlib import Path

import pytest
from shared_data import REPOSITORY

from mstag.config import DatasetConfig, load_config
from mstag.data.clips import Catalogue, Clip
from shard_tools.catalogs import load_catalogue

HEADER = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\r\n"
ROWS = {
    number: f"track_{number:07d}\tartist_{number // 4:06d}\talbum_{number // 2:06d}\t"
    f"{number % 100:02d}/{number}.mp3\t{100 + number}.5\t"
    for number in range(200, 224)
}


def tags_of(number: int) -> list[str]:
    """Each row bears one to three tags."""
    every = ["genre---rock", "mood/theme---happy", "instrument---piano"]
    return every[: 1 + number % 3]


def write(path: Path, numbers: range) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{ROWS[n]}{chr(9).join(tags_of(n))}\r\n" for n in numbers]
    path.write_bytes((HEADER + "".join(lines)).encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "data" / "autotagging_top50tags.tsv", range(200, 224))
    parts = {"train": range(200, 212), "validation": range(212, 216), "test": range(216, 224)}
    for name, numbers in parts.items():
        write(tmp_path / "data/splits/split-3" / f"autotagging_top50tags-{name}.tsv", numbers)
    return tmp_path


def load(folder: Path, **settings: object) -> Catalogue:
    config = DatasetConfig(name="jam", kind="mtg-jamendo", **settings)  # type: ignore[arg-type]
    return load_catalogue(config, folder)


def test_its_own_split(folder: Path) -> None:
    catalogue = load(folder, split_number=3)
    assert catalogue.clips[1] == Clip(
        id="track_0000201",
        path="audio/01/201.low.mp3",
        tags=frozenset({"genre---rock"}),
        track="track_0000201",
        artist="artist_000050",
        album="album_000100",
        split="train",
    )
    splits = [clip.split for clip in catalogue.clips]
    assert [splits.count(name) for name in ("train", "valid", "test")] == [12, 4, 8]
    assert [(count.tag, count.positives) for count in catalogue.tags] == [
        ("genre---rock", 24),
        ("mood/theme---happy", 16),
        ("instrument---piano", 8),
    ]
    assert catalogue.split_rule == "given: split 3 of the dataset's own five"
    with pytest.raises(ValueError, match=r"split-0/autotagging_top50tags-train.tsv: there is no"):
        load(folder)


def test_any_other_rule_takes_the_table_of_all_tracks(folder: Path) -> None:
    catalogue = load(folder, split="artist")
    homes = {(clip.artist, clip.split) for clip in catalogue.clips}
    assert len(catalogue.clips) == 24
    assert len(homes) == 6 and {split for _, split in homes} == {"train", "valid", "test"}


def test_the_better_of_two_qualities_is_taken_per_file(folder: Path) -> None:
    for name in ("00/200.mp3", "00/200.low.mp3", "01/201.low.mp3", "02/202.mp3"):
        (folder / "audio" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "audio" / name).touch()
    paths = [clip.path for clip in load(folder, split_number=3).clips]
    assert paths[:4] == [
        "audio/00/200.mp3",
        "audio/01/201.low.mp3",
        "audio/02/202.mp3",
        "audio/03/203.low.mp3",
    ]


def test_audio_unpacked_without_a_folder_of_its_own(folder: Path) -> None:
    (folder / "00").mkdir()
    (folder / "00" / "200.mp3").touch()
    assert load(folder, split_number=3).clips[0].path == "00/200.mp3"


def test_all_tags_are_in_a_table_that_is_a_link_or_its_text(folder: Path) -> None:
    write(folder / "data" / "raw_30s_cleantags_50artists.tsv", range(200, 224))
    alias = folder / "data" / "autotagging.tsv"
    alias.symlink_to("raw_30s_cleantags_50artists.tsv")
    assert len(load(folder, split="artist", subset="all").clips) == 24
    alias.unlink()
    alias.write_text("raw_30s_cleantags_50artists.tsv")
    assert len(load(folder, split="artist", subset="all").clips) == 24


def test_a_track_that_is_named_twice_is_left_out_once(folder: Path) -> None:
    write(folder / "data/splits/split-3/autotagging_top50tags-test.tsv", range(211, 224))
    catalogue = load(folder, split_number=3)
    assert {row.id for row in catalogue.excluded} == {f"track_{n:07d}" for n in range(211, 216)}
    assert len(catalogue.clips) == 24


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its first line is not TRACK_ID"),
        (b"<html>\n", "its first line is not TRACK_ID"),
        (HEADER.encode() + b"track_1\tartist_1\r\n", "line 2 is no track with a tag"),
        (HEADER.encode() + b"\xff\r\n", "not UTF-8"),
    ],
)
def test_a_damaged_table_is_named(folder: Path, content: bytes, message: str) -> None:
    path = folder / "data" / "splits" / "split-3" / "autotagging_top50tags-test.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder, split_number=3)
    assert "fetch it again" in str(caught.value) and path.name in str(caught.value)


def test_a_path_that_leaves_the_folder_is_left_out(folder: Path) -> None:
    path = folder / "data" / "splits" / "split-3" / "autotagging_top50tags-train.tsv"
    path.write_text(path.read_text().replace("00/200.mp3", "../../200.mp3"))
    assert [row.id for row in load(folder, split_number=3).excluded] == ["track_0000200"]


def test_the_shipped_config(folder: Path) -> None:
    first = folder / "data" / "splits" / "split-0"
    (folder / "data" / "splits" / "split-3").rename(first)
    dataset = load_config(REPOSITORY / "configs" / "mtg-jamendo.toml").dataset
    assert load_catalogue(dataset, folder).split_rule.startswith("given: split 0")
