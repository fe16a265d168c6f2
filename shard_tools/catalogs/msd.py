"""The Million Song Dataset with Last.fm's tags -> rows.

What may lie in the data folder, under these names:

    lastfm_tags.db        labels: SQLite, tables tids(tid), tags(tag), tid_tag(tid, tag, val)
    <dataset.table>       labels instead: .csv, .tsv or .jsonl with track_id (or id) and tags
    lists of ids          the split; any file that holds track ids (see LISTS)
    track_metadata.db     who made them: SQLite, table songs
    unique_tracks.txt     who made them: track<SEP>song<SEP>artist<SEP>title
    A/B/C/TRABC....mp3    audio, by letters 3 to 5 of the id; also below audio/

The literature's tags are Last.fm's 50 most frequent less a few that say nothing about sound,
and a tag counts from a value above 50 of 100 (Choi et al. 2016, MSD_split_for_tagging). Its
split in use (Lee et al. 2017, music_dataset_split) names 213,454 tracks for training, of which
the last 11,774 validate, and 28,435 for testing.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from mstag.data.clips import Clip, Exclusion
from shard_tools.catalogs.rows import Rows, is_text
from shard_tools.catalogs.table import read_records, split_tags

DATABASE = "lastfm_tags.db"
TRACK_ID = re.compile(rb"TR[A-Z]{5}[0-9A-F]{11}")
# filtered_list_train.cP, train_x_msd_id.txt, train_list.json, valid_ids.csv, test.txt, ...
LISTS = re.compile(
    r"(?:filtered_list_)?(train|training|valid|validation|val|test)"
    r"(?:_list|_ids?|(?:_x)?_msd_ids?)?\.(?:cP|pkl|txt|csv|tsv|json|jsonl)"
)
LIST_FOLDERS = (".", "split", "splits", "MSD_split")
NUM_LISTED_TRAIN, NUM_LISTED_VALID = 201_680, 11_774

MIN_VALUE = 50.0
_TOP_TAGS = (
    "rock|pop|alternative|indie|electronic|female vocalists|dance|00s|alternative rock|jazz|"
    "beautiful|metal|chillout|male vocalists|classic rock|soul|indie rock|Mellow|electronica|80s|"
    "folk|90s|chill|instrumental|punk|oldies|blues|hard rock|ambient|acoustic|experimental|"
    "female vocalist|guitar|Hip-Hop|70s|party|country|easy listening|sexy|catchy|funk|electro|"
    "heavy metal|Progressive rock|60s|rnb|indie pop|sad|House|happy"
)
TOP_TAGS = tuple(_TOP_TAGS.split("|"))


def read(
    data_dir: Path, table: str = "", *, top_tags: bool = True, takes_splits: bool = True
) -> Rows:
    """Read tracks, tags and split from what lies in the data folder.

    Args:
        data_dir: see the module's docstring.
        table: labels from this table of the data folder; "": from lastfm_tags.db.
        top_tags: only the literature's 50 tags, whatever their case; else every tag.
        takes_splits: where there are lists of ids, they say which tracks and which split.

    Returns:
        One row per track, sorted by id: of every listed track (without a tag: excluded), or
        else of every track with a tag.

    Raises:
        ValueError: no labels, or a file is damaged, or a track is in two lists.
    """
    listed = _listed(data_dir) if takes_splits else {}
    names = {tag.casefold(): tag for tag in TOP_TAGS} if top_tags else None
    labels = dict(_from_table(data_dir / table) if table else _from_database(data_dir, names))
    rows = Rows(names_splits=bool(listed))
    if listed:
        rows.given_by = "the lists of track ids"
    people = _people(data_dir)
    prefix = "audio/" if (data_dir / "audio").is_dir() else ""
    num_bare = 0
    for track in sorted(listed or labels):
        tags = _chosen(labels.get(track, []), names)
        path = f"{prefix}{track[2]}/{track[3]}/{track[4]}/{track}.mp3"
        if not tags and not listed:
            num_bare += 1
            continue
        rows.row_tags.append(tags)
        if not tags:
            rows.excluded.append(Exclusion(track, path, "none of the tags"))
            continue
        title, artist, album = people.get(track, ("", "", ""))
        rows.clips.append(Clip(track, path, tags, title, artist, album, listed.get(track)))
    if num_bare:
        rows.remark = f"{num_bare:,} tracks without one of the tags left out"
    if not rows.clips:
        raise ValueError(
            f"{data_dir}: no track bears one of Last.fm's 50 tags, so there is nothing to pack; "
            'for labels of your own use dataset.vocabulary = "raw"'
        )
    # Ties stand in the literature's order.
    every = frozenset().union(*rows.row_tags)
    rows.tag_order = [tag for tag in TOP_TAGS if tag in every] + sorted(every.difference(TOP_TAGS))
    return rows


def _chosen(tags: list[str], names: dict[str, str] | None) -> frozenset[str]:
    """The tags that count, as the vocabulary writes them."""
    if names is None:
        return frozenset(tags)
    return frozenset(names[tag.casefold()] for tag in tags if tag.casefold() in names)


def _listed(data_dir: Path) -> dict[str, str]:
    """Track -> split, from the lists of ids; empty when there is none.

    The published lists are pickles, which can execute anything when loaded: they are only
    searched for what looks like an id, as is every other format.
    """
    tracks: dict[str, list[str]] = {}
    files: dict[str, Path] = {}
    for path in find_lists(data_dir):
        match = LISTS.fullmatch(path.name)
        assert match, path
        split = {"tr": "train", "va": "valid", "te": "test"}[match[1][:2]]
        if split in files:
            raise ValueError(
                f"{path}: {files[split].name} lists the {split} tracks too; leave one of the two"
            )
        found = dict.fromkeys(TRACK_ID.findall(path.read_bytes()))
        files[split], tracks[split] = path, [track.decode() for track in found]
        if not found:
            raise ValueError(f"{path}: no track id (TR and 16 more characters) in it; remove it")
    if (
        "valid" not in tracks
        and len(tracks.get("train", [])) == NUM_LISTED_TRAIN + NUM_LISTED_VALID
    ):
        tracks["valid"] = tracks["train"][NUM_LISTED_TRAIN:]
        del tracks["train"][NUM_LISTED_TRAIN:]
    split_of = {track: split for split, own in tracks.items() for track in own}
    if len(split_of) < sum(map(len, tracks.values())):
        twice = next(t for split, own in tracks.items() for t in own if split_of[t] != split)
        raise ValueError(
            f"{data_dir}: track {twice} is in two lists of ids, so it would be in two splits; "
            "correct the lists"
        )
    return split_of


def find_lists(data_dir: Path) -> list[Path]:
    """The files that are lists of ids, by their names."""
    folders = [data_dir / name for name in LIST_FOLDERS]
    paths = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    return sorted(path for path in paths if LISTS.fullmatch(path.name) and path.is_file())


def _from_table(table: Path) -> Iterator[tuple[str, list[str]]]:
    """(track, tags) of each row of a table of one's own; a track's last row counts."""
    if not table.is_file():
        raise ValueError(f"{table}: there is no such table; correct dataset.table or --data")
    for _, fields, fault in read_records(table, ("tags",)):
        track = fields.get("track_id") or fields.get("id", "")
        if not fault and TRACK_ID.fullmatch(track.encode(errors="replace")):
            yield track, [tag for tag in split_tags(fields["tags"]) if is_text(tag)]


def _from_database(
    data_dir: Path, wanted: dict[str, str] | None
) -> Iterator[tuple[str, list[str]]]:
    """(track, tags) from lastfm_tags.db, whose tid_tag names the other tables' rows.

    Tags that are not ``wanted`` are passed over here: of half a million, 50 are.
    """
    path = data_dir / DATABASE
    if not path.is_file():
        raise ValueError(
            f"{path}: there is no such file; put Last.fm's database there "
            "(millionsongdataset.com/lastfm), or name a table of track_id and tags as dataset.table"
        )
    with _database(path) as database:
        names = {
            number: " ".join(tag.split())
            for number, tag in database.execute("SELECT rowid, tag FROM tags")
            if is_text(tag) and (wanted is None or tag.casefold() in wanted)
        }
        tracks: dict[int, str] = dict(database.execute("SELECT rowid, tid FROM tids"))
        found: dict[int, list[str]] = {}
        query = "SELECT tid, tag FROM tid_tag WHERE val > ?"
        for track, tag in database.execute(query, (MIN_VALUE,)):
            if tag in names:
                found.setdefault(track, []).append(names[tag])
    for number, track_id in tracks.items():
        if TRACK_ID.fullmatch(str(track_id).encode(errors="replace")):
            yield track_id, found.get(number, [])


def _people(data_dir: Path) -> dict[str, tuple[str, str, str]]:
    """Track -> (title, artist, album), each with what it belongs to in front."""
    path = data_dir / "track_metadata.db"
    if path.is_file():
        with _database(path) as database:
            query = "SELECT track_id, title, artist_id, artist_name, release FROM songs"
            return {
                track: (f"{artist or name}-{title}", artist or name, f"{artist or name}-{album}")
                for track, title, artist, name, album in database.execute(query)
            }
    path = data_dir / "unique_tracks.txt"
    people = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split("<SEP>")
            if len(fields) == 4:
                track, _, artist, title = fields
                people[track] = (f"{artist}-{title}", artist, "")
    return people


@contextlib.contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    """A database, opened for reading alone: no journal is written beside it."""
    address = f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            database.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            yield database
    except sqlite3.Error as error:
        raise ValueError(
            f"{path}: not the SQLite database it should be ({error}); fetch it again"
        ) from None
