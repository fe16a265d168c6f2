"""The loss against its formula, and the parts of a batch against the whole."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mstag.runtime import Ranks
from mstag.training.loss import masked_loss, mean_num_known, positive_weights, summed_loss


def by_hand(logit: float, y: float, smoothing: float = 0.0, weight: float = 1.0) -> float:
    y = y * (1 - smoothing) + smoothing / 2
    yes, no = -math.log(1 / (1 + math.exp(-logit))), -math.log(1 / (1 + math.exp(logit)))
    return weight * y * yes + (1 - y) * no


def test_unknown_labels_do_not_count_in_the_loss() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]], requires_grad=True)
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    known = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    loss = masked_loss(logits, y, known, Ranks())
    one_by_one = [math.log1p(math.exp(-2)), math.log1p(math.exp(0.5)), math.log1p(math.exp(-3))]
    assert loss.item() == pytest.approx(sum(one_by_one) / 3, rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    assert masked_loss(logits, y, torch.zeros(2, 2), Ranks()).item() == 0
    assert masked_loss(logits, y, None, Ranks()).item() == pytest.approx(
        (sum(one_by_one) + math.log1p(math.exp(-1))) / 4, rel=1e-6
    )


@given(
    smoothing=st.floats(0, 0.5),
    weights=st.lists(st.floats(0.1, 100), min_size=3, max_size=3),
    partial=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_loss_is_its_formula(
    smoothing: float, weights: list[float], partial: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(4, 3, generator=generator)
    y = torch.rand(4, 3, generator=generator)  # mixtures, too
    known = (torch.rand(4, 3, generator=generator) < 0.6).float() if partial else None
    loss = masked_loss(
        logits,
        y,
        known,
        Ranks(),
        label_smoothing=smoothing,
        positive_weights=torch.tensor(weights),
    )
    cells = [(i, k) for i in range(4) for k in range(3) if known is None or known[i, k]]
    total = sum(
        by_hand(float(logits[i, k]), float(y[i, k]), smoothing, weights[k]) for i, k in cells
    )
    assert loss.item() == pytest.approx(total / max(1, len(cells)), rel=1e-4, abs=1e-6)


def test_pieces_add_up_to_the_whole() -> None:
    logits, y = torch.linspace(-3, 3, 12).reshape(4, 3), torch.arange(12).reshape(4, 3) % 2.0
    known = torch.tensor([[1.0, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]])
    for mask in (None, known):
        number = mean_num_known(y, mask, Ranks())
        pieces = [
            summed_loss(logits[rows], y[rows], None if mask is None else mask[rows]) / number
            for rows in (slice(0, 1), slice(1, 4))
        ]
        whole = masked_loss(logits, y, mask, Ranks())
        assert float(sum(pieces)) == pytest.approx(float(whole), rel=1e-6)


def test_positive_weights_are_the_ratio_to_a_power() -> None:
    assert positive_weights([1, 2], 4, 0.0) is None
    full = positive_weights([50, 10, 1, 0, 100], 100, 1.0)
    assert full is not None
    assert full.dtype == torch.float32
    assert full.tolist() == pytest.approx([1.0, 9.0, 99.0, 100.0, 0.01])
    root = positive_weights([50, 10, 1], 100, 0.5)
    assert root is not None
    assert root.tolist() == pytest.approx([1.0, 3.0, math.sqrt(99)])
    rare = positive_weights([1], 100_000, 1.0)
    assert rare is not None
    assert rare.tolist() == [100.0]
    partial = positive_weights([5, 5], [10, 55], 1.0)
    assert partial is not None
    assert partial.tolist() == [1.0, 10.0]
