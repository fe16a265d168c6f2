"""Random chunks, equalisers, SpecAugment and mixup, on the training device, each clip on its own.

The few random numbers are drawn on the CPU, for all clips of the global batch, by a generator
keyed on (seed, step); each rank takes the rows of its clips. So a resumed run draws the same,
and so do a CPU and a GPU, and any number of ranks.

Shape suffixes: B clips, 1 channel, M mel bands, T frames, K tags, N masks, S places along an
axis.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mstag.config import TrainConfig

APART = 0x6D697875
"""Part of the key that sets these draws apart from dropout's and the epoch order's."""

NUM_COSINES = 5
"""Of an equaliser's curve: the finest has its bumps two fifths of the bands apart."""
NEPERS_PER_DB = math.log(10) / 10
"""Log-mels are natural logarithms of power."""

Rows = npt.NDArray[np.float64]


class Lots:
    """Random numbers for a rank's clips, drawn for those of all ranks.

    Args:
        seed: of the run.
        step: number of the optimiser step.
        num_clips: clips that a rank's part of the global batch should have; one that has lost
            damaged clips uses the first of its rows.
        rank: of this process.
        world_size: number of ranks.
    """

    def __init__(
        self, seed: int, step: int, num_clips: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._rng = np.random.default_rng((seed, step, APART))
        self._num_all = num_clips * world_size
        self._own = slice(rank * num_clips, (rank + 1) * num_clips)

    def uniform(self, *shape: int) -> Rows:
        """Numbers from [0, 1), (num_clips, *shape)."""
        return self._rng.random((self._num_all, *shape))[self._own]

    def normal(self, *shape: int) -> Rows:
        """Numbers from the standard normal distribution, (num_clips, *shape)."""
        return self._rng.standard_normal((self._num_all, *shape))[self._own]

    def beta(self, alpha: float) -> Rows:
        """Numbers from Beta(alpha, alpha), (num_clips,)."""
        return self._rng.beta(alpha, alpha, self._num_all)[self._own]


def augment(
    x_B1MT: Tensor,
    y_BK: Tensor,
    known_BK: Tensor | None,
    config: TrainConfig,
    lots: Lots,
    num_frames: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cuts, equalises, masks, then mixes a batch as ``config`` says; the default changes nothing.

    Args:
        x_B1MT: log-mel spectrograms, float32.
        y_BK: labels as float32, 0 or 1.
        known_BK: 1.0 where a label is known; None: all are.
        config: equaliser_db, mixup_alpha, num_time_masks, time_mask_frames, num_mel_masks,
            mel_mask_bands.
        lots: source of all randomness.
        num_frames: what the network takes, if that is less than T; None: all.

    Returns:
        New (x, y, known); the arguments are left as they are.
    """
    if num_frames is not None and num_frames < x_B1MT.shape[3]:
        starts_B = places(lots.uniform(), x_B1MT.shape[3] - num_frames)
        x_B1MT = random_chunk(x_B1MT, num_frames, starts_B)
    if config.equaliser_db > 0:
        x_B1MT = equalise(x_B1MT, config.equaliser_db, lots)
    x_B1MT = mask_bands(x_B1MT, 3, config.num_time_masks, config.time_mask_frames, lots)
    x_B1MT = mask_bands(x_B1MT, 2, config.num_mel_masks, config.mel_mask_bands, lots)
    if config.mixup_alpha > 0:
        return mixup(x_B1MT, y_BK, known_BK, lots.beta(config.mixup_alpha))
    return x_B1MT, y_BK, known_BK


def random_chunk(x_B1MT: Tensor, num_frames: int, starts: npt.NDArray[np.int64]) -> Tensor:
    """Cuts ``num_frames`` frames out of each clip.

    Args:
        x_B1MT: spectrograms.
        num_frames: at most T.
        starts: each clip's first frame, 0 to T - num_frames; B or more, of which the first B
            are used.

    Returns:
        (B, 1, M, num_frames).
    """
    num_clips, _, n_mels, _ = x_B1MT.shape
    starts_B = _to_device(starts[:num_clips], x_B1MT.device)
    frames_BT = starts_B[:, None] + torch.arange(num_frames, device=x_B1MT.device)
    return x_B1MT.gather(3, frames_BT[:, None, None, :].expand(-1, 1, n_mels, -1))


def equalise(x_B1MT: Tensor, deviation_db: float, lots: Lots) -> Tensor:
    """Gives each clip a smooth curve over the mel bands, as another room or microphone would.

    The curve is a sum of the first few cosines of a cosine transform, the constant left out
    (a level is not a colour), with normal weights: over clips and bands its standard deviation
    is ``deviation_db``. In the manner of FilterAugment (Nam et al. 2022), without corners.
    """
    num_clips, _, n_mels, _ = x_B1MT.shape
    weights_BW = lots.normal(NUM_COSINES)[:num_clips]
    band_M, cosine_W1 = np.arange(n_mels) + 0.5, np.arange(1, NUM_COSINES + 1)[:, None]
    cosines_WM = np.cos(np.pi * cosine_W1 * band_M / n_mels)
    # The mean square of a cosine is a half.
    scale = deviation_db * NEPERS_PER_DB / math.sqrt(NUM_COSINES / 2)
    curves_BM = _to_device((scale * weights_BW @ cosines_WM).astype(np.float32), x_B1MT.device)
    return x_B1MT + curves_BM[:, None, :, None]


def mask_bands(x_B1MT: Tensor, dim: int, num_masks: int, max_width: int, lots: Lots) -> Tensor:
    """SpecAugment (Park et al. 2019) along one axis: 2 masks mel bands, 3 masks frames.

    Each mask covers 0 to ``max_width`` places, uniformly, anywhere, with the clip's mean:
    zero, the paper's filling, is a loud sound on a log-mel scale that is not centred.
    """
    if num_masks == 0 or max_width == 0:
        return x_B1MT
    num_clips, size = x_B1MT.shape[0], x_B1MT.shape[dim]
    drawn_BN2 = lots.uniform(num_masks, 2)[:num_clips]
    width_BN = places(drawn_BN2[:, :, 0], min(max_width, size))
    start_BN = places(drawn_BN2[:, :, 1], size - width_BN)
    bounds = _to_device(np.stack([start_BN, start_BN + width_BN]), x_B1MT.device)
    place_S = torch.arange(size, device=x_B1MT.device)
    masked_BNS = (place_S >= bounds[0, :, :, None]) & (place_S < bounds[1, :, :, None])
    shape = [num_clips, 1, 1, 1]
    shape[dim] = size
    mean_B111 = x_B1MT.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where(masked_BNS.any(dim=1).view(shape), mean_B111, x_B1MT)


def mixup(
    x_B1MT: Tensor, y_BK: Tensor, known_BK: Tensor | None, weights: Rows
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mixup (Zhang et al. 2018): w x + (1 - w) x of the partner, and so the labels.

    Partners are neighbours, rows 0 and 1, 2 and 3 and so on; an odd last row takes the one
    before it. An epoch's order is random, so that neighbours are as good as drawn; and where
    every rank has an even number of clips, they are the same at any number of ranks.

    Args:
        x_B1MT: spectrograms.
        y_BK: their labels.
        known_BK: 1.0 where one is known; that of a mixture is where both partners' are.
        weights: each clip's own w in [0, 1]; B or more, of which the first B are used.
    """
    num_clips = len(x_B1MT)
    partner_B = torch.arange(num_clips, device=x_B1MT.device) ^ 1
    if num_clips % 2:
        partner_B[-1] = max(0, num_clips - 2)
    weight_B1 = _to_device(weights[:num_clips].astype(np.float32), x_B1MT.device)[:, None]
    x_B1MT = torch.lerp(x_B1MT[partner_B], x_B1MT, weight_B1[:, :, None, None])
    y_BK = torch.lerp(y_BK[partner_B], y_BK, weight_B1)
    return x_B1MT, y_BK, None if known_BK is None else known_BK * known_BK[partner_B]


def places(uniform: Rows, highest: int | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Numbers from [0, 1) as whole numbers 0 to ``highest``, all equally likely."""
    return np.floor(uniform * (highest + 1)).astype(np.int64)


def _to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # copied from elsewhere, it would wait for the GPU's queue
    return tensor.to(device, non_blocking=True)
