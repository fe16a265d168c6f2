"""Run folders with everything that a report can show, made in milliseconds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from make_shards import make_samples, make_shards
from tiny_tagger import FEATURES, TAGS, make_bundle

from mstag import metrics
from mstag.data import shards
from mstag.models.predict import Predictions
from mstag.training import score

ABOUT = {
    **{"device": "cuda:0", "precision": "bf16", "ranks": 2, "recipe": "tiny-abc123"},
    "network": {"weights": 2_940_000, "flops_per_clip": 2_140_000_000},
    "git": {"commit": "0123456789abcdef", "dirty": True},
    "versions": {"mstag": "1.0", "torch": "2.11"},
}
LEDGER = {"data/seen": 580, "data/dropped": 5}
LEAKS = {"test": {"track": 0.0, "album": 0.0, "artist": 0.0}}


def make_data(folder: Path, *, partial: bool = False) -> Path:
    """Shards with the tags of the tiny tagger, and their audio files in ``folder/audio``."""
    sizes = {"train": [5], "valid": [4], "test": [12, 18]}
    made = make_samples("test", 30, FEATURES, len(TAGS), partial=partial)
    make_shards(
        folder / "shards", sizes, FEATURES, len(TAGS), samples={"test": made}, partial=partial
    )
    manifest = shards.read_manifest(folder / "shards")
    tags = [{**tag, "tag": name} for tag, name in zip(manifest.tags, TAGS, strict=True)]
    shards.write_manifest(
        folder / "shards",
        dataclasses.replace(manifest, tags=tags, leaks=LEAKS, oracle_roc_auc=0.5),
    )
    (folder / "audio").mkdir()
    for number in range(29):  # the last one is missing
        (folder / "audio" / f"{number}.mp3").write_bytes(b"ID3 not really music")
    return folder / "shards"


def make_run(
    folder: Path,
    where: Path,
    *,
    seed: int = 0,
    settings: str = "[train]\nepochs = 3\n",
    noise: float = 1.0,
) -> Path:
    """A finished run on :func:`make_data`'s shards, its scores drawn around the labels."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(settings)
    rows = []
    for epoch in range(1, 4):
        axes = {"step": 10 * epoch, "clips_seen": 50 * epoch, "epoch": float(epoch)}
        rows.append(axes | {"train/loss": 1 / epoch, "train/lr": 1e-3, "train/clips_per_s": 9.0})
        rows.append(axes | {"valid/loss": 1.1 / epoch, "valid/roc_auc": 0.5 + epoch / 10})
        rows.append(
            axes | {"train/odd <key>": epoch, "data/refused": 0, "valid/pr_auc": None} | LEDGER
        )
    (folder / "about.json").write_text(json.dumps(ABOUT))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = shards.read_manifest(where)
    make_bundle(folder / "best")
    partial = bool(manifest.tags and "known" in manifest.tags[0])
    samples = make_samples("test", 30, FEATURES, len(TAGS), partial=partial)
    labels = np.stack([sample.tags for sample in samples])
    masks = [sample.mask for sample in samples if sample.mask is not None]
    rng = np.random.default_rng(seed)
    logits = 2.0 * labels - 1 + noise * rng.standard_normal(labels.shape)
    predictions = Predictions(
        ids=[str(sample.meta["id"]) for sample in samples],
        scores=(1 / (1 + np.exp(-logits))).astype(np.float32),
        labels=labels,
        mask=np.stack(masks) if masks else None,
    )
    found = metrics.evaluate(
        labels, predictions.scores, manifest.tag_names, predictions.mask, num_resamples=20
    )
    report = score.full_report({"split": "test", **found}, manifest, "f00d" * 16)
    score.write_eval(folder, report, predictions)
    (folder / "finished.json").write_text("{}")
    return folder
