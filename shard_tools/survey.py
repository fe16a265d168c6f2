"""A finished folder of shards -> a row of numbers per clip: what the report is made of.

Every clip is read, up to ``MAX_SAMPLES`` samples in all; of larger folders a drawn part is, so
that a folder of a million clips costs what one of 20,000 does. Nothing of a spectrogram is
kept but its mean power per band.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstag.data import shards
from mstag.data.samples import Source
from mstag.data.store import Folder
from shard_tools.report import to_db

MAX_SAMPLES = 20_000
"""Of all splits together: some 3 GB of the 2017 recipe's spectrograms."""
MIN_PER_SPLIT = 1_000
"""Samples drawn of a split that is small beside the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was looked at, one row per clip; a clip's samples are adjacent in its split.

    Attributes:
        folder: of the shards.
        manifest: of the folder.
        split: (n,) number of the clip's split in the manifest's order.
        first: (n,) number of its first sample in the split.
        num_samples: (n,) samples it was cut into.
        num_frames: (n,) frames of audio in them, padding left out.
        num_padded: (n,) frames of padding behind the audio.
        is_truncated: (n,) whether its file broke off.
        tags: (n, n_tags) 0 or 1.
        mask: (n, n_tags) 1 where the label is known; None: all are.
        bands: (n, n_mels) mean power per band over its audio in dB; features of an unknown
            recipe: mean of the stored values. NaN where a value is not finite.
        levels: (n,) mean of the power over its audio and all bands in dB, or as above.
        ids: (n,) clip ids.
        paths: (n,) audio files, "" where the shards do not tell.
        makers: (n,) artists, else tracks, else clip ids.
        drawn: split name -> samples drawn; None: every sample was read.
        starts: split name -> how many of the drawn samples were the first of their clip.
    """

    folder: Path
    manifest: shards.Manifest
    split: NDArray[np.int64]
    first: NDArray[np.int64]
    num_samples: NDArray[np.int64]
    num_frames: NDArray[np.int64]
    num_padded: NDArray[np.int64]
    is_truncated: NDArray[np.bool_]
    tags: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None
    bands: NDArray[np.float64]
    levels: NDArray[np.float64]
    ids: list[str]
    paths: list[str]
    makers: list[str]
    drawn: dict[str, int] | None
    starts: dict[str, int]


def draw(sizes: dict[str, int], most: int = MAX_SAMPLES, *, seed: int = 0) -> dict[str, Any]:
    """Which samples of each split to look at: all, or a part drawn without replacement.

    Args:
        sizes: split name -> samples in it.
        most: samples in all, but for MIN_PER_SPLIT.
        seed: the same seed, the same draw.

    Returns:
        Split name -> numbers of the samples, ascending, int64.
    """
    total = sum(sizes.values())
    if total <= most:
        return {name: np.arange(size) for name, size in sizes.items()}
    rng = np.random.default_rng(seed)
    least = min(MIN_PER_SPLIT, most // max(1, len(sizes)))
    return {
        name: np.sort(rng.choice(size, min(size, max(least, most * size // total)), replace=False))
        for name, size in sizes.items()
    }


def survey(
    folder: Path, *, most: int = MAX_SAMPLES, seed: int = 0, progress: bool = False
) -> Survey:
    """Looks at the clips of a finished folder of shards.

    Args:
        folder: of shards, packed by mstag or indexed.
        most: samples that are read of it; see :func:`draw`.
        seed: of the draw.
        progress: show a bar, on a terminal, when it takes more than two seconds.

    Raises:
        ValueError: no finished shards, or a sample is damaged.
    """
    from tqdm import tqdm

    store = Folder(folder)
    sizes = {name: split.clips for name, split in store.manifest.splits.items()}
    drawn = draw(sizes, most, seed=seed)
    num_drawn = {name: len(numbers) for name, numbers in drawn.items()}
    rows: list[dict[str, Any]] = []
    hidden = None if progress else True  # None: shown on a terminal
    with tqdm(total=sum(num_drawn.values()), unit="sample", delay=2, disable=hidden) as bar:
        bar.set_description("looking at shards", refresh=False)
        for position, name in enumerate(sizes):
            with Source(store, name) as source:
                reached = 0
                for done, samples in source.clips(drawn[name]):
                    rows.append({"split": position, **_row(source, samples, store.manifest)})
                    bar.update(done - reached)
                    reached = done
            bar.update(num_drawn[name] - reached)
    return _survey(folder, store.manifest, rows, None if num_drawn == sizes else num_drawn)


def _row(source: Source, samples: list[int], manifest: shards.Manifest) -> dict[str, Any]:
    """A clip's numbers from its samples."""
    features = manifest.features
    is_power = features.recipe == "log-mel"
    power, num_frames, num_padded = np.zeros(features.n_mels), 0, 0
    is_truncated, is_finite = False, True
    for number in samples:
        stored = source.read(number)
        padded = min(max(int(stored.meta.get("padded_frames", 0)), 0), features.num_frames)
        is_truncated |= bool(stored.meta.get("truncated"))
        audio = stored.mel[:, : features.num_frames - padded].astype(np.float32)
        is_finite &= bool(np.isfinite(audio).all())
        if is_finite:
            if is_power:
                # No log-mel of audio comes near 80; what does must not overflow.
                np.exp(np.minimum(audio, 80.0, out=audio), out=audio)
            power += audio.sum(axis=1, dtype=float)
        num_frames += audio.shape[1]
        num_padded += padded
    mean = power / max(num_frames, 1)
    bands = to_db(mean) if is_power else mean
    level = to_db(mean.mean()) if is_power else mean.mean()
    meta = stored.meta
    return {
        "first": samples[0],
        "num_samples": len(samples),
        "num_frames": num_frames,
        "num_padded": num_padded,
        "is_truncated": is_truncated,
        "tags": stored.tags.copy(),
        "mask": None if stored.mask is None else stored.mask.copy(),
        "bands": bands if is_finite else np.full_like(bands, np.nan),
        "levels": float(level) if is_finite else np.nan,
        "ids": str(meta["id"]),
        "paths": str(meta.get("path") or ""),
        "makers": str(meta.get("artist") or meta.get("track") or meta["id"]),
    }


def _survey(
    folder: Path,
    manifest: shards.Manifest,
    rows: list[dict[str, Any]],
    drawn: dict[str, int] | None,
) -> Survey:
    def column(name: str, dtype: type[Any], *width: int) -> NDArray[Any]:
        return np.array([row[name] for row in rows], dtype).reshape(len(rows), *width)

    num_tags = len(manifest.tags)
    has_mask = any(row["mask"] is not None for row in rows)
    for row in rows if has_mask else []:
        row["mask"] = np.ones(num_tags, np.uint8) if row["mask"] is None else row["mask"]
    split = column("split", np.int64)
    return Survey(
        folder=folder,
        manifest=manifest,
        split=split,
        first=column("first", np.int64),
        num_samples=column("num_samples", np.int64),
        num_frames=column("num_frames", np.int64),
        num_padded=column("num_padded", np.int64),
        is_truncated=column("is_truncated", np.bool_),
        tags=column("tags", np.uint8, num_tags),
        mask=column("mask", np.uint8, num_tags) if has_mask else None,
        bands=column("bands", np.float64, manifest.features.n_mels),
        levels=column("levels", np.float64),
        ids=[row["ids"] for row in rows],
        paths=[row["paths"] for row in rows],
        makers=[row["makers"] for row in rows],
        drawn=drawn,
        starts={name: int((split == n).sum()) for n, name in enumerate(manifest.splits)},
    )
