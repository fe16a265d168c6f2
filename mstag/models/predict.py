"""Batches -> scores per clip: the one way to score, in training, evaluation and tagging.

Shape suffixes: B windows of the batch, N chunks of each, NB all of these in one dimension, M mel
bands, T frames of a window, C of a chunk, K tags.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mstag.models import classify, embed, frames_at_once


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
    """Which samples of their split they are, n (a clip of several windows: its first); None:
    not of a split."""


def chunk_starts(num_frames: int, chunk_frames: int) -> tuple[int, ...]:
    """First frames of the chunks that cover a window: as few as possible, evenly spread.

    The first chunk starts with the window and the last ends with it, so that nothing is padded;
    neighbours overlap unless ``chunk_frames`` divides ``num_frames``.

    Args:
        num_frames: of the window.
        chunk_frames: of each chunk, 1 to ``num_frames``.
    """
    assert 1 <= chunk_frames <= num_frames, f"chunks of {chunk_frames} in {num_frames} frames"
    num_chunks = -(-num_frames // chunk_frames)
    last = num_frames - chunk_frames
    return tuple(i * last // max(1, num_chunks - 1) for i in range(num_chunks))


def score_windows(model: nn.Module, mel_B1MT: Tensor) -> Tensor:
    """Scores (B, K) of windows: sigmoids, their mean over the chunks that the network takes.

    Neither the model's mode nor autograd is touched: :func:`predict` does that. The control
    flow depends on T alone, so that torch.export can trace it for any B.
    """
    return _mean_over_chunks(model, mel_B1MT, lambda mel: (torch.sigmoid(model(mel)),))[0]


def score_and_embed(model: nn.Module, mel_B1MT: Tensor) -> tuple[Tensor, Tensor]:
    """The scores (B, K) of :func:`score_windows`, and features (B, F) in one go with them.

    The features are what the network's last layer hears, :func:`mstag.models.embed`; of a window,
    too, their mean over its chunks.
    """

    def both(mel_B1MC: Tensor) -> tuple[Tensor, Tensor]:
        features_BF = embed(model, mel_B1MC)
        return torch.sigmoid(classify(model, features_BF)), features_BF

    scores_BK, features_BF = _mean_over_chunks(model, mel_B1MT, both)
    return scores_BK, features_BF


def as_in_shards(mel: Tensor) -> Tensor:
    """Rounds to float16 and back, as storing spectrograms does; for exported programs.

    Not by to(), whose trace would hold the program to the device that it was traced on.
    """
    halves: Tensor = torch.ops.aten._to_copy(mel, dtype=torch.float16)
    rounded: Tensor = torch.ops.aten._to_copy(halves, dtype=torch.float32)
    return rounded


def _mean_over_chunks(
    model: nn.Module, mel_B1MT: Tensor, of_chunk: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    num_frames, chunk_frames = mel_B1MT.shape[-1], frames_at_once(model)
    starts = chunk_starts(num_frames, chunk_frames)
    # Chunks that overlap hold less than twice the frames of their window. Half of them at a time
    # never hold more than it: scoring by chunks needs no more memory than scoring whole windows.
    overlap = len(starts) * chunk_frames > num_frames
    parts = [
        _of_chunks([mel_B1MT[..., start : start + chunk_frames] for start in part], of_chunk)
        for part in ((starts[::2], starts[1::2]) if overlap else (starts,))
    ]
    return tuple(torch.cat(found).mean(dim=0) for found in zip(*parts, strict=True))


def _of_chunks(
    chunks: list[Tensor], of_chunk: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """N chunks (B, 1, M, C) -> what ``of_chunk`` says of them, (N, B, ...), in one forward pass."""
    mel_NB1MC = torch.cat(chunks)
    if mel_NB1MC.device.type == "cpu":
        # The strides of channels_last, by views alone (to() would name its device in exported
        # programs): half the time, whatever the layout of the weights (0.52; 2 AVX2 cores).
        mel_NB1MC = mel_NB1MC[:, 0, :, :, None].permute(0, 3, 1, 2)
    return tuple(found.view(len(chunks), chunks[0].shape[0], -1) for found in of_chunk(mel_NB1MC))


def predict(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    device: torch.device | str,
    *,
    between_batches: Callable[[], None] | None = None,
) -> Predictions:
    """Scores every sample of the batches, in their order.

    The model runs in evaluation mode and in float32, whatever it was trained in: with half
    precision or TF32 the score of a clip would depend on the clips beside it, because other
    batch sizes take other kernels. It is handed back in the mode that it came in.

    Args:
        model: (B, 1, M, its num_frames) -> logits (B, K); see :func:`score_windows`.
        batches: dicts with mel, tags and id, and mask where labels are partial; "number" is
            passed on; B may be 0.
            Their buffers may be reused: nothing of them is kept.
        device: where the model is.
        between_batches: called before each batch is scored, empty ones too; what it raises ends
            the scoring.
    """
    ids: list[str] = []
    numbers: list[npt.NDArray[np.int64]] = []
    scores: list[Tensor] = []
    known: dict[str, list[Tensor]] = {"tags": [], "mask": []}
    with in_float32(model):
        for batch in batches:
            if between_batches is not None:
                between_batches()
            mel = batch["mel"].to(device, torch.float32)
            ids.extend(batch["id"])
            if "number" in batch:
                numbers.append(batch["number"])
            # An empty batch keeps the number of tags; kernels need not accept it.
            empty = mel.new_empty(batch["tags"].shape)
            scores.append(score_windows(model, mel) if len(mel) else empty)
            for key in known.keys() & batch.keys():
                known[key].append(batch[key].clone())
    # One copy from the device at the end: none waits for the device in between.
    labels = torch.cat(known["tags"] or [torch.empty((0, 0), dtype=torch.uint8)]).cpu().numpy()
    return Predictions(
        ids=ids,
        scores=torch.cat(scores).cpu().numpy() if scores else labels.astype(np.float32),
        labels=labels,
        mask=torch.cat(known["mask"]).cpu().numpy() if known["mask"] else None,
        numbers=np.concatenate(numbers) if numbers else None,
    )


@contextlib.contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode, without gradients, at full precision; then as it came in."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), full_float32():
            yield
    finally:
        model.train(was_training)


def predict_chunks(model: nn.Module, mel: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Scores of one window (M, T) over time, (N, K): of each chunk that the network takes."""
    device = next(model.parameters()).device
    mel_11MT = torch.as_tensor(mel, dtype=torch.float32, device=device)[None, None]
    chunk_frames = frames_at_once(model)
    starts = chunk_starts(mel_11MT.shape[-1], chunk_frames)
    with in_float32(model):
        chunks = [mel_11MT[..., start : start + chunk_frames] for start in starts]
        (scores_N1K,) = _of_chunks(chunks, lambda mel: (torch.sigmoid(model(mel)),))
        scores_NK: npt.NDArray[np.float32] = scores_N1K[:, 0].cpu().numpy()
    return scores_NK


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
        numbers=None if predictions.numbers is None else predictions.numbers[rows],
    )


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """No autocast, no TF32, which cudnn's convolutions use unless told otherwise.

    Nor cudnn's benchmark, so that the same weights score the same each time. All but autocast
    are settings of the process: where several threads score, hold it around all of them, or one
    hands back what another still needs.
    """
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
