"""A folder of audio whose sub-folders are the tags -> rows.

``rock/a.mp3`` bears the tag "rock", ``rock/slow/b.mp3`` the tags "rock" and "slow".
"""

from __future__ import annotations

from pathlib import Path

from mstag.data.clips import Clip, Exclusion
from mstag.data.suffixes import AUDIO_SUFFIXES
from shard_tools.catalogs.rows import Rows
from shard_tools.catalogs.walk import find_files


def read(data_dir: Path) -> Rows:
    """Find the audio files of a folder and read their tags from where they lie.

    Args:
        data_dir: links to folders are not followed; names that start with a dot are ignored.

    Returns:
        One row per audio file, sorted by path; files in no sub-folder and what only looks like
        an audio file are excluded.

    Raises:
        ValueError: there is no audio file.
    """
    found = find_files(data_dir)
    rows = Rows(excluded=found.excluded)
    for path in found.audio:
        tags = frozenset(path.split("/")[:-1])
        if tags:
            rows.clips.append(Clip(path, path, tags))
            rows.row_tags.append(tags)
        else:
            rows.excluded.append(Exclusion(path, path, "no tag: it lies in no sub-folder"))
    if not rows.clips and not rows.excluded:
        raise ValueError(
            f"{data_dir}: no audio file in it ({' '.join(sorted(AUDIO_SUFFIXES))}), so there is "
            "nothing to pack; put each file into a sub-folder named after its tag"
        )
    rows.tag_order = sorted(frozenset().union(*rows.row_tags))
    return rows
