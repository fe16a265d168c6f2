"""Batches -> scores per clip: the one way to score, in training, evaluation and tagging."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model said about n samples, and what is known about them."""

    ids: list[str]
    """Clip ids, n; windows of one clip share its id."""
    scores: npt.NDArray[np.float32]
    """Sigmoids, (n, num_tags)."""
    labels: npt.NDArray[np.uint8]
    """0/1, (n, num_tags)."""
    mask: npt.NDArray[np.uint8] | None = None
    """1 = the label is known, (n, num_tags); None: all are."""
    numbers: npt.NDArray[np.int64] | None = None
    """Which samples of their split they are, n; None: not of a split."""


def predict(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], device: torch.device | str
) -> Predictions:
    """Scores every sample of the batches, in their order.

    The model runs in evaluation mode and in float32, whatever it was trained in: with half
    precision or TF32 the score of a clip would depend on the clips beside it, because other
    batch sizes take other kernels. It is handed back in the mode that it came in.

    Args:
        model: (B, 1, n_mels, num_frames) -> logits (B, num_tags).
        batches: dicts with mel, tags and id, and mask where labels are partial; "number" is
            passed on; B may be 0.
            Their buffers may be reused: nothing of them is kept.
        device: where the model is.
    """
    ids: list[str] = []
    numbers: list[npt.NDArray[np.int64]] = []
    scores: list[Tensor] = []
    known: dict[str, list[npt.NDArray[np.uint8]]] = {"tags": [], "mask": []}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), _full_float32():
            for batch in batches:
                mel = batch["mel"].to(device, torch.float32)
                ids.extend(batch["id"])
                if "number" in batch:
                    numbers.append(batch["number"])
                # An empty batch keeps the number of tags; kernels need not accept it.
                empty = mel.new_empty(batch["tags"].shape)
                scores.append(torch.sigmoid(model(mel)) if len(mel) else empty)
                for key in known.keys() & batch.keys():
                    known[key].append(batch[key].cpu().numpy().copy())
    finally:
        model.train(was_training)
    labels = np.concatenate(known["tags"] or [np.empty((0, 0), np.uint8)])
    return Predictions(
        ids=ids,
        # One copy from the device at the end: none waits for the device in between.
        scores=torch.cat(scores).cpu().numpy() if scores else labels.astype(np.float32),
        labels=labels,
        mask=np.concatenate(known["mask"]) if known["mask"] else None,
        numbers=np.concatenate(numbers) if numbers else None,
    )


def average_per_clip(predictions: Predictions) -> Predictions:
    """Averages the scores (sigmoids) of samples with the same id; clips in order of appearance.

    Raises:
        ValueError: two windows of one clip with different labels.
    """
    if not predictions.ids:
        return predictions
    _, first_row, clip_of_row = np.unique(
        np.array(predictions.ids), return_index=True, return_inverse=True
    )
    by_appearance = np.argsort(first_row)
    rows = first_row[by_appearance]
    new_number = np.argsort(by_appearance)[clip_of_row]
    for known in (predictions.labels, predictions.mask):
        if known is not None and (bad := (known != known[rows][new_number]).any(axis=1)).any():
            clip_id = predictions.ids[int(np.flatnonzero(bad)[0])]
            raise ValueError(f"clip {clip_id}: its windows have different labels; pack it again")
    sums = np.zeros((len(rows), predictions.scores.shape[1]))
    np.add.at(sums, new_number, predictions.scores)
    return Predictions(
        ids=[predictions.ids[row] for row in rows],
        scores=(sums / np.bincount(new_number)[:, None]).astype(np.float32),
        labels=predictions.labels[rows],
        mask=None if predictions.mask is None else predictions.mask[rows],
    )


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """No autocast and no TF32; cudnn's convolutions use TF32 unless told otherwise."""
    matmul_precision = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    try:
        torch.set_float32_matmul_precision("highest")
        with (
            cudnn.flags(enabled=cudnn.enabled, allow_tf32=False),
            torch.autocast("cuda", enabled=False),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul_precision)
