"""Taggrams of tagged files: a picture each, tags over time."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from mstag import files
from mstag.tagging.results import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mstag.tagging.tagger import Tagger

COLUMNS_PER_CHUNK = 4
"""Columns for as long as the network hears at once, unless --every says otherwise."""


class Taggrams:
    """Where the pictures go.

    Args:
        target: of one file, the picture, or a folder where one is there or the name has no
            ending; of several, a folder: within it ``inner path.png``.
        found: what is to be tagged.

    Raises:
        ValueError: one picture's name for several files.
    """

    def __init__(self, target: Path, found: Sequence[Result]) -> None:
        is_picture = target.suffix.lower() == ".png" and not target.is_dir()
        if is_picture and len(found) != 1:
            raise ValueError(
                f"--taggram {target} is the name of one picture, and here are {len(found)} files: "
                "name a folder"
            )
        self._target = target
        self._is_picture = is_picture
        self._taken: set[Path] = set()

    def every_s(self, tagger: Tagger) -> float:
        """Seconds that a column stands for, if the user does not say."""
        features = tagger.bundle.features
        chunk_s = tagger.chunk_frames * features.frame_s
        return max(0.1, tagger.least_every_s, chunk_s / COLUMNS_PER_CHUNK)

    def write(self, result: Result, tagger: Tagger) -> Path:
        """Draws a result; silence is as dark as a score of 0."""
        from mstag.show.plots import taggram

        assert result.over_time is not None and result.every_s is not None
        path = self._place(result)
        scores = np.nan_to_num(result.over_time, nan=0.0)
        files.write_bytes(path, taggram(scores, tagger.tag_names, window_s=result.every_s))
        return path

    def _place(self, result: Result) -> Path:
        if self._is_picture:
            return self._target
        # Never outside the folder, whatever the names are.
        inner = PurePath(*(part for part in PurePath(result.inner).parts if part != ".."))
        path = self._target / f"{inner}.png"
        number = 1
        while path in self._taken:
            number += 1
            path = self._target / f"{inner}-{number}.png"
        self._taken.add(path)
        return path
