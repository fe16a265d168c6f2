"""The average of the weights against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mstag.training.ema import Ema, averaged_tensors


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def move(one: nn.Module, step: int) -> None:
    """A step of training, of which only that it moves weights and statistics matters."""
    generator = torch.Generator().manual_seed(step)
    one(torch.randn(5, 6, generator=generator)).square().mean().backward()
    with torch.no_grad():
        for weights in one.parameters():
            assert weights.grad is not None
            weights -= 0.1 * weights.grad
            weights.grad = None


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_torchs(decay: float) -> None:
    trained = model()
    ours = Ema(trained, decay)
    ours.num_updates.fill_(1e9)  # the warm-up, which torch has not, is over
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    torchs = AveragedModel(trained, multi_avg_fn=average, use_buffers=True)
    torchs.update_parameters(trained)  # its first update copies
    for step in range(30):
        move(trained, step)
        ours.update(trained, torch.tensor(True))
        torchs.update_parameters(trained)
    theirs = torchs.module.state_dict()
    for name, own in ours.model.state_dict().items():
        if own.is_floating_point():  # not the number of batches seen
            torch.testing.assert_close(own, theirs[name], rtol=1e-5, atol=1e-7, msg=name)


def test_the_warm_up_follows_its_formula() -> None:
    trained = nn.Linear(1, 1, bias=False)
    ours = Ema(trained, 0.4)
    expected = trained.weight.item()
    for n in range(12):
        with torch.no_grad():
            trained.weight.fill_(n)
        ours.update(trained, torch.tensor(True))
        decay = min(0.4, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
        assert ours.model.weight.item() == pytest.approx(expected, rel=1e-5)


def test_a_step_that_does_not_count_moves_nothing() -> None:
    trained = model()
    ours = Ema(trained, 0.9)
    move(trained, 0)
    ours.update(trained, torch.tensor(True))
    before = copy.deepcopy(ours.state_dict())
    move(trained, 1)
    ours.update(trained, torch.tensor(False))
    assert torch.equal(before["num_updates"], ours.num_updates)
    for name, tensor in before["model"].items():
        assert torch.equal(tensor, ours.model.state_dict()[name]), name


def test_the_average_goes_on_from_its_state() -> None:
    trained = model()
    first = Ema(trained, 0.9)
    for step in range(3):
        move(trained, step)
        first.update(trained, torch.tensor(True))
    second = Ema(model(), 0.9)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    move(trained, 3)
    for ours in (first, second):
        ours.update(trained, torch.tensor(True))
    for own, other in zip(
        averaged_tensors(first.model), averaged_tensors(second.model), strict=True
    ):
        assert torch.equal(own, other)
    assert second.distance(trained) == first.distance(trained) > 0


def test_the_copy_is_apart_from_the_model() -> None:
    trained = model()
    ours = Ema(trained, 0.9)
    assert trained.training and not ours.model.training
    assert not any(weights.requires_grad for weights in ours.model.parameters())
    assert all(weights.requires_grad for weights in trained.parameters())
    own = {tensor.data_ptr() for tensor in averaged_tensors(ours.model)}
    assert not own & {tensor.data_ptr() for tensor in averaged_tensors(trained)}
