"""The cheaper backward pass against torch's own: same values, same gradients."""

import pytest
import torch
from torch.nn import functional

from mstag.config import ModelConfig
from mstag.models import build_model, cpu_conv


def random(*shape: int, channels_last: bool) -> torch.Tensor:
    x = torch.randn(*shape)
    return x.to(memory_format=torch.channels_last) if channels_last else x


@pytest.fixture(autouse=True)
def no_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_conv, "_has_amx", lambda: False)


def assert_same_gradients(
    ours: torch.Tensor, theirs: torch.Tensor, leaves: list[torch.Tensor]
) -> None:
    assert torch.equal(ours, theirs)
    weights = torch.randn_like(ours)
    for mine, reference in zip(
        torch.autograd.grad((ours * weights).sum(), leaves),
        torch.autograd.grad((theirs * weights).sum(), leaves),
        strict=True,
    ):
        scale = float(reference.abs().max())
        torch.testing.assert_close(mine, reference, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("kernel", [(3, 3), (3, 5), (1, 7)])
def test_conv(kernel: tuple[int, int], channels_last: bool) -> None:
    torch.manual_seed(0)
    x = random(3, 4, 9, 14, channels_last=channels_last).requires_grad_()
    weight = random(6, 4, *kernel, channels_last=channels_last).requires_grad_()
    bias = torch.randn(6, requires_grad=True)
    theirs = functional.conv2d(x, weight, bias, padding=(kernel[0] // 2, kernel[1] // 2))
    assert_same_gradients(cpu_conv.conv_pool(x, weight, bias, None), theirs, [x, weight, bias])


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("kernel", "pool"), [((3, 5), (2, 4)), ((1, 7), (4, 2)), ((3, 3), (2, 2))])
@pytest.mark.parametrize(("num_in", "num_threads"), [(7, 2), (7, 5), (1, 2), (2, 1), (20, 1)])
def test_conv_and_pool(
    kernel: tuple[int, int],
    pool: tuple[int, int],
    num_in: int,
    num_threads: int,
    channels_last: bool,
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        torch.manual_seed(0)
        # 9 x 23 cells: pooling drops some, and none is a whole number of blocks.
        x = random(3, num_in, 9, 23, channels_last=channels_last).requires_grad_()
        weight = random(6, num_in, *kernel, channels_last=channels_last).requires_grad_()
        bias = torch.randn(6, requires_grad=True)
        full = functional.conv2d(x, weight, bias, padding=(kernel[0] // 2, kernel[1] // 2))
        theirs = functional.relu(functional.max_pool2d(full, pool))
        ours = functional.relu(cpu_conv.conv_pool(x, weight, bias, pool))
        assert_same_gradients(ours, theirs, [x, weight, bias])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_gradients_are_no_farther_from_the_truth(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = random(3, 20, 9, 23, channels_last=True).to(dtype).requires_grad_()
    weight = random(6, 20, 3, 5, channels_last=True).requires_grad_()
    bias = torch.randn(6, requires_grad=True)
    leaves = [x, weight, bias]

    def plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return functional.max_pool2d(functional.conv2d(x, weight, bias, padding=(1, 2)), (2, 4))

    with torch.autocast("cpu", torch.bfloat16):
        assert cpu_conv.pays_off(x, weight, (2, 4))
        ours, theirs = cpu_conv.conv_pool(x, weight, bias, (2, 4)), plain(x, weight, bias)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, theirs)
    weights = torch.randn_like(ours)
    mine = torch.autograd.grad(ours, leaves, weights)
    torchs = torch.autograd.grad(theirs, leaves, weights)
    # The same winners: those of the rounded values, from which the gradient is taken exactly.
    rounded = [leaf.detach().bfloat16().double().requires_grad_() for leaf in leaves]
    full = functional.conv2d(*rounded, padding=(1, 2))
    _, winner = functional.max_pool2d(
        functional.conv2d(*(leaf.detach().bfloat16() for leaf in leaves), padding=(1, 2)),
        (2, 4),
        return_indices=True,
    )
    won = full.flatten(2).gather(2, winner.flatten(2)).view_as(winner)
    exact = torch.autograd.grad(won, rounded, weights.double())
    for own, other, truth, leaf in zip(mine, torchs, exact, leaves, strict=True):
        assert own.dtype == leaf.dtype
        error, bound = (own.double() - truth).abs().max(), (other.double() - truth).abs().max()
        assert error <= bound


def gradients(
    monkeypatch: pytest.MonkeyPatch, fast: bool, *, autocast: bool = False
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = build_model(ModelConfig(hidden_units=20), 32, 128, 5).train()
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(4, 1, 32, 128).to(memory_format=torch.channels_last)
    calls = []
    if not fast:
        monkeypatch.setattr(cpu_conv, "pays_off", lambda *_: False)
    conv_pool = cpu_conv.conv_pool
    monkeypatch.setattr(cpu_conv, "conv_pool", lambda *args: calls.append(args) or conv_pool(*args))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(x).float().square().sum()
    torch.autograd.backward(loss)
    assert len(calls) == ((1 if autocast else 8) if fast else 0)
    monkeypatch.undo()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_whole_network_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = gradients(monkeypatch, True), gradients(monkeypatch, False)
    assert ours.keys() == theirs.keys()
    for name, reference in theirs.items():
        scale = float(reference.abs().max())
        torch.testing.assert_close(ours[name], reference, rtol=0, atol=1e-5 * scale, msg=name)


def test_whole_network_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = gradients(monkeypatch, True, autocast=True)
    theirs = gradients(monkeypatch, False, autocast=True)
    for name, reference in theirs.items():
        scale = float(reference.abs().max())
        torch.testing.assert_close(ours[name], reference, rtol=0, atol=0.03 * scale, msg=name)


def test_only_training_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3, requires_grad=True)
    hidden = x.clone().requires_grad_()
    assert cpu_conv.pays_off(x, weight, None)
    assert not cpu_conv.pays_off(x.double(), weight, None)
    assert not cpu_conv.pays_off(x, weight.detach(), None), "frozen, and nothing to hand down"
    assert cpu_conv.pays_off(hidden, weight.detach(), None)
    with torch.no_grad():
        assert not cpu_conv.pays_off(x, weight, (2, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert cpu_conv.pays_off(hidden, weight, (2, 4))
        for other, pool in ((x, (2, 4)), (hidden, (2, 2)), (hidden, None)):
            assert not cpu_conv.pays_off(other, weight, pool)
        monkeypatch.setattr(cpu_conv, "_has_amx", lambda: True)
        assert not cpu_conv.pays_off(hidden, weight, (2, 4))
    with torch.autocast("cpu", torch.float16):
        assert not cpu_conv.pays_off(hidden, weight, (2, 4))


def test_trains_under_bfloat16_autocast() -> None:
    model = build_model(ModelConfig(hidden_units=8), 16, 64, 3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 1, 16, 64)).float().square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
