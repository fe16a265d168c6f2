"""How hard are the large demo set and its strangers? A ridge regression's macro ROC-AUC.

    make shards DATASET=demo-large
    make shards DATASET=demo-stranger
    python bench/demo_large.py shards/demo-large shards/demo-stranger

Of each clip it sees statistics of the log-mel spectrogram alone: per band the mean, the standard
deviation, the mean change from frame to frame, the 10th and the 90th percentile. The penalty
is the best one on the validation split. Prints what docs/demo-large.md says.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from mstag import metrics
from mstag.data.samples import Source
from mstag.data.store import Folder

PENALTIES = (30.0, 100.0, 300.0, 1000.0, 3000.0)
NUM_DRAWS = 100
Array = NDArray[Any]


@dataclass(frozen=True)
class Split:
    """Clips: statistics (n, 5 * n_mels), labels (n, t), artists n."""

    statistics: Array
    labels: Array
    artists: list[str]


def read_split(store: Folder, name: str) -> Split:
    """All clips of a split."""
    statistics, labels, artists = [], [], []
    with Source(store, name) as source:
        for number in range(len(source)):
            clip = source.read(number)
            statistics.append(statistics_of(clip.mel.astype(np.float32)))
            labels.append(clip.tags.copy())
            artists.append(clip.meta["artist"])
    return Split(np.array(statistics), np.array(labels), artists)


def statistics_of(mel: Array) -> Array:
    """Of one spectrogram (n_mels, num_frames)."""
    changes = np.abs(np.diff(mel, axis=1)).mean(axis=1)
    low, high = np.percentile(mel, [10, 90], axis=1)
    return np.concatenate([mel.mean(axis=1), mel.std(axis=1), changes, low, high])


def over_artists(labels: Array, scores: Array, artists: list[str]) -> tuple[float, float]:
    """95 % interval of the macro ROC-AUC: artists are drawn, with all their clips."""
    rows: dict[str, list[int]] = {}
    for row, artist in enumerate(artists):
        rows.setdefault(artist, []).append(row)
    names, rng = sorted(rows), np.random.default_rng(0)
    found = []
    for _ in range(NUM_DRAWS):
        drawn = [row for i in rng.integers(len(names), size=len(names)) for row in rows[names[i]]]
        found.append(metrics.macro(metrics.roc_auc_per_tag(labels[drawn], scores[drawn])))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)


def main(large: str, stranger: str) -> None:
    """Prints the scores of each penalty, then the best one's with intervals and per tag."""
    stores = [Folder(Path(folder)) for folder in (large, stranger)]
    tag_names = stores[0].manifest.tag_names
    assert stores[1].manifest.tag_names == tag_names, "other tags, or another order"
    train = read_split(stores[0], "train")
    splits = {name: read_split(stores[0], name) for name in ("valid", "test")}
    splits["stranger"] = read_split(stores[1], "test")
    scale = StandardScaler().fit(train.statistics)
    best: dict[str, Array] = {}
    best_valid = 0.0
    for penalty in PENALTIES:
        model = Ridge(alpha=penalty).fit(scale.transform(train.statistics), train.labels)
        scores = {k: model.predict(scale.transform(s.statistics)) for k, s in splits.items()}
        aucs = {k: metrics.roc_auc_per_tag(s.labels, scores[k]) for k, s in splits.items()}
        macros = {k: metrics.macro(values) for k, values in aucs.items()}
        print(f"penalty {penalty:g}:", {k: round(value, 4) for k, value in macros.items()})
        if macros["valid"] > best_valid:
            best, best_valid, best_aucs = scores, macros["valid"], aucs
    for k, split in splits.items():
        low, high = over_artists(split.labels, best[k], split.artists)
        print(f"{k}: {metrics.macro(best_aucs[k]):.3f} [{low:.3f}, {high:.3f}]")
    for i, tag in enumerate(tag_names):
        print(f"{tag:16}", *(f"{k} {best_aucs[k][i]:.2f}" for k in splits))


if __name__ == "__main__":
    main(*sys.argv[1:3])
