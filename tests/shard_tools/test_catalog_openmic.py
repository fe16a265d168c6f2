"""OpenMIC-2018: partial labels, its partitions, and a validation part taken from train."""

import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from shared_data import REPOSITORY

from mstag.config import DatasetConfig, load_config
from mstag.data.clips import Catalogue
from mstag.data.tags import known_mask
from shard_tools.catalogs import load_catalogue
from shard_tools.catalogs.report import describe, format_description

INSTRUMENTS = ("cello", "flute", "mallet_percussion", "voice")
KEYS = [f"{number:06d}_{number * 3840}" for number in range(100, 160)]


def relevances(row: int) -> dict[str, str]:
    """Two of the four instruments were asked about; the first of them plays in every other clip."""
    first, second = INSTRUMENTS[row % 4], INSTRUMENTS[(row + 1) % 4]
    return {first: "0.5" if row % 2 else "0.89295", second: "0.17104999999999998"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    labels = ["sample_key,instrument,relevance,num_responses"]
    metadata = ["track_id,album_id,album_title,artist_id,artist_name,sample_key,start_time"]
    for row, key in enumerate(KEYS):
        labels += [f"{key},{name},{value},3" for name, value in relevances(row).items()]
        metadata.append(f'{100 + row},{row // 3}.0,"A, B",{row // 3},Ann,{key},3.84')
    (tmp_path / "openmic-2018-aggregated-labels.csv").write_text("\n".join(labels) + "\n")
    (tmp_path / "openmic-2018-metadata.csv").write_text("\n".join(metadata) + "\n")
    (tmp_path / "partitions").mkdir()
    (tmp_path / "partitions" / "split01_train.csv").write_text("\n".join(KEYS[:45]) + "\n")
    (tmp_path / "partitions" / "split01_test.csv").write_text("\n".join(KEYS[45:]) + "\n")
    return tmp_path


def load(folder: Path, **settings: object) -> Catalogue:
    config = DatasetConfig(name="om", kind="openmic", **settings)  # type: ignore[arg-type]
    return load_catalogue(config, folder)


def test_labels_are_known_or_unknown(folder: Path) -> None:
    catalogue = load(folder)
    first = catalogue.clips[0]
    assert first.id == "000100_384000"
    assert first.path == "audio/000/000100_384000.ogg"
    assert (first.tags, first.known) == ({"cello"}, {"cello", "flute"})
    assert (first.track, first.artist, first.album) == ("100", "0", "0.0")
    assert catalogue.clips[1].tags == {"flute"}, "0.5 counts"
    assert catalogue.tag_names == list(INSTRUMENTS)
    mask = known_mask(catalogue.clips, catalogue.tag_names)
    assert mask is not None and mask.sum() == 2 * len(KEYS)
    assert mask[0].tolist() == [1, 1, 0, 0]
    description = describe(catalogue)
    assert description["tags"][0] == {"tag": "cello", "positives": 15, "known": 30}
    assert "cello 15 of 30 known" in format_description(description)


def test_valid_is_taken_from_train_whole_artists_at_a_time(folder: Path) -> None:
    catalogue = load(folder)
    homes = defaultdict(set)
    for clip in catalogue.clips:
        homes[clip.artist].add(clip.split)
    assert all(len(home) == 1 for home in homes.values())
    test = [clip.id for clip in catalogue.clips if clip.split == "test"]
    valid = [clip for clip in catalogue.clips if clip.split == "valid"]
    assert test == KEYS[45:]
    assert 3 <= len(valid) <= 9
    assert catalogue.split_rule == (
        "given: the dataset's own partitions; valid, which it lacks: 11.8% of its train part by "
        "artist, seed 0"
    )
    assert describe(catalogue)["leaks"]["valid"]["artist"] == 0.0
    without = load(folder, split_sizes=(0.85, 0.0, 0.15))
    assert {clip.split for clip in without.clips} == {"train", "test"}


def test_the_archive_as_it_unpacks(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outer = tmp_path_factory.mktemp("outer")
    shutil.copytree(folder, outer / "openmic-2018")
    inside, outside = load(folder), load(outer)
    assert [f"openmic-2018/{clip.path}" for clip in inside.clips] == [c.path for c in outside.clips]
    assert [clip.split for clip in inside.clips] == [clip.split for clip in outside.clips]


def test_partitions(folder: Path) -> None:
    train = folder / "partitions" / "split01_train.csv"
    train.rename(train.with_name("train01.txt"))
    assert len(load(folder).clips) == 60, "the names of the dataset's description"
    train.with_name("train01.txt").write_text("\n".join(KEYS[1:47]) + "\n")
    assert {row.id: row.reason for row in load(folder).excluded} == {
        KEYS[0]: "in no partition",
        KEYS[45]: "in both partitions",
        KEYS[46]: "in both partitions",
    }
    shutil.rmtree(folder / "partitions")
    with pytest.raises(ValueError, match=r"split01_train\.csv: there is no such list"):
        load(folder)
    assert len(load(folder, split="artist").clips) == 60


def test_the_oracle_knows_only_what_is_known(folder: Path) -> None:
    """On an artist-grouped split it guesses the mean for all, whatever is unknown."""
    description = describe(load(folder))
    assert description["oracle_roc_auc"] == pytest.approx(0.5)
    mask = known_mask(load(folder).clips[:3], INSTRUMENTS)
    assert np.array_equal(mask, [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("aggregated-labels", None, r"no such table; unpack openmic-2018-v1\.0\.0\.tgz"),
        ("metadata", None, r"no such table; unpack"),
        ("aggregated-labels", "a,b\n1,2\n", "no column 'sample_key'"),
        ("aggregated-labels", "sample_key,instrument,relevance\n", "it has no rows"),
        ("aggregated-labels", "sample_key,instrument,relevance\nk,voice,1.5\n", "line 2 is no key"),
        ("aggregated-labels", "sample_key,instrument,relevance\nk,voice,\n", "line 2 is no key"),
        ("aggregated-labels", "sample_key,instrument,relevance\nk,vo", "line 2 is no key"),
    ],
)
def test_damaged_tables(folder: Path, name: str, content: str | None, message: str) -> None:
    path = folder / f"openmic-2018-{name}.csv"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_the_shipped_config(folder: Path) -> None:
    dataset = load_config(REPOSITORY / "configs" / "openmic.toml").dataset
    assert load_catalogue(dataset, folder).clips == load(folder).clips
