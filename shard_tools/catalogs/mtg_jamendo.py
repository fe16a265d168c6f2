"""MTG-Jamendo's own tables -> rows.

The tables lie as in its repository: ``data/autotagging_<subset>.tsv`` and
``data/splits/split-N/autotagging_<subset>-{train,validation,test}.tsv``, TAB-separated with
the columns TRACK_ID ARTIST_ID ALBUM_ID PATH DURATION TAGS, where each further column is one
more tag. Tags keep their category (``genre---rock``): without it "mood/theme---christmas" and a
genre of that name would fall together, and scores are published under these names.

A clip is the whole track; DURATION is not used, as the audio itself says how long it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mstag.data.clips import Clip, Exclusion
from shard_tools.catalogs.rows import Rows, path_fault, read_bytes

COLUMNS = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]
SPLIT_FILES = {"train": "train", "validation": "valid", "test": "test"}


def read(data_dir: Path, subset: str, split_number: int, *, takes_splits: bool = True) -> Rows:
    """Read MTG-Jamendo's tables.

    Args:
        data_dir: holds data/ as in the dataset's repository, and audio/NN/ID.mp3 or, where
            that is not there, audio/NN/ID.low.mp3 (also without the folder audio/).
        subset: top50tags, genre, instrument, moodtheme, or all.
        split_number: which of its five splits, 0 to 4.
        takes_splits: read the three tables of that split, which lack the tags that are not in
            all splits; else the one table of all tracks.

    Returns:
        Its rows in table order; rows with an unusable path, and tracks named twice, are
        excluded.

    Raises:
        ValueError: a table is missing, or not one of this format, or not whole.
    """
    folder = tables_folder(data_dir)
    stem = "autotagging" if subset == "all" else f"autotagging_{subset}"
    rows = Rows(names_splits=takes_splits)
    tables: dict[Path, str | None] = {_aliased(folder / f"{stem}.tsv"): None}
    if takes_splits:
        split_folder = folder / "splits" / f"split-{split_number}"
        tables = {split_folder / f"{stem}-{name}.tsv": s for name, s in SPLIT_FILES.items()}
        rows.given_by = f"split {split_number} of the dataset's own five"
    lines = [(split, line) for table, split in tables.items() for line in _lines(table)]
    audio = _Audio(data_dir)
    seen: set[str] = set()
    for split, (track, artist, album, path, _, *tags) in lines:
        row_tags = frozenset(tag for tag in tags if tag)
        rows.row_tags.append(row_tags)
        fault = path_fault(path)
        if track in seen or path in seen:
            fault = "its track or path is on an earlier line too"
        if fault:
            rows.excluded.append(Exclusion(track, path, fault))
            continue
        seen |= {track, path}
        clip = Clip(track, audio.find(path), row_tags, track, artist, album, split)
        rows.clips.append(clip)
    rows.tag_order = sorted(frozenset().union(*rows.row_tags))
    return rows


def tables_folder(data_dir: Path) -> Path:
    """The folder of the tables: data/ as in the dataset's repository, else the folder itself."""
    return data_dir / "data" if (data_dir / "data").is_dir() else data_dir


def _aliased(table: Path) -> Path:
    """autotagging.tsv is a link to another table; downloaded, a file that holds its name."""
    if table.is_file() and table.stat().st_size < 100:
        target = table.read_bytes().strip()
        if target.endswith(b".tsv") and target.isascii() and b"/" not in target:
            return table.with_name(target.decode())
    return table


def _lines(table: Path) -> Iterator[list[str]]:
    """The rows of a table; nothing in it is quoted, and some end in CR LF."""
    if not table.is_file():
        raise ValueError(
            f"{table}: there is no such table; get it with `shard-tools fetch mtg-jamendo`, or "
            "correct dataset.subset or --data"
        )
    damaged = "so the table is damaged or cut short; fetch it again"
    try:
        text = read_bytes(table).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{table}: not UTF-8 ({error}), {damaged}") from None
    lines = text.removesuffix("\n").split("\n")
    if lines[0].split("\t") != COLUMNS:
        raise ValueError(f"{table}: its first line is not {' '.join(COLUMNS)}, {damaged}")
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        if len(fields) < len(COLUMNS) or not fields[0]:
            raise ValueError(f"{table}: line {number} is no track with a tag, {damaged}")
        yield fields


class _Audio:
    """Which of a track's two files is there; lists each folder once (55,000 tracks: 0.1 s)."""

    def __init__(self, data_dir: Path) -> None:
        bare = not (data_dir / "audio").is_dir() and (data_dir / "00").is_dir()
        self._prefix = "" if bare else "audio/"
        self._data_dir = data_dir
        self._names: dict[str, set[str]] = {}

    def find(self, path: str) -> str:
        """The file of ``NN/ID.mp3`` below the data folder; the low-bitrate one if there is none."""
        folder, _, name = path.rpartition("/")
        if folder not in self._names:
            try:
                self._names[folder] = set(os.listdir(self._data_dir / self._prefix / folder))  # noqa: PTH208
            except OSError:
                self._names[folder] = set()
        if name not in self._names[folder]:
            name = f"{name.removesuffix('.mp3')}.low.mp3"
        return f"{self._prefix}{folder}/{name}" if folder else f"{self._prefix}{name}"
