"""Small folders of shards with known content, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mstag import config
from mstag.data import shards, tars

TINY = config.FeatureConfig(n_mels=8, num_frames=12)


def make_samples(
    prefix: str,
    num_clips: int,
    features: config.FeatureConfig = TINY,
    num_tags: int = 5,
    *,
    seed: int = 0,
    partial: bool = False,
) -> list[tars.Sample]:
    """Random samples whose mel is a little louder where tag i is set, in band i.

    With ``partial``, about half of the labels that are not set are unknown.
    """
    rng = np.random.default_rng([seed, *prefix.encode()])
    samples = []
    for number in range(num_clips):
        tags = (rng.random(num_tags) < 0.4).astype(np.uint8)
        mel = rng.standard_normal((features.n_mels, features.num_frames))
        mel[: min(num_tags, features.n_mels)] += 2.0 * tags[: features.n_mels, None]
        known = (rng.random(num_tags) < 0.5).astype(np.uint8) | tags if partial else None
        samples.append(
            tars.Sample(
                key=f"{prefix}-{number:05d}",
                mel=mel.astype(np.float16),
                tags=tags,
                meta={"id": f"{prefix}{number}", "path": f"{number}.mp3", "start_s": 0.0},
                mask=known,
            )
        )
    return samples


def make_shards(
    folder: Path,
    shard_sizes: dict[str, list[int]],
    features: config.FeatureConfig = TINY,
    num_tags: int = 5,
    *,
    seed: int = 0,
    partial: bool = False,
    samples: dict[str, list[tars.Sample]] | None = None,
) -> dict[str, list[tars.Sample]]:
    """Writes a finished folder of shards; returns its samples per split, in shard order.

    ``samples``, where given, are packed instead of random ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits, content = {}, {}
    for split, sizes in shard_sizes.items():
        made = (samples or {}).get(split) or make_samples(
            split, sum(sizes), features, num_tags, seed=seed, partial=partial
        )
        entries, rows, start = [], [np.empty(0, tars.INDEX_DTYPE)], 0
        for number, size in enumerate(sizes):
            path = folder / f"{split}-{number:06d}.tar"
            own = tars.write_shard(path, made[start : start + size])
            own["shard"] = number
            rows.append(own)
            entries.append(shards.entry_of(path, size))
            start += size
        index = shards.write_index(folder, split, np.concatenate(rows))
        splits[split] = shards.Split(start, entries, index)
        content[split] = made
    tags: list[dict[str, Any]] = [
        {
            "tag": f"tag {i}",
            "positives": {s: sum(int(x.tags[i]) for x in content[s]) for s in content},
        }
        for i in range(num_tags)
    ]
    if any(sample.mask is not None for made in content.values() for sample in made):
        for i, tag in enumerate(tags):
            masks = {s: [x.mask for x in content[s] if x.mask is not None] for s in content}
            tag["known"] = {s: sum(int(mask[i]) for mask in masks[s]) for s in content}
    shards.write_manifest(
        folder,
        shards.Manifest(
            dataset="synthetic",
            features=features,
            tags=tags,
            splits=splits,
            split_rule="made by a test",
            leaks={},
            oracle_roc_auc=None,
            skipped=[],
            mstag_version="0",
        ),
    )
    return content
