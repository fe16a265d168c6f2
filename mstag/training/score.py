"""A split -> the eval report, with every clip counted exactly once, at any number of ranks.

train.py calls it after each epoch and at its end, eval.py for everything else.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from mstag import files, metrics, runtime
from mstag.data import shards
from mstag.data.stream import ShardLoader
from mstag.models.predict import Predictions, average_per_clip, predict
from mstag.runtime import Ranks
from mstag.training import runs

CLIPS_PER_RANK = 32
"""Clips that a rank scores at once by default: 1 GB of activations in the 2017 network."""


def score_split(
    model: nn.Module,
    folder: Path,
    split: str,
    *,
    device: torch.device,
    ranks: Ranks,
    batch_size: int | None = None,
    num_threads: int = 2,
    num_resamples: int = 1000,
) -> tuple[dict[str, Any], Predictions]:
    """Scores a split; every rank scores its part and gets the whole result.

    Args:
        model: the network, on ``device``; with several ranks, rank 0's BatchNorm statistics
            count for all (DDP lets them drift apart between two forward passes).
        folder: shards.
        split: "train", "valid" or "test".
        device: where to compute.
        ranks: of this process.
        batch_size: clips per step over all ranks; the result does not depend on it.
        num_threads: reading threads.
        num_resamples: bootstrap resamples of the intervals; 0: none.

    Returns:
        The report of :func:`mstag.metrics.evaluate` with ``split`` in front, and one
        prediction per clip (its windows averaged), ordered by id.

    Raises:
        ValueError: no such split, an empty one, or damaged shards.
        RuntimeError: a sample was missed or seen twice.
    """
    manifest = shards.read_manifest(folder)
    runs.require_split(folder, manifest, split)
    loader = ShardLoader(
        folder,
        split,
        batch_size=batch_size or CLIPS_PER_RANK * ranks.world_size,
        shuffle=False,
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_threads=num_threads,
        device=device,
    )
    if ranks.world_size > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    hidden = None if ranks.is_first else True  # None: shown on a terminal
    bar = tqdm(loader, desc=f"scoring {split}", unit="batch", delay=2, leave=False, disable=hidden)
    own = predict(model, bar, device)
    samples = _concatenated(runtime.gather_over_ranks(own, ranks))
    check_each_once(samples.ids, sample_ids(folder, manifest, split), f"{folder}, split {split}")
    predictions = average_per_clip(_sorted_by_id(samples))
    report = metrics.evaluate(
        predictions.labels,
        predictions.scores,
        manifest.tag_names,
        predictions.mask,
        num_resamples=num_resamples,
    )
    return {"split": split, **report}, predictions


def sample_ids(folder: Path, manifest: shards.Manifest, split: str) -> list[str]:
    """The clip id of every sample of a split, read from the shards past the loader.

    Costs one small read a sample, out of the page cache when the split was just scored.
    """
    handles = [os.open(folder / entry.name, os.O_RDONLY) for entry in manifest.splits[split].shards]
    try:
        return [
            json.loads(
                os.pread(handles[row["shard"]], int(row["json_bytes"]), int(row["json_at"]))
            )["id"]
            for row in shards.read_index(folder, split, manifest)
        ]
    finally:
        for handle in handles:
            os.close(handle)


def check_each_once(seen: list[str], expected: list[str], where: str) -> None:
    """Asserts that scoring saw each sample as often as it is stored (a window is a sample).

    Raises:
        RuntimeError: with the numbers and the first ids that are wrong.
    """
    seen_times, expected_times = Counter(seen), Counter(expected)
    if seen_times == expected_times:
        return
    missed, twice = expected_times - seen_times, seen_times - expected_times
    raise RuntimeError(
        f"{where}: {len(seen)} samples were scored, {len(expected)} are stored; missed "
        f"{missed.total()} {sorted(missed)[:3]}, too many {twice.total()} {sorted(twice)[:3]}: "
        "the score would be wrong and is not given"
    )


def write_eval(run: Path, report: dict[str, Any], predictions: Predictions) -> None:
    """Writes ``eval-<split>.json`` and ``scores-<split>.npz`` (ids, scores, labels, mask).

    Args:
        run: the run folder.
        report: of :func:`full_report`.
        predictions: of :func:`score_split`.
    """
    arrays: dict[str, Any] = {
        "ids": np.array(predictions.ids),
        "scores": predictions.scores,
        "labels": predictions.labels,
    }
    if predictions.mask is not None:
        arrays["mask"] = predictions.mask
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    files.write_bytes(run / f"scores-{report['split']}.npz", buffer.getvalue())
    write_report(run / f"eval-{report['split']}.json", report)


def full_report(
    report: dict[str, Any], manifest: shards.Manifest, checkpoint_digest: str
) -> dict[str, Any]:
    """A report of :func:`score_split` with what was scored and what the split is worth.

    ``checkpoint_digest`` names the weights.
    """
    return {
        **report,
        "dataset": manifest.dataset,
        "split_rule": manifest.split_rule,
        "leaks": manifest.leaks,
        "oracle_roc_auc": manifest.oracle_roc_auc,
        "checkpoint_digest": checkpoint_digest,
        "dataset_digest": manifest.digest,
        "features_digest": manifest.features_digest,
        "tags_digest": manifest.tags_digest,
    }


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Writes a report as JSON, atomically; NaN would be a defect and is not written."""
    files.write_text(path, json.dumps(report, indent=1, allow_nan=False) + "\n")


def _concatenated(parts: list[Predictions]) -> Predictions:
    masks = [part.mask for part in parts if part.mask is not None]
    assert len(masks) in (0, len(parts)), "masks on some ranks only"
    return Predictions(
        ids=[clip_id for part in parts for clip_id in part.ids],
        scores=np.concatenate([part.scores for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        mask=np.concatenate(masks) if masks else None,
    )


def _sorted_by_id(samples: Predictions) -> Predictions:
    order = sorted(range(len(samples.ids)), key=samples.ids.__getitem__)
    return Predictions(
        ids=[samples.ids[i] for i in order],
        scores=samples.scores[order],
        labels=samples.labels[order],
        mask=None if samples.mask is None else samples.mask[order],
    )
