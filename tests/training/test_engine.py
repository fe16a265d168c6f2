"""The training step: learning rates, loss, optimiser, precision, state."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from mstag.config import TrainConfig
from mstag.runtime import Ranks
from mstag.training.engine import (
    Engine,
    check_batch_size,
    learning_rate_at,
    make_optimizer,
    masked_loss,
)

CPU = torch.device("cpu")


def tiny_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.BatchNorm1d(4 * 6 * 8),
        nn.Dropout(0.5),
        nn.Linear(4 * 6 * 8, 5),
    )


def tiny_batch(seed: int = 0, *, partial: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    batch = {
        "mel": torch.randn(6, 1, 8, 10, generator=generator).half(),
        "tags": (torch.rand(6, 5, generator=generator) < 0.4).byte(),
        "id": [str(i) for i in range(6)],
    }
    if partial:
        batch["mask"] = (torch.rand(6, 5, generator=generator) < 0.5).byte()
    return batch


def engine(config: TrainConfig, precision: str = "fp32") -> Engine:
    return Engine(tiny_model(), config, device=CPU, precision=precision, ranks=Ranks())


def test_warm_up_then_constant() -> None:
    config = TrainConfig(learning_rate=0.1, warmup_steps=4)
    rates = [learning_rate_at(step, 100, config) for step in (0, 1, 3, 4, 99)]
    assert rates == pytest.approx([0.025, 0.05, 0.1, 0.1, 0.1])


def test_cosine_falls_from_the_peak_to_zero() -> None:
    config = TrainConfig(learning_rate=0.2, warmup_steps=10, schedule="cosine")
    rates = [learning_rate_at(step, 110, config) for step in (10, 60, 109, 110)]
    assert rates == pytest.approx([0.2, 0.1, 0.2 * 0.5 * (1 + math.cos(math.pi * 0.99)), 0.0])
    all_rates = [learning_rate_at(step, 110, config) for step in range(10, 111)]
    assert all_rates == sorted(all_rates, reverse=True)


@pytest.mark.parametrize(("name", "cls"), [("adam", "Adam"), ("adamw", "AdamW")])
def test_optimizers(name: str, cls: str) -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), TrainConfig(optimizer=name, weight_decay=0.3))
    assert type(optimizer).__name__ == cls
    assert optimizer.defaults["weight_decay"] == 0.3


@pytest.mark.parametrize(("batch_size", "ranks"), [(20, 3), (4, 4), (1, 1)])
def test_batches_that_ranks_cannot_share_are_refused(batch_size: int, ranks: int) -> None:
    with pytest.raises(
        ValueError, match=r"train\.batch_size = .*--set train\.batch_size="
    ) as error:
        check_batch_size(batch_size, ranks)
    remedy = int(str(error.value).split("--set train.batch_size=")[1].split()[0])
    check_batch_size(remedy, ranks)


def test_unknown_labels_do_not_count_in_the_loss() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]], requires_grad=True)
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    known = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    loss = masked_loss(logits, y, known, Ranks())
    by_hand = [math.log1p(math.exp(-2)), math.log1p(math.exp(0.5)), math.log1p(math.exp(-3))]
    assert loss.item() == pytest.approx(sum(by_hand) / 3, rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    assert masked_loss(logits, y, torch.zeros(2, 2), Ranks()).item() == 0
    assert masked_loss(logits, y, None, Ranks()).item() == pytest.approx(
        (sum(by_hand) + math.log1p(math.exp(-1))) / 4, rel=1e-6
    )


def test_a_step_is_adams_own() -> None:
    """Against the plain recipe: forward, BCE, backward, Adam; no dropout to keep it simple."""
    config = TrainConfig(learning_rate=1e-3, channels_last=False)
    ours = engine(config)
    ours.model[4].p = 0.0
    plain = copy.deepcopy(ours.model)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3, weight_decay=1e-4)
    losses = []
    for step in range(3):
        batch = tiny_batch(step)
        ours.step(batch, step, 1e-3)
        loss = nn.functional.binary_cross_entropy_with_logits(
            plain(batch["mel"].float()), batch["tags"].float()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for own, other in zip(ours.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-7)
    assert ours.read_means()[0] == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_the_norm_is_logged_before_clipping_and_clipping_clips() -> None:
    free, clipped = engine(TrainConfig()), engine(TrainConfig(grad_clip=0.01))
    for one in (free, clipped):
        one.step(tiny_batch(), 0, 1e-3)
    assert free.read_means() == pytest.approx(clipped.read_means())
    squares = [w.grad.square().sum() for w in clipped.model.parameters() if w.grad is not None]
    assert torch.stack(squares).sum().sqrt().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("partial", [False, True])
def test_a_few_steps_learn(precision: str, partial: bool) -> None:
    ours = engine(TrainConfig(), precision)
    batch = tiny_batch(partial=partial)
    losses = []
    for step in range(40):
        ours.step(batch, step, 3e-3)
        losses.append(ours.read_means()[0])
    assert losses[-1] < 0.7 * losses[0]
    assert all(weights.dtype == torch.float32 for weights in ours.model.parameters())


def test_state_goes_on_bit_by_bit() -> None:
    config = TrainConfig(num_time_masks=1, time_mask_frames=3, mixup_alpha=0.5)
    straight, first, second = engine(config), engine(config), engine(config)
    for step in range(6):
        straight.step(tiny_batch(step), step, 1e-3)
    for step in range(3):
        first.step(tiny_batch(step), step, 1e-3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    torch.manual_seed(999)  # what else draws numbers must not matter
    for step in range(3, 6):
        second.step(tiny_batch(step), step, 1e-3)
    for name, weights in straight.model.state_dict().items():
        assert torch.equal(weights, second.model.state_dict()[name]), name
    assert straight.read_means() == second.read_means()


def test_a_diverged_loss_ends_the_training() -> None:
    ours = engine(TrainConfig())
    with torch.no_grad():
        ours.model[5].bias.fill_(math.nan)
    ours.step(tiny_batch(), 0, 1e-3)
    with pytest.raises(ValueError, match=r"diverged.*learning_rate"):
        ours.read_means()
