"""A catalogue -> the shards it becomes: which clips, in which order, under which names.

Clips are put in a fixed random order per split and cut into shards. A shard is a function
of its clips and the settings alone, so neither the number of workers nor the machine that
packs it changes a byte.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mstag import config
from mstag.data import shards, tags
from mstag.data.clips import Catalogue, Clip

RECIPE_VERSION = 5
"""Part of every digest: raise it when the same input no longer gives the same bytes."""

Fingerprint = tuple[int, ...]
"""Size and modification time of an audio file, by which a change is noticed; () when there
is no such file."""


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard to pack: everything that its bytes depend on.

    Attributes:
        name: its file name.
        clips: in order.
        labels: uint8 0/1, (n_clips, n_tags).
        known: the same shape, 1 where the label is known; None: all are.
        audio: a fingerprint per clip, taken before anything is read.
        data_dir: what the clips' paths are relative to.
        features: how spectrograms are made.
        long_clips: "windows" or "centre".
    """

    name: str
    clips: list[Clip]
    labels: NDArray[np.uint8]
    known: NDArray[np.uint8] | None
    audio: list[Fingerprint]
    data_dir: Path
    features: config.FeatureConfig
    long_clips: str

    def digest(self) -> str:
        """Changes whenever the shard would."""
        known = self.known.tolist() if self.known is not None else None
        names = [[clip.id, clip.track, clip.artist, clip.album] for clip in self.clips]
        heard = [self.heard(number) for number in range(len(self.clips))]
        return config.digest([names, heard, self.labels.tolist(), known])

    def heard(self, number: int) -> str:
        """Changes whenever the spectrograms of one of its clips would."""
        return config.digest([self._recipe(), self._stretch(number), self.audio[number]])

    def asked(self) -> str:
        """Changes whenever the config or the tables ask for another shard; any audio will do."""
        names = [[clip.id, clip.track, clip.artist, clip.album] for clip in self.clips]
        stretches = [self._stretch(number) for number in range(len(self.clips))]
        labels = [
            None if array is None else hashlib.sha256(array.tobytes()).hexdigest()
            for array in (self.labels, self.known)
        ]
        return config.digest([self.name, self._recipe(), names, stretches, labels])

    def _recipe(self) -> list[object]:
        return [RECIPE_VERSION, self.long_clips, _features_digest(self.features)]

    def _stretch(self, number: int) -> list[object]:
        clip = self.clips[number]
        return [clip.path, clip.start_s, clip.duration_s]


def plan(
    settings: config.Config,
    catalogue: Catalogue,
    data_dir: Path,
    audio: dict[str, Fingerprint],
) -> list[ShardTask]:
    """Cuts a catalogue into shards.

    Within a split, clips are ordered by a hash of their id, so that a shard is a random
    sample and a removed clip moves few others.

    Args:
        settings: the experiment's config.
        catalogue: what to pack; every clip has a split.
        data_dir: the folder that the clips' paths are relative to.
        audio: a fingerprint per path, see :func:`fingerprints`.
    """
    size = settings.shards.clips_per_shard
    tasks = []
    partial = any(clip.known is not None for clip in catalogue.clips)
    for split in shards.SPLITS:
        clips = [clip for clip in catalogue.clips if clip.split == split]
        clips.sort(key=lambda clip: (hashlib.sha256(clip.id.encode()).digest(), clip.id))
        for number, start in enumerate(range(0, len(clips), size)):
            own = clips[start : start + size]
            tasks.append(
                ShardTask(
                    name=f"{split}-{number:06d}.tar",
                    clips=own,
                    labels=tags.multi_hot(own, catalogue.tag_names),
                    known=_known(own, catalogue.tag_names) if partial else None,
                    audio=[audio[clip.path] for clip in own],
                    data_dir=data_dir,
                    features=settings.features,
                    long_clips=settings.shards.long_clips,
                )
            )
    return tasks


def _known(clips: list[Clip], tag_names: list[str]) -> NDArray[np.uint8]:
    mask = tags.known_mask(clips, tag_names)
    return np.ones((len(clips), len(tag_names)), np.uint8) if mask is None else mask


@functools.lru_cache(maxsize=1)
def _features_digest(features: config.FeatureConfig) -> str:
    """Of every clip of a pack the same."""
    return config.features_digest(features)


def fingerprints(catalogue: Catalogue, data_dir: Path) -> dict[str, Fingerprint]:
    """The fingerprint of every audio file of a catalogue, by path."""
    return {clip.path: fingerprint(data_dir / clip.path) for clip in catalogue.clips}


def fingerprint(path: Path) -> Fingerprint:
    """Size and modification time of a file; () when it is not there."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return ()
    return (status.st_size, status.st_mtime_ns)
