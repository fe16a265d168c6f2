"""The cheaper backward pass against torch's own: same values, same gradients."""

import pytest
import torch
from torch.nn import functional

from mstag.config import ModelConfig
from mstag.models import build_model, cpu_conv


def random(*shape: int, channels_last: bool) -> torch.Tensor:
    x = torch.randn(*shape)
    return x.to(memory_format=torch.channels_last) if channels_last else x


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
    assert_same_gradients(cpu_conv.conv(x, weight, bias), theirs, [x, weight, bias])


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


def gradients(monkeypatch: pytest.MonkeyPatch, fast: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = build_model(ModelConfig(hidden_units=20), 32, 128, 5).train()
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(4, 1, 32, 128).to(memory_format=torch.channels_last)
    calls = []
    if not fast:
        monkeypatch.setattr(cpu_conv, "pays_off", lambda *_: False)
    conv_pool = cpu_conv.conv_pool
    monkeypatch.setattr(cpu_conv, "conv_pool", lambda *args: calls.append(args) or conv_pool(*args))
    model(x).square().sum().backward()
    assert len(calls) == (7 if fast else 0)
    monkeypatch.undo()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_whole_network_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = gradients(monkeypatch, True), gradients(monkeypatch, False)
    assert ours.keys() == theirs.keys()
    for name, reference in theirs.items():
        scale = float(reference.abs().max())
        torch.testing.assert_close(ours[name], reference, rtol=0, atol=1e-5 * scale, msg=name)


def test_only_float32_training_on_a_cpu() -> None:
    x, weight = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3, requires_grad=True)
    assert cpu_conv.pays_off(x, weight)
    assert not cpu_conv.pays_off(x.double(), weight)
    assert not cpu_conv.pays_off(x, weight.detach()), "frozen, and nothing to hand down"
    assert cpu_conv.pays_off(x.clone().requires_grad_(), weight.detach())
    with torch.no_grad():
        assert not cpu_conv.pays_off(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not cpu_conv.pays_off(x, weight)


def test_trains_under_bfloat16_autocast() -> None:
    model = build_model(ModelConfig(hidden_units=8), 16, 64, 3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 1, 16, 64)).float().square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
