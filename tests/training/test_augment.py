"""SpecAugment and mixup: bounds, independence of clips, repeatability."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mstag.config import TrainConfig
from mstag.training.augment import augment, mask_bands, mixup


def batch(num_clips: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_clips, 1, 16, 40, generator=generator)
    return x, (torch.rand(num_clips, 5, generator=generator) < 0.5).float()


def test_the_default_config_changes_nothing() -> None:
    x, y = batch()
    new_x, new_y, known = augment(x, y, None, TrainConfig(), np.random.default_rng(0))
    assert new_x is x
    assert new_y is y
    assert known is None


@given(
    seed=st.integers(0, 2**32),
    dim=st.sampled_from([2, 3]),
    num_masks=st.integers(0, 4),
    max_width=st.integers(0, 60),
)
def test_masks_are_bands_of_the_mean(seed: int, dim: int, num_masks: int, max_width: int) -> None:
    x, _ = batch()
    kept = x.clone()
    masked = mask_bands(x, dim, num_masks, max_width, np.random.default_rng(seed))
    assert torch.equal(x, kept), "the argument must stay as it is"
    changed = masked != x
    across = changed.any(dim=5 - dim).squeeze(1)  # (B, places along dim)
    assert torch.equal(changed.all(dim=5 - dim).squeeze(1), across), "whole bands or nothing"
    assert across.sum(dim=1).max() <= num_masks * max_width
    mean = x.mean(dim=(1, 2, 3), keepdim=True).expand_as(x)
    assert torch.equal(masked[changed], mean[changed])


def test_each_clip_has_masks_of_its_own() -> None:
    x = torch.randn(64, 1, 16, 40)
    masked = mask_bands(x, 3, 1, 20, np.random.default_rng(0))
    patterns = {tuple(row) for row in (masked != x).any(dim=2).squeeze(1).tolist()}
    assert len(patterns) > 40
    widths = (masked != x).any(dim=2).sum(dim=(1, 2))
    assert widths.max() == 20, "the widest mask is drawn as well"


def test_mixup_is_a_line_between_two_clips() -> None:
    x, y = batch()
    known = (torch.arange(30).reshape(6, 5) % 3 > 0).float()
    rng = np.random.default_rng(3)
    weight, partner = rng.beta(0.4, 0.4, 6), rng.permutation(6)
    new_x, new_y, new_known = mixup(x, y, known, 0.4, np.random.default_rng(3))
    for i in range(6):
        w, j = weight[i], partner[i]
        torch.testing.assert_close(new_x[i], (w * x[i] + (1 - w) * x[j]).float())
        torch.testing.assert_close(new_y[i], (w * y[i] + (1 - w) * y[j]).float())
        assert new_known is not None
        assert torch.equal(new_known[i], known[i] * known[j])


def test_the_same_key_draws_the_same() -> None:
    x, y = batch()
    config = TrainConfig(num_time_masks=2, num_mel_masks=2, mixup_alpha=0.3)
    first = augment(x, y, None, config, np.random.default_rng((0, 5, 0)))
    again = augment(x, y, None, config, np.random.default_rng((0, 5, 0)))
    other = augment(x, y, None, config, np.random.default_rng((0, 6, 0)))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
