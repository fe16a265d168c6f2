"""Chunks, SpecAugment and mixup: bounds, independence of clips and of ranks, repeatability."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mstag.config import TrainConfig
from mstag.training.augment import (
    Lots,
    augment,
    equalise,
    mask_bands,
    mixup,
    places,
    random_chunk,
)

EVERYTHING = TrainConfig(
    equaliser_db=3.0,
    num_time_masks=2,
    time_mask_frames=9,
    num_mel_masks=1,
    mel_mask_bands=5,
    mixup_alpha=0.3,
)


def batch(num_clips: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_clips, 1, 16, 40, generator=generator)
    return x, (torch.rand(num_clips, 5, generator=generator) < 0.5).float()


def test_the_default_config_changes_nothing() -> None:
    x, y = batch()
    new_x, new_y, known = augment(x, y, None, TrainConfig(), Lots(0, 0, 6))
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
    masked = mask_bands(x, dim, num_masks, max_width, Lots(seed, 0, 6))
    assert torch.equal(x, kept), "the argument must stay as it is"
    changed = masked != x
    across = changed.any(dim=5 - dim).squeeze(1)  # (B, places along dim)
    assert torch.equal(changed.all(dim=5 - dim).squeeze(1), across), "whole bands or nothing"
    assert across.sum(dim=1).max() <= num_masks * max_width
    mean = x.mean(dim=(1, 2, 3), keepdim=True).expand_as(x)
    assert torch.equal(masked[changed], mean[changed])


def test_an_equaliser_is_a_smooth_curve_over_the_bands_alone() -> None:
    x = torch.randn(2000, 1, 96, 2)
    curves = (equalise(x, 6.0, Lots(0, 0, 2000)) - x).squeeze(1)
    assert torch.allclose(curves[..., 0], curves[..., 1], atol=1e-5), "the same in every frame"
    curves_db = curves[..., 0] * 10 / np.log(10)
    assert curves_db.mean(dim=1).abs().max() < 1e-4, "no louder, no softer"
    assert curves_db.square().mean().sqrt() == pytest.approx(6.0, rel=0.03)
    assert curves_db.diff(dim=1).square().mean().sqrt() < 1.0, "5 half waves over 96 bands"
    assert len({tuple(curve) for curve in curves_db.tolist()}) == 2000, "each clip its own"


def test_each_clip_has_masks_of_its_own() -> None:
    x = torch.randn(64, 1, 16, 40)
    masked = mask_bands(x, 3, 1, 20, Lots(0, 0, 64))
    patterns = {tuple(row) for row in (masked != x).any(dim=2).squeeze(1).tolist()}
    assert len(patterns) > 40
    widths = (masked != x).any(dim=2).sum(dim=(1, 2))
    assert widths.max() == 20, "the widest mask is drawn as well"


@pytest.mark.parametrize("num_clips", [1, 2, 5, 6])
def test_mixup_is_a_line_between_neighbours(num_clips: int) -> None:
    x, y = batch(num_clips)
    known = (torch.arange(5 * num_clips).reshape(num_clips, 5) % 3 > 0).float()
    weights = Lots(3, 0, num_clips).beta(0.4)
    assert len(set(weights)) == num_clips, "each clip has its own"
    new_x, new_y, new_known = mixup(x, y, known, weights)
    partners = {1: [0], 2: [1, 0], 5: [1, 0, 3, 2, 3], 6: [1, 0, 3, 2, 5, 4]}[num_clips]
    for i, (w, j) in enumerate(zip(weights, partners, strict=True)):
        torch.testing.assert_close(new_x[i], (w * x[i] + (1 - w) * x[j]).float())
        torch.testing.assert_close(new_y[i], (w * y[i] + (1 - w) * y[j]).float())
        assert new_known is not None
        assert torch.equal(new_known[i], known[i] * known[j])


def test_mixup_weights_are_distributed_as_said() -> None:
    weights = Lots(0, 0, 20_000).beta(0.4)
    assert weights.mean() == pytest.approx(0.5, abs=0.01)
    assert weights.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.03)  # Beta(a, a)'s


@given(num_clips=st.integers(1, 6), num_frames=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_chunk_is_a_stretch_of_its_clip(num_clips: int, num_frames: int, seed: int) -> None:
    x, _ = batch(num_clips)
    starts = places(Lots(seed, 0, 6).uniform(), 40 - num_frames)
    chunk = random_chunk(x, num_frames, starts)
    assert chunk.shape == (num_clips, 1, 16, num_frames)
    for i, start in enumerate(starts[:num_clips]):
        assert torch.equal(chunk[i], x[i, :, :, start : start + num_frames])


def test_chunks_start_anywhere_and_each_on_its_own() -> None:
    x = torch.arange(10.0).expand(400, 1, 2, 10)
    y = torch.zeros(400, 3)
    chunk, _, _ = augment(x, y, None, TrainConfig(), Lots(0, 0, 400), num_frames=4)
    numbers, counts = np.unique(chunk[:, 0, 0, 0].numpy(), return_counts=True)
    assert numbers.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert counts.min() > 30
    whole, _, _ = augment(x, y, None, TrainConfig(), Lots(0, 0, 400), num_frames=10)
    assert whole is x


def test_places_are_equally_likely_up_to_the_highest() -> None:
    drawn = places(Lots(0, 0, 4000).uniform(), 3)
    assert np.bincount(drawn).tolist() == pytest.approx([1000] * 4, rel=0.15)
    assert places(np.array([0.0, np.nextafter(1, 0)]), 628).tolist() == [0, 628]


def test_the_same_key_draws_the_same() -> None:
    x, y = batch()
    first = augment(x, y, None, EVERYTHING, Lots(0, 5, 6))
    again = augment(x, y, None, EVERYTHING, Lots(0, 5, 6))
    other = augment(x, y, None, EVERYTHING, Lots(0, 6, 6))
    another = augment(x, y, None, EVERYTHING, Lots(1, 5, 6))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], another[0])


@given(world_size=st.sampled_from([1, 2, 3, 6]), step=st.integers(0, 50))
def test_the_number_of_ranks_changes_nothing(world_size: int, step: int) -> None:
    x, y = batch(12)
    known = (torch.arange(60).reshape(12, 5) % 4 > 0).float()
    whole = augment(x, y, known, EVERYTHING, Lots(0, step, 12), num_frames=30)
    share = 12 // world_size
    parts = []
    for rank in range(world_size):
        own = slice(rank * share, (rank + 1) * share)
        lots = Lots(0, step, share, rank, world_size)
        parts.append(augment(x[own], y[own], known[own], EVERYTHING, lots, num_frames=30))
    for number, expected in enumerate(whole):
        assert expected is not None
        assert torch.equal(torch.cat([part[number] for part in parts]), expected)  # type: ignore[misc]


def test_a_part_that_has_lost_clips_takes_the_first_rows() -> None:
    x, y = batch(6)
    whole = augment(x, y, None, EVERYTHING, Lots(0, 0, 6, 1, 2))
    fewer = augment(x[:4], y[:4], None, EVERYTHING, Lots(0, 0, 6, 1, 2))
    assert torch.equal(fewer[0], whole[0][:4])
