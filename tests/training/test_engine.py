"""The training step: learning rates, loss, optimiser, precision, state."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import engine_on_ranks
import pytest
import tiny_run
import torch
from shared_data import REPOSITORY
from torch import nn

from mstag.config import ModelConfig, TrainConfig
from mstag.models import build_model
from mstag.runtime import Ranks
from mstag.training import engine as engine_room
from mstag.training.engine import Engine, check_batch_size, check_enough_left
from mstag.training.loss import masked_loss
from mstag.training.network import check_compiler, flatten_buffers
from mstag.training.schedule import learning_rate_at, make_optimizer

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


def plain_model() -> nn.Module:
    """Without BatchNorm and dropout: each clip's gradient is its own affair."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 8, 5))


def engine(
    config: TrainConfig,
    precision: str = "fp32",
    *,
    model: nn.Module | None = None,
    positive_weights: torch.Tensor | None = None,
) -> Engine:
    return Engine(
        model or tiny_model(),
        config,
        device=CPU,
        precision=precision,
        ranks=Ranks(),
        positive_weights=positive_weights,
    )


def state_of(ours: Engine) -> dict[str, Any]:
    """Everything that a bad step must leave alone, as a copy."""
    state = ours.state_dict()
    return copy.deepcopy({key: state[key] for key in ("model", "ema", "optimizer", "scaler")})


def assert_equal(one: Any, other: Any, name: str = "state") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), name
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one:
            assert_equal(one[key], other[key], f"{name}.{key}")
    else:
        assert one == other, name


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


@pytest.mark.parametrize(
    ("batch_size", "ranks", "pieces"),
    [(20, 3, 1), (4, 4, 1), (1, 1, 1), (20, 1, 3), (20, 2, 4), (8, 2, 4), (2, 1, 2)],
)
def test_batches_that_cannot_be_shared_are_refused(
    batch_size: int, ranks: int, pieces: int
) -> None:
    with pytest.raises(
        ValueError, match=r"train\.batch_size = .*--set train\.batch_size="
    ) as error:
        check_batch_size(batch_size, ranks, pieces)
    assert ("train.accumulate_steps" in str(error.value)) == (pieces > 1)
    remedy = int(str(error.value).split("--set train.batch_size=")[1].split()[0])
    check_batch_size(remedy, ranks, pieces)


def test_too_few_clips_left_for_batchnorm_are_refused() -> None:
    check_enough_left(2)
    check_enough_left(6, 3)
    with pytest.raises(ValueError, match=r"^1 clips are left.*shard-tools verify"):
        check_enough_left(1)
    with pytest.raises(ValueError, match=r"^5 clips are left.*each of 3 pieces"):
        check_enough_left(5, 3)


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
    config = TrainConfig(num_time_masks=1, time_mask_frames=3, mixup_alpha=0.5, ema_decay=0.9)
    straight, first, second = engine(config), engine(config), engine(config)
    for step in range(6):
        straight.step(tiny_batch(step), step, 1e-3)
    for step in range(3):
        first.step(tiny_batch(step), step, 1e-3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    torch.manual_seed(999)  # what else draws numbers must not matter
    for step in range(3, 6):
        second.step(tiny_batch(step), step, 1e-3)
    assert_equal(straight.state_dict(), second.state_dict())
    assert straight.read_means() == second.read_means()


# ---- Steps that are not finite -----------------------------------------------------------------


def poisoned(where: str) -> dict[str, Any]:
    batch = tiny_batch(7)
    batch["mel"][2, 0, 3, 4] = float(where)
    return batch


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("where", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(("pieces", "clip"), [(1, 0.0), (3, 1.0)])
def test_a_step_that_is_not_finite_changes_nothing_and_is_named(
    precision: str, where: str, pieces: int, clip: float, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrainConfig(ema_decay=0.9, accumulate_steps=pieces, grad_clip=clip, batch_size=6)
    ours = engine(config, precision)
    for step in range(3):
        ours.step(tiny_batch(step), step, 1e-3)
    ours.scaler.load_state_dict(ours.scaler.state_dict() | {"scale": 1024.0})
    ours.read_means()
    before = state_of(ours)
    ours.step(poisoned(where), 3, 1e-3)
    after = state_of(ours)
    if precision == "fp16":  # a scaler takes any step that is not finite for an overflow
        assert after["scaler"].pop("scale") == before["scaler"].pop("scale") / 2
        before["scaler"].pop("_growth_tracker"), after["scaler"].pop("_growth_tracker")
    assert_equal(before, after)
    with caplog.at_level("WARNING", "mstag"):
        assert all(math.isnan(mean) for mean in ours.read_means())
    assert "step 4: the loss or its gradient was not finite" in caplog.text
    assert "(1 of train.max_bad_steps = 10)" in caplog.text
    ours.step(tiny_batch(4), 4, 1e-3)
    assert not torch.equal(ours.model[5].weight, before["model"]["5.weight"])
    assert math.isfinite(ours.read_means()[0])


def test_an_infinite_loss_with_a_finite_gradient_is_left_out() -> None:
    """The gradient of the loss is sigmoid - y, which no logit makes infinite."""
    ours = engine(TrainConfig(), model=plain_model())
    batch = tiny_batch()
    with torch.no_grad():
        ours.model[3].bias[0] = 3e38
    loss = masked_loss(ours.model(batch["mel"].float()), batch["tags"].float(), None, Ranks())
    gradients = torch.autograd.grad(loss, list(ours.model.parameters()))
    assert loss.isinf() and all(gradient.isfinite().all() for gradient in gradients)
    before = state_of(ours)
    ours.step(batch, 0, 1e-3)
    assert_equal(before["model"], state_of(ours)["model"])
    assert math.isnan(ours.read_means()[0])


@pytest.mark.parametrize("where", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_real_network_lets_what_is_not_finite_through(where: str, precision: str) -> None:
    """Its convolutions for CPUs are our own, and a maximum might lose a NaN."""
    config = ModelConfig(hidden_units=8)
    ours = engine(TrainConfig(), precision, model=build_model(config, 16, 64, 5))
    batch = {**tiny_batch(), "mel": torch.randn(6, 1, 16, 64).half()}
    ours.step(batch, 0, 1e-3)
    before = state_of(ours)
    batch["mel"][1, 0, 7, 50] = float(where)
    ours.step(batch, 1, 1e-3)
    assert_equal(before, state_of(ours))
    ours.read_means()
    assert ours.state_dict()["bad_steps"] == [1]


def test_bad_steps_do_not_count_in_the_means() -> None:
    with_bad, without = engine(TrainConfig()), engine(TrainConfig())
    for ours in (with_bad, without):
        ours.step(tiny_batch(0), 0, 1e-3)
        if ours is with_bad:
            ours.step(poisoned("nan"), 1, 1e-3)
        ours.step(tiny_batch(2), 2, 1e-3)
    assert with_bad.read_means() == without.read_means()
    assert_equal(state_of(with_bad), state_of(without))


def test_a_run_ends_after_too_many_bad_steps_and_not_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = TrainConfig(max_bad_steps=3)
    ours = engine(config)
    before = state_of(ours)["model"]
    for step in (0, 1):
        ours.step(poisoned("nan"), step, 1e-3)
    ours.read_means()
    ours.step(poisoned("nan"), 2, 1e-3)
    # The count goes on after a resume, with what nobody has read yet.
    resumed = engine(config)
    resumed.load_state_dict(copy.deepcopy(ours.state_dict()))
    caplog.clear()
    resumed.read_means()
    assert "step 3: " in caplog.text and "(3 of train.max_bad_steps = 3)" in caplog.text
    resumed.step(tiny_batch(), 3, 1e-3)
    resumed.read_means()
    resumed.load_state_dict(copy.deepcopy(ours.state_dict()))
    resumed.step(poisoned("inf"), 8, 1e-3)
    with pytest.raises(ValueError, match=r"4 steps.*step 9;.*diverged.*learning_rate.*fp32"):
        resumed.read_means()
    assert_equal(resumed.state_dict()["model"], before)


def test_fp16_looks_for_its_scale_without_bad_steps(caplog: pytest.LogCaptureFixture) -> None:
    ours = engine(TrainConfig(max_bad_steps=0), "fp16")
    ours.scaler.load_state_dict(ours.scaler.state_dict() | {"scale": 2.0**60})
    before = state_of(ours)["model"]
    ours.step(tiny_batch(), 0, 1e-3)
    assert_equal(state_of(ours)["model"], before)
    assert all(math.isnan(mean) for mean in ours.read_means())
    assert not caplog.text
    assert ours.scaler.get_scale() == 2.0**59
    for step in range(1, 60):
        ours.step(tiny_batch(), step, 1e-3)
    assert math.isfinite(ours.read_means()[0])
    assert not torch.equal(ours.model[5].weight, before["5.weight"])


def test_fp16_that_overflows_at_any_scale_is_bad() -> None:
    ours = engine(TrainConfig(max_bad_steps=0), "fp16")
    ours.model[5].weight.register_hook(lambda grad: grad * math.inf)
    for step in range(16):
        ours.step(tiny_batch(), step, 1e-3)
    ours.read_means()
    ours.step(tiny_batch(), 16, 1e-3)
    with pytest.raises(ValueError, match="step 17"):
        ours.read_means()


# ---- Running statistics in one tensor ----------------------------------------------------------


def two_norms() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3),
        nn.BatchNorm2d(3, momentum=None),
        nn.Flatten(),
        nn.Linear(3 * 4 * 6, 5),
    )


def test_flat_buffers_change_nothing_and_survive_loading() -> None:
    model, plain = two_norms(), two_norms()
    flats = flatten_buffers(model)
    # A row of 64 bytes each: 16 numbers, or 8 counters.
    assert sorted((flat.numel(), flat.dtype) for flat in flats) == [
        (2 * 8, torch.int64),
        (2 * 2 * 16, torch.float32),
    ]
    assert all(buffer.data_ptr() % 64 == 0 for buffer in model.buffers())
    x = torch.randn(5, 1, 8, 10)
    for one in (model, plain):
        for _ in range(2):
            one(x).sum().backward()
    assert_equal(dict(model.state_dict()), dict(plain.state_dict()))
    assert torch.equal(model[4].running_mean, plain[4].running_mean)
    model.load_state_dict(two_norms().state_dict())
    assert flats[0].sum() == sum(buffer.sum() for buffer in model.buffers() if buffer.dim())
    for flat in flats:
        flat.zero_()
    assert all(not buffer.any() for buffer in model.buffers())
    assert {id(own) for own in model[1].parameters()} == {
        id(w) for w in list(model.parameters())[2:4]
    }


def test_the_running_statistics_of_every_layer_are_put_back() -> None:
    ours = engine(TrainConfig(), model=two_norms())
    ours.step(tiny_batch(), 0, 1e-3)
    before = state_of(ours)
    ours.step(poisoned("nan"), 1, 1e-3)
    assert_equal(before, state_of(ours))
    assert all(buffer.isfinite().all() for buffer in ours.model.buffers())


# ---- Accumulation ------------------------------------------------------------------------------


@pytest.mark.parametrize("partial", [False, True])
def test_accumulation_equals_the_big_batch(partial: bool) -> None:
    settings: dict[str, Any] = {
        "batch_size": 6,
        "mixup_alpha": 0.4,
        "num_time_masks": 1,
        "time_mask_frames": 4,
        "label_smoothing": 0.1,
        "ema_decay": 0.9,
        "grad_clip": 0.5,
    }
    weights = torch.tensor([1.0, 2, 3, 4, 5])
    one, many = (
        engine(
            TrainConfig(**settings, accumulate_steps=pieces),
            model=plain_model(),
            positive_weights=weights,
        )
        for pieces in (1, 3)
    )
    for step in range(20):
        for ours in (one, many):
            ours.step(tiny_batch(step, partial=partial), step, 1e-3)
    for name in ("model", "ema"):
        for own, other in zip(flat_state(one, name), flat_state(many, name), strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-6)
    assert one.read_means() == pytest.approx(many.read_means(), rel=1e-5)


def flat_state(ours: Engine, name: str) -> list[torch.Tensor]:
    state = ours.state_dict()[name]
    return list((state["model"] if name == "ema" else state).values())


# ---- The average of the weights, and what is logged --------------------------------------------


def test_without_an_average_the_model_itself_is_scored() -> None:
    ours = engine(TrainConfig())
    assert ours.averaged_model() is ours.model
    assert ours.ema_distance() is None
    assert ours.state_dict()["ema"] is None


def test_the_average_is_scored_and_its_distance_logged() -> None:
    ours = engine(TrainConfig(ema_decay=0.99))
    assert ours.ema_distance() == 0
    for step in range(4):
        ours.step(tiny_batch(step), step, 1e-2)
    averaged = ours.averaged_model()
    assert averaged is not ours.model
    assert not any(module.training for module in averaged.modules())
    flat = [
        torch.cat([w.detach().flatten() for w in m.parameters()]) for m in (averaged, ours.model)
    ]
    assert ours.weight_norm() == pytest.approx(float(flat[1].norm()), rel=1e-6)
    distance = float((flat[0] - flat[1]).norm() / flat[1].norm())
    assert ours.ema_distance() == pytest.approx(distance, rel=1e-5)
    assert distance > 0


# ---- Chunks and compilation --------------------------------------------------------------------


def test_a_network_of_short_chunks_is_given_random_ones() -> None:
    seen: list[torch.Tensor] = []

    class Short(nn.Module):
        num_frames = 4

        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(32, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return self.out(x.flatten(1))

    ours = engine(TrainConfig(), model=Short())
    batch = tiny_batch()
    for step in range(12):
        ours.step(batch, step, 1e-3)
    windows = batch["mel"].float().unfold(3, 4, 1)  # (B, 1, M, starts, 4)
    starts = set()
    for chunk in seen:
        for clip in range(6):
            same = (windows[clip] == chunk[clip, :, :, None]).all(dim=(0, 1, 3))
            starts.add((clip, int(same.nonzero())))
    assert {start for _, start in starts} == set(range(7)), "first and last place included"


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"train\.compile.*C\+\+ compiler.*no-such.*=false"):
        engine(TrainConfig(compile=True))
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"no gcc or clang here.*\$CC"):
        check_compiler(torch.device("cuda"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_compiled_network_learns_the_same() -> None:
    plain, compiled = (
        engine(TrainConfig(compile=compile_, ema_decay=0.9), model=two_norms())
        for compile_ in (False, True)
    )
    for step in range(4):
        for ours in (plain, compiled):
            ours.step(poisoned("nan") if step == 2 else tiny_batch(step), step, 1e-3)
    assert compiled.network is not compiled.model
    for name in ("model", "ema"):
        for own, other in zip(flat_state(plain, name), flat_state(compiled, name), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


def test_a_model_that_somebody_left_in_evaluation_mode_is_trained_all_the_same() -> None:
    ours, other = engine(TrainConfig()), engine(TrainConfig())
    ours.step(tiny_batch(), 0, 1e-3)
    other.step(tiny_batch(), 0, 1e-3)
    ours.model.eval()
    ours.step(tiny_batch(1), 1, 1e-3)
    other.step(tiny_batch(1), 1, 1e-3)
    assert_equal(state_of(ours), state_of(other))


class StubOptimizer(torch.optim.SGD):
    """torch's fused ones, which say nothing of themselves, refuse the meta device."""

    def step(self, closure: Any = None) -> None:
        assert self.found_inf.device.type == "meta"  # type: ignore[attr-defined]


@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize("partial", [False, True])
def test_a_step_asks_the_device_for_nothing(
    partial: bool, accumulate_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meta tensors have no values to be asked for, and do not mix with those of the CPU."""
    monkeypatch.setattr(
        engine_room, "make_optimizer", lambda model, _: StubOptimizer(model.parameters())
    )
    config = TrainConfig(
        batch_size=6,
        accumulate_steps=accumulate_steps,
        ema_decay=0.9,
        mixup_alpha=0.4,
        equaliser_db=3.0,
        num_time_masks=1,
        num_mel_masks=1,
        grad_clip=1.0,
        label_smoothing=0.1,
    )
    device = torch.device("meta")
    ours = Engine(
        tiny_model(),
        config,
        device=device,
        precision="fp32",
        ranks=Ranks(),
        positive_weights=torch.ones(5),
    )
    ours.model.num_frames = 10  # type: ignore[assignment]
    batch = tiny_batch(partial=partial)
    batch = {key: batch[key].to(device) for key in batch.keys() - {"id"}}
    batch["mel"] = torch.cat([batch["mel"]] * 2, dim=3)  # a chunk is cut out of it
    for step in range(2):
        ours.step(batch, step, 1e-3)
    with pytest.raises((RuntimeError, NotImplementedError)):
        ours.read_means()  # which does ask


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_step_on_a_gpu_never_waits() -> None:
    config = TrainConfig(ema_decay=0.9, mixup_alpha=0.4, num_time_masks=1, grad_clip=1.0)
    device = torch.device("cuda")
    for precision in ("fp32", "fp16"):
        ours = Engine(tiny_model(), config, device=device, precision=precision, ranks=Ranks())
        batch = {
            key: value.to(device) if isinstance(value, torch.Tensor) else value
            for key, value in tiny_batch().items()
        }
        ours.step(batch, 0, 1e-3)
        try:
            torch.cuda.set_sync_debug_mode("error")
            for step in range(1, 4):
                ours.step(batch, step, 1e-3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        ours.read_means()


# ---- Ranks -------------------------------------------------------------------------------------


def test_two_ranks_agree_with_one(tmp_path: Path) -> None:
    path = tmp_path / "results.pt"
    done = tiny_run.torchrun(2, REPOSITORY / "tests" / "engine_on_ranks.py", str(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is done") == 2
    results = torch.load(path, weights_only=True)
    for case, two in results.items():
        one = engine_on_ranks.train(case, Ranks())
        for name in ("model", "ema"):
            for key, tensor in one[name].items():
                torch.testing.assert_close(two[name][key], tensor, rtol=0, atol=1e-5, msg=case)
        assert two["means"] == [pytest.approx(means, rel=1e-4) for means in one["means"]]
        bad = list(engine_on_ranks.BAD_STEPS) if case == "bad" else []
        assert two["bad_steps"] == one["bad_steps"] == bad
