"""SpecAugment and mixup, on the training device, drawn for each clip on its own.

The few random numbers are drawn on the CPU by a generator that the caller keys on
(seed, step, rank), so a resumed run draws the same, and so do a CPU and a GPU.

Shape suffixes: B clips, 1 channel, M mel bands, T frames, K tags, N masks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mstag.config import TrainConfig


def augment(
    x_B1MT: Tensor,
    y_BK: Tensor,
    known_BK: Tensor | None,
    config: TrainConfig,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Masks, then mixes, a batch as ``config`` says; the default config changes nothing.

    Args:
        x_B1MT: log-mel spectrograms, float32.
        y_BK: labels as float32, 0 or 1.
        known_BK: 1.0 where a label is known; None: all are.
        config: mixup_alpha, num_time_masks, time_mask_frames, num_mel_masks, mel_mask_bands.
        rng: source of all randomness.

    Returns:
        New (x, y, known); the arguments are left as they are.
    """
    x_B1MT = mask_bands(x_B1MT, 3, config.num_time_masks, config.time_mask_frames, rng)
    x_B1MT = mask_bands(x_B1MT, 2, config.num_mel_masks, config.mel_mask_bands, rng)
    if config.mixup_alpha > 0:
        return mixup(x_B1MT, y_BK, known_BK, config.mixup_alpha, rng)
    return x_B1MT, y_BK, known_BK


def mask_bands(
    x_B1MT: Tensor, dim: int, num_masks: int, max_width: int, rng: np.random.Generator
) -> Tensor:
    """SpecAugment (Park et al. 2019) along one axis: 2 masks mel bands, 3 masks frames.

    Each mask covers 0 to ``max_width`` places, uniformly, anywhere, with the clip's mean:
    zero, the paper's filling, is a loud sound on a log-mel scale that is not centred.
    """
    if num_masks == 0 or max_width == 0:
        return x_B1MT
    num_clips, size = x_B1MT.shape[0], x_B1MT.shape[dim]
    width_BN = rng.integers(0, min(max_width, size), (num_clips, num_masks), endpoint=True)
    start_BN = rng.integers(0, size - width_BN, endpoint=True)
    bounds = _to_device(np.stack([start_BN, start_BN + width_BN]), x_B1MT.device)
    place = torch.arange(size, device=x_B1MT.device)
    masked_BNS = (place >= bounds[0, :, :, None]) & (place < bounds[1, :, :, None])
    shape = [num_clips, 1, 1, 1]
    shape[dim] = size
    mean_B111 = x_B1MT.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where(masked_BNS.any(dim=1).view(shape), mean_B111, x_B1MT)


def mixup(
    x_B1MT: Tensor,
    y_BK: Tensor,
    known_BK: Tensor | None,
    alpha: float,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mixup (Zhang et al. 2018): each clip with a partner, weights from Beta(alpha, alpha).

    A label of the mixture is known where both partners' are.
    """
    num_clips = len(x_B1MT)
    weight = rng.beta(alpha, alpha, num_clips).astype(np.float32)
    partner = _to_device(rng.permutation(num_clips), x_B1MT.device)
    weight_B1 = _to_device(weight, x_B1MT.device)[:, None]
    x_B1MT = torch.lerp(x_B1MT[partner], x_B1MT, weight_B1[:, :, None, None])
    y_BK = torch.lerp(y_BK[partner], y_BK, weight_B1)
    return x_B1MT, y_BK, None if known_BK is None else known_BK * known_BK[partner]


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        # A copy from pageable memory would wait for the GPU's queue of work.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
