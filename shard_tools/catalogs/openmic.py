"""OpenMIC-2018's own tables -> rows with partial labels.

``openmic-2018-aggregated-labels.csv`` says, for some instruments of each 10 s clip, how sure
its listeners were that they play (relevance, 0 to 1). From 0.5 on the clip bears the tag, as
in the dataset's own baseline; below, it is known not to; an instrument that is not in the
table for a clip is unknown there, neither 0 nor 1. ``openmic-2018-metadata.csv`` says who made
the recordings, ``partitions/split01_{train,test}.csv`` is the split: keys, one a line, without
a header. Of validation clips it says nothing: they are taken from the train part.
"""

from __future__ import annotations

import math
from pathlib import Path

from mstag.data.clips import Clip, Exclusion
from shard_tools.catalogs.rows import Rows, path_fault
from shard_tools.catalogs.table import read_records

LABELS = "openmic-2018-aggregated-labels.csv"
METADATA = "openmic-2018-metadata.csv"
MIN_RELEVANCE = 0.5
# The second names are those of the dataset's description.
PARTITIONS = {
    "train": ("split01_train.csv", "train01.txt"),
    "test": ("split01_test.csv", "test01.txt"),
}


def read(data_dir: Path, *, takes_splits: bool = True) -> Rows:
    """Read OpenMIC-2018's tables.

    Args:
        data_dir: the folder of the tables, or the one that the published archive was unpacked
            into, which holds them in openmic-2018/.
        takes_splits: read the dataset's own partitions, and exclude clips that are in none.

    Returns:
        One row per clip, in the order of the labels; each clip says which tags are known.

    Raises:
        ValueError: a table is missing, or not one of this format, or not whole.
    """
    root = tables_folder(data_dir)
    prefix = "" if root == data_dir else f"{root.name}/"
    people = _metadata(root / METADATA)
    partitions = _partitions(root) if takes_splits else {}
    rows = Rows(names_splits=takes_splits, given_by="the dataset's own partitions")
    for key, relevances in _relevances(root / LABELS).items():
        tags = frozenset(tag for tag, share in relevances.items() if share >= MIN_RELEVANCE)
        path = f"{prefix}audio/{key[:3]}/{key}.ogg"
        rows.row_tags.append(tags)
        fault = path_fault(path)
        if takes_splits and len(partitions.get(key, [])) != 1:
            fault = "in both partitions" if key in partitions else "in no partition"
        if fault:
            rows.excluded.append(Exclusion(key, path, fault))
            continue
        track, artist, album = people.get(key, ("", "", ""))
        split = partitions[key][0] if takes_splits else None
        known = frozenset(relevances)
        clip = Clip(key, path, tags, track, artist, album, split, known=known)
        rows.clips.append(clip)
        rows.tag_order += known.difference(rows.tag_order)
    rows.tag_order.sort()
    return rows


def tables_folder(data_dir: Path) -> Path:
    """The folder of the tables: the given one, or openmic-2018 in it."""
    inner = data_dir / "openmic-2018"
    return inner if (inner / LABELS).is_file() else data_dir


def _relevances(table: Path) -> dict[str, dict[str, float]]:
    """Key -> instrument -> relevance; of two lines that say the same of a clip the last counts."""
    found: dict[str, dict[str, float]] = {}
    for line, fields, fault in _records(table, ("sample_key", "instrument", "relevance")):
        try:
            relevance = float(fields["relevance"])
        except ValueError:
            relevance = math.nan
        key, instrument = fields["sample_key"], fields["instrument"]
        if fault or not (key and instrument and 0 <= relevance <= 1):
            raise ValueError(
                f"{table}: line {line} is no key, instrument and relevance from 0 to 1, so the "
                "table is damaged or cut short; unpack the archive again"
            )
        found.setdefault(key, {})[instrument] = relevance
    if not found:
        raise ValueError(f"{table}: it has no rows; unpack the archive again")
    return found


def _metadata(table: Path) -> dict[str, tuple[str, str, str]]:
    """Key -> (track, artist, album)."""
    return {
        fields["sample_key"]: (
            fields.get("track_id", ""),
            fields["artist_id"],
            fields.get("album_id", ""),
        )
        for _, fields, _ in _records(table, ("sample_key", "artist_id"))
    }


def _partitions(root: Path) -> dict[str, list[str]]:
    """Key -> the splits that name it."""
    found: dict[str, list[str]] = {}
    for split, names in PARTITIONS.items():
        candidates = [root / "partitions" / name for name in names]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise ValueError(
                f"{candidates[0]}: there is no such list of clips; unpack the archive again, or "
                'use dataset.split = "artist"'
            )
        for key in path.read_text(encoding="utf-8", errors="surrogateescape").split():
            found.setdefault(key, []).append(split)
    return found


def _records(table: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str], str]]:
    if not table.is_file():
        raise ValueError(
            f"{table}: there is no such table; unpack openmic-2018-v1.0.0.tgz (doi.org/10.5281/"
            "zenodo.1432913) into the data folder, or correct --data"
        )
    return list(read_records(table, columns))
