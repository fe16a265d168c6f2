"""All that was found out about a file, in a JSON file beside it: song.mp3.tags.json.

It holds every tag's score, so that other thresholds, or another format, need no second hearing;
and what it was made from: the weights' digest, and the size and time of change of the audio
file. Where all of these are the same, the file counts as done.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mstag import __version__, files
from mstag.tagging.results import Result, ranked

if TYPE_CHECKING:
    from mstag.tagging.tagger import Tagger

ENDING = ".tags.json"
FORMAT = "mstag-tags-1"


@dataclass(frozen=True, slots=True)
class Sidecars:
    """Reads and writes the sidecars of one run.

    Attributes:
        tagger: whose scores they hold.
        every_s: length of a stretch of the scores over time; None: none are needed.
        overwrite: files that are done are done again.
    """

    tagger: Tagger
    every_s: float | None
    overwrite: bool

    def read(self, item: Result) -> Result:
        """The result as the sidecar knows it; the item itself where that is out of date.

        Raises:
            ValueError: what is there is not ours.
            OSError: it cannot be read.
        """
        item = replace(item, identity=identity(item.path))
        known = _load(sidecar_of(item.path))
        if self.overwrite or not self._fits(known, item):
            return item
        try:
            return self._as_result(item, known)
        except (KeyError, TypeError, ValueError, AttributeError):
            return item  # garbled: made anew

    def write(self, item: Result) -> None:
        """Writes what was found out, unless it is there.

        Raises:
            OSError: it cannot be written.
        """
        assert item.scores is not None and item.duration_s is not None
        assert item.identity is not None, "read() comes first"
        path = sidecar_of(item.path)
        if not self.overwrite and self._fits(_load(path), item):
            return
        thresholds = self.tagger.thresholds
        names = self.tagger.tag_names
        content: dict[str, Any] = {
            "format": FORMAT,
            "mstag_version": __version__,
            "model": {
                "digest": self.tagger.bundle.digest,
                "dataset": self.tagger.bundle.dataset.get("name"),
            },
            "audio": _as_json(item.identity),
            "duration_s": round(item.duration_s, 3),
            "truncated": item.truncated,
            "tags": [
                {"tag": tag, "score": score, "threshold": round(thresholds[tag], 6)}
                for tag, score in ranked(names, item.scores)
            ],
            "over_time": None,
        }
        if item.over_time is not None:
            content["over_time"] = {
                "every_s": item.every_s,
                "tags": list(names),
                "scores": [
                    None if np.isnan(row).any() else [round(float(x), 6) for x in row]
                    for row in item.over_time
                ],
            }
        files.write_text(path, json.dumps(content, allow_nan=False) + "\n")

    def _fits(self, known: dict[str, Any], item: Result) -> bool:
        assert item.identity is not None
        try:
            return bool(
                known["model"]["digest"] == self.tagger.bundle.digest
                and known["audio"] == _as_json(item.identity)
                and (self.every_s is None or known["over_time"]["every_s"] == self.every_s)
            )
        except (KeyError, TypeError):
            return False

    def _as_result(self, item: Result, known: dict[str, Any]) -> Result:
        scores = {entry["tag"]: float(entry["score"]) for entry in known["tags"]}
        done = replace(
            item,
            duration_s=float(known["duration_s"]),
            truncated=bool(known["truncated"]),
            was_done=True,
            scores=np.array([scores[tag] for tag in self.tagger.tag_names], np.float32),
        )
        if self.every_s is None:
            return done
        num_tags = len(self.tagger.tag_names)
        rows = [row or [np.nan] * num_tags for row in known["over_time"]["scores"]]
        over_time = np.array(rows, np.float32)
        if over_time.shape[1:] != (num_tags,):
            raise ValueError("rows of another length")
        return replace(done, over_time=over_time, every_s=self.every_s)


def sidecar_of(path: str) -> Path:
    """Where the sidecar of a file is."""
    return Path(path + ENDING)


def identity(path: str) -> tuple[int, int]:
    """What changes when a file does: its size in bytes, and when it was changed, in ns."""
    status = os.stat(path)  # noqa: PTH116 - as the file was named
    return status.st_size, status.st_mtime_ns


def _as_json(identity: tuple[int, int]) -> dict[str, int]:
    return {"bytes": identity[0], "mtime_ns": identity[1]}


def _load(path: Path) -> dict[str, Any]:
    """What a sidecar says; nothing if there is none."""
    try:
        known = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        known = None
    if not isinstance(known, dict) or not str(known.get("format")).startswith("mstag-tags-"):
        raise ValueError(
            f"beside it lies {path.name}, which mstag did not write: move it away, or leave "
            "out --sidecar"
        )
    return known
