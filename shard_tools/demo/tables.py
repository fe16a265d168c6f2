"""The two tables of MagnaTagATune, as it writes them: TAB-separated, every value quoted."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FOLDERS = {"": "0123456789abcdef", "train": "0123456789ab", "valid": "c", "test": "def"}
INFO_COLUMNS = (
    *("clip_id", "track_number", "title", "artist", "album", "url"),
    *("segmentStart", "segmentEnd", "original_url", "mp3_path"),
)


@dataclass(frozen=True, slots=True)
class ClipRow:
    """One clip as the tables know it.

    Attributes:
        clip_id: from 1, in the order of the tracks.
        track_number: on the album.
        title: of the track.
        artist: who plays.
        album: what it was cut from.
        start_s: where the clip begins in the track.
        end_s: where it ends.
        tags: what is true of it.
        split: the split that its folder stands for; "" for any of the 16.
    """

    clip_id: int
    track_number: int
    title: str
    artist: str
    album: str
    start_s: int
    end_s: int
    tags: tuple[str, ...]
    split: str = ""

    @property
    def mp3_path(self) -> str:
        """``f/artist-album-NN-title-START-END.mp3``; an album's clips share one of 16 folders.

        Where the set deals splits, they are MagnaTagATune's own: 0-b train, c valid, d-f test.
        """
        folders = FOLDERS[self.split]
        folder = folders[zlib.crc32(self.album.encode()) % len(folders)]
        parts = (
            *(slug(self.artist), slug(self.album), f"{self.track_number:02d}", slug(self.title)),
            *(str(self.start_s), str(self.end_s)),
        )
        return f"{folder}/{'-'.join(parts)}.mp3"


def slug(name: str) -> str:
    """A name as MTT's files bear it: lower case, underscores, no hyphen: those divide the parts."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:60]


def annotations_table(rows: Iterable[ClipRow], vocabulary: Sequence[str]) -> str:
    """``annotations_final.csv``: clip_id, a 0/1 column per tag, mp3_path."""
    lines = [_line(["clip_id", *vocabulary, "mp3_path"])]
    for row in rows:
        marks = ["1" if tag in row.tags else "0" for tag in vocabulary]
        lines.append(_line([str(row.clip_id), *marks, row.mp3_path]))
    return "".join(lines)


def info_table(rows: Iterable[ClipRow]) -> str:
    """``clip_info_final.csv``; the two addresses are empty, for nothing was downloaded."""
    lines = [_line(INFO_COLUMNS)]
    for row in rows:
        number = f"{row.track_number:02d}"
        names = [str(row.clip_id), number, row.title, row.artist, row.album, ""]
        lines.append(_line([*names, str(row.start_s), str(row.end_s), "", row.mp3_path]))
    return "".join(lines)


def _line(values: Iterable[str]) -> str:
    cells = list(values)
    assert not any(set(cell) & set('"\t\n') for cell in cells), cells
    return "\t".join(f'"{cell}"' for cell in cells) + "\n"
