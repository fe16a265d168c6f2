"""MagnaTagATune's own tables -> rows; the demo dataset has the same layout.

``annotations_final.csv`` (TAB-separated, quoted): clip_id, one 0/1 column per tag,
mp3_path. Who made a clip is read from its file name, ``artist-album-NN-title-START-END.mp3``
in one of the folders 0..f, as no name holds a hyphen of its own; ``clip_info_final.csv``
is only looked at for files that are named otherwise. Audio is not needed.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from itertools import compress
from pathlib import Path

from mstag.data.clips import Clip, Exclusion
from shard_tools.catalogs.rows import Rows, path_fault, read_bytes

# Their audio is broken in the published archive: the 2017 recipe trained without them. Known
# by id and path, as the ids alone also occur in data sets of the same layout.
BROKEN_CLIPS = {
    "35644": "6/norine_braun-now_and_zen-08-gently-117-146.mp3",
    "55753": (
        "8/jacob_heringman-josquin_des_prez_lute_settings-19-gintzler__pater_noster-204-233.mp3"
    ),
    "57881": (
        "9/american_baroque-dances_and_suites_of_rameau_and_couperin"
        "-25-le_petit_rien_xiveme_ordre_couperin-88-117.mp3"
    ),
}

_FILE_NAME = re.compile(r"(?:.*/)?([^/-]+)-([^/-]+)-(\d+)-([^/-]+)-\d+-\d+\.mp3")


def read(data_dir: Path, *, name: str = "mtt") -> Rows:
    """Read a folder in MagnaTagATune's layout.

    Args:
        data_dir: holds annotations_final.csv, or annotations_final.csv.gz.
        name: under which `shard-tools fetch` gets the dataset.

    Returns:
        Its rows in table order; rows with broken audio or an unusable path are excluded.

    Raises:
        ValueError: there is no such table, or it is not one of this format, or not whole.
    """
    table = _find(data_dir, "annotations_final")
    if table is None:
        raise ValueError(
            f"{data_dir}: no annotations_final.csv (or .csv.gz) in it, so there is nothing to "
            f"read; get it with `shard-tools fetch {name} --to {data_dir}` or correct the folder"
        )
    lines = _lines(table)
    header = next(lines, [])
    if len(header) < 3 or header[0] != "clip_id" or header[-1] != "mp3_path":
        raise ValueError(
            f"{table}: its first line is not clip_id, tags, mp3_path separated by TABs, so it is "
            "not MagnaTagATune's table; fetch it again, or use dataset.kind = "
            '"table" for a table of your own'
        )
    rows = Rows(tag_order=header[1:-1])
    info: dict[str, list[str]] | None = None
    seen: set[str] = set()
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header) or not {"0", "1"}.issuperset(line[1:-1]):
            raise ValueError(
                f"{table}: line {number} is not an id, {len(rows.tag_order)} times 0 or 1 and a "
                "path, so the table is damaged or cut short; fetch it again"
            )
        clip_id, path = line[0], line[-1]
        tags = frozenset(compress(rows.tag_order, map("1".__eq__, line[1:-1])))
        rows.row_tags.append(tags)
        fault = path_fault(path)
        if BROKEN_CLIPS.get(clip_id) == path:
            fault = "broken audio in the published archive"
        elif clip_id in seen or path in seen:
            fault = "its id or path is on an earlier line too"
        if fault:
            rows.excluded.append(Exclusion(clip_id, path, fault))
            continue
        seen |= {clip_id, path}
        identity = identity_from_path(path)
        if identity is None:
            info = _clip_info(data_dir) if info is None else info
            identity = _identity_from_info(info.get(clip_id))
        track, artist, album = identity
        rows.clips.append(Clip(clip_id, path, tags, track=track, artist=artist, album=album))
    return rows


def identity_from_path(path: str) -> tuple[str, str, str] | None:
    """Read who made a clip from its file name.

    Args:
        path: such as ``e/joram-moments_of_clarity-08-solipsism-59-88.mp3``.

    Returns:
        (track, artist, album), each with what it belongs to in front, so that two albums
        of one title stay apart; None when the file is named otherwise.
    """
    match = _FILE_NAME.fullmatch(path)
    if match is None:
        return None
    artist, album, number, title = match.groups()
    return f"{artist}-{album}-{number}-{title}", artist, f"{artist}-{album}"


def _identity_from_info(line: list[str] | None) -> tuple[str, str, str]:
    """(track, artist, album) from a line of clip_info_final.csv; "" where it says nothing."""
    _, number, title, artist, album = line[:5] if line and len(line) >= 5 else [""] * 5
    album_name = f"{artist}-{album}" if album else ""
    return f"{artist}-{album}-{number}-{title}" if title else "", artist, album_name


def _clip_info(data_dir: Path) -> dict[str, list[str]]:
    """Lines of clip_info_final.csv by clip id; empty when it is not there."""
    table = _find(data_dir, "clip_info_final")
    return {line[0]: line for line in _lines(table) if line} if table else {}


def _find(data_dir: Path, stem: str) -> Path | None:
    """The table of that name, plain before packed."""
    candidates = (data_dir / f"{stem}.csv", data_dir / f"{stem}.csv.gz")
    return next((path for path in candidates if path.is_file()), None)


def _lines(table: Path) -> Iterator[list[str]]:
    """Split a TAB-separated, quoted file into fields."""
    try:
        text = read_bytes(table).decode("utf-8")
        yield from csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table}: not a TAB-separated UTF-8 table ({error})") from None
