"""A split -> the eval report, with every clip counted exactly once, at any number of ranks.

train.py calls it after epochs and at its end, eval.py for everything else.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from mstag import files, metrics, runtime
from mstag.data.shards import Manifest
from mstag.data.store import Store, open_store
from mstag.data.stream import ShardLoader
from mstag.models.predict import Predictions, average_per_clip, predict
from mstag.runtime import Ranks
from mstag.training import runs

CLIPS_PER_RANK = 32
"""Clips that a rank scores at once by default: 1 GB of activations in the 2017 network."""


def score_split(
    model: nn.Module,
    where: Path | str | Store,
    split: str,
    *,
    device: torch.device,
    ranks: Ranks,
    batch_size: int | None = None,
    num_workers: int = 2,
    num_resamples: int = 1000,
    between_batches: Callable[[], None] | None = None,
) -> tuple[dict[str, Any], Predictions]:
    """Scores a split; every rank scores its part and gets the whole result.

    Args:
        model: the network, on ``device``; with several ranks, rank 0's BatchNorm statistics
            count for all (DDP lets them drift apart between two forward passes).
        where: a folder of shards, the address of one, or an open store.
        split: "train", "valid" or "test".
        device: where to compute.
        ranks: of this process.
        batch_size: clips per step over all ranks; the result does not depend on it.
        num_workers: reading processes.
        num_resamples: bootstrap resamples of the intervals; 0: none.
        between_batches: called before each batch, equally often on every rank; what it raises
            ends the scoring.

    Returns:
        The report of :func:`mstag.metrics.evaluate` with ``split`` in front, and one
        prediction per clip (its windows averaged), ordered by id.

    Raises:
        ValueError: no such split, an empty one, or damaged shards.
        RuntimeError: a sample was missed or seen twice.
    """
    store = open_store(where)
    runs.require_split(store.name, store.manifest, split)
    loader = ShardLoader(
        store,
        split,
        batch_size=batch_size or CLIPS_PER_RANK * ranks.world_size,
        shuffle=False,
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_workers=num_workers,
        device=device,
    )
    if ranks.world_size > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    hidden = None if ranks.is_first else True  # None: shown on a terminal
    bar = tqdm(loader, desc=f"scoring {split}", unit="batch", delay=2, leave=False, disable=hidden)
    own = predict(model, bar, device, between_batches=between_batches)
    samples = _concatenated(runtime.gather_over_ranks(own, ranks))
    check_each_once(samples.numbers, loader.num_clips, f"{store.name}, split {split}")
    predictions = average_per_clip(_sorted_by_id(samples))
    report = metrics.evaluate(
        predictions.labels,
        predictions.scores,
        store.manifest.tag_names,
        predictions.mask,
        num_resamples=num_resamples,
    )
    return {"split": split, **report}, predictions


def check_each_once(
    numbers: np.ndarray[Any, np.dtype[np.int64]] | None, num_samples: int, where: str
) -> None:
    """Asserts that scoring saw each sample of a split once (a window is a sample).

    Args:
        numbers: of the samples that were scored, on all ranks together.
        num_samples: how many the manifest says there are.
        where: what messages call the split.

    Raises:
        RuntimeError: with the numbers that are wrong.
    """
    assert numbers is not None, "scored batches without sample numbers"
    times = np.bincount(numbers, minlength=num_samples)
    if len(times) == num_samples and (times == 1).all():
        return
    missed, twice = np.flatnonzero(times == 0), np.flatnonzero(times > 1)
    raise RuntimeError(
        f"{where}: {len(numbers)} samples were scored, {num_samples} are stored; missed "
        f"{len(missed)} {missed[:3].tolist()}, more than once {len(twice)} {twice[:3].tolist()}: "
        "the score would be wrong and is not given"
    )


def write_eval(
    run: Path, report: dict[str, Any], predictions: Predictions, *, label: str = ""
) -> None:
    """Writes ``eval-<label>.json`` and ``scores-<label>.npz`` (ids, scores, labels, mask).

    Args:
        run: the run folder.
        report: of :func:`full_report`.
        predictions: of :func:`score_split`.
        label: see :func:`label_of`; empty: the split.
    """
    label = label or report["split"]
    arrays: dict[str, Any] = {
        "ids": np.array(predictions.ids),
        "scores": predictions.scores,
        "labels": predictions.labels,
    }
    if predictions.mask is not None:
        arrays["mask"] = predictions.mask
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    files.write_bytes(run / f"scores-{label}.npz", buffer.getvalue())
    write_report(run / f"eval-{label}.json", report)


def label_of(split: str, dataset: str, trained_on: str) -> str:
    """Under which name a run keeps the scores of a split: another dataset's stand beside its own.

    ``test`` of the dataset that the run was trained on, ``test-demo-stranger`` of another.
    """
    return split if dataset == trained_on else f"{split}-{dataset}"


def full_report(
    report: dict[str, Any], manifest: Manifest, checkpoint_digest: str
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


def for_bundle(report: dict[str, Any]) -> dict[str, Any]:
    """What a bundle keeps of a report, for its card: rounded, and without intervals not taken."""
    kept = ("clips", "roc_auc", "roc_auc_ci", "pr_auc", "pr_auc_ci", "loss", "skipped_tags")
    return {
        **_brief({key: report[key] for key in kept}),
        "per_tag": [_brief(row) for row in report["per_tag"]],
    }


def _brief(values: dict[str, Any]) -> dict[str, Any]:
    def rounded(value: Any) -> Any:
        return round(value, 6) if isinstance(value, float) else value

    return {
        key: [rounded(end) for end in value] if key.endswith("_ci") else rounded(value)
        for key, value in values.items()
        if value is not None or not key.endswith("_ci")
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
        # An empty part has no say; that every sample is there is checked next.
        numbers=np.concatenate([p.numbers for p in parts if p.numbers is not None]),
    )


def _sorted_by_id(samples: Predictions) -> Predictions:
    """Windows of a clip stay in the order of the split, at any number of ranks."""
    assert samples.numbers is not None, "scored batches without sample numbers"
    numbers = samples.numbers
    order = sorted(range(len(samples.ids)), key=lambda row: (samples.ids[row], numbers[row]))
    return Predictions(
        ids=[samples.ids[i] for i in order],
        scores=samples.scores[order],
        labels=samples.labels[order],
        mask=None if samples.mask is None else samples.mask[order],
        numbers=numbers[order],
    )
