"""A folder of audio whose sub-folders are the tags -> rows.

``rock/a.mp3`` bears the tag "rock", ``rock/slow/b.mp3`` the tags "rock" and "slow".
"""

from __future__ import annotations

import os
from pathlib import Path

from mstag.data.clips import Clip, Exclusion
from shard_tools.catalogs.rows import Rows, path_fault, printable

AUDIO_SUFFIXES = frozenset(
    [".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"]
)


def read(data_dir: Path) -> Rows:
    """Find the audio files of a folder and read their tags from where they lie.

    Args:
        data_dir: links to folders are not followed; names that start with a dot are ignored.

    Returns:
        One row per audio file, sorted by path; files in no sub-folder are excluded.

    Raises:
        ValueError: there is no audio file.
    """
    rows = Rows()
    for path in _audio_files(data_dir):
        tags = frozenset(path.split("/")[:-1])
        fault = path_fault(path) or ("" if tags else "no tag: it lies in no sub-folder")
        if fault:
            rows.excluded.append(Exclusion(printable(path), printable(path), fault))
        else:
            rows.clips.append(Clip(path, path, tags))
            rows.row_tags.append(tags)
    if not rows.clips and not rows.excluded:
        raise ValueError(
            f"{data_dir}: no audio file in it ({' '.join(sorted(AUDIO_SUFFIXES))}), so there is "
            "nothing to pack; put each file into a sub-folder named after its tag"
        )
    rows.tag_order = sorted(frozenset().union(*rows.row_tags))
    return rows


def _audio_files(data_dir: Path) -> list[str]:
    """Relative paths with forward slashes, sorted."""
    found: list[str] = []
    for folder, subfolders, names in os.walk(data_dir):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [
            (Path(folder) / name).relative_to(data_dir).as_posix()
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES
        ]
    return sorted(found)
