"""Another batch size: what goes with it, and how one is found."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_shards import make_shards

from mstag.config import Config, FeatureConfig, ModelConfig, TrainConfig
from mstag.data import shards
from mstag.runtime import Ranks
from mstag.training import batch_size
from mstag.training.batch_size import largest_worth_it, resolve, with_batch_size

CPU = torch.device("cpu")
FEATURES = FeatureConfig(n_mels=16, num_frames=64)


def recipe(**train: object) -> Config:
    settings = {"batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 10, "precision": "fp32"}
    return Config(
        features=FEATURES,
        model=ModelConfig(hidden_units=8),
        train=TrainConfig(**{**settings, **train}),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> shards.Manifest:
    folder = tmp_path_factory.mktemp("shards")
    make_shards(folder, {"train": [25], "valid": [2]}, FEATURES)
    return shards.read_manifest(folder)


@pytest.mark.parametrize(("rule", "factor"), [("sqrt", 2.0), ("linear", 4.0), ("none", 1.0)])
def test_the_learning_rate_goes_with_the_batch(rule: str, factor: float) -> None:
    train = with_batch_size(recipe(lr_scaling=rule), 16).train
    assert train.batch_size == 16
    assert train.learning_rate == pytest.approx(1e-3 * factor)
    assert train.warmup_steps == 3, "10 steps of 4 clips are 2.5 of 16"


@given(st.integers(1, 512), st.integers(0, 1000), st.integers(1, 4096))
def test_the_warm_up_lasts_as_many_clips_or_one_batch_more(
    old: int, warmup_steps: int, new: int
) -> None:
    train = with_batch_size(recipe(batch_size=old, warmup_steps=warmup_steps), new).train
    assert -1e-6 * new <= train.warmup_steps * new - warmup_steps * old < new * (1 + 1e-6)
    assert bool(train.warmup_steps) == bool(warmup_steps)


def test_the_same_size_changes_nothing() -> None:
    assert with_batch_size(recipe(), 4) == recipe()


@pytest.mark.parametrize(
    ("rates", "num_clips", "expected"),
    [
        ({4: 10, 8: 18, 16: 30, 32: None}, 10**6, 16),  # no room
        ({4: 10, 8: 18, 16: 18.5}, 10**6, 8),  # hardly faster
        ({4: 10, 8: 9}, 10**6, 4),  # slower
        ({4: 10, 8: 18, 16: 30}, 20 * 16, 16),  # just 20 steps to an epoch
        ({4: 10, 8: 18}, 20 * 16 - 1, 8),  # would be fewer
        ({4: 10}, 5, 4),  # the recipe's own size stands, however few steps
        ({4: None}, 10**6, 4),  # nothing larger is better
    ],
)
def test_the_largest_that_is_worth_it(
    rates: dict[int, float | None], num_clips: int, expected: int
) -> None:
    asked = []

    def seconds(size: int) -> float | None:
        asked.append(size)
        rate = rates[size]
        return None if rate is None else size * batch_size.NUM_STEPS / rate

    assert largest_worth_it(seconds, 4, num_clips) == expected
    assert asked == list(rates), "each size is tried once, and none after the end"


def test_auto_tries_real_steps_and_says_what_it_found(
    manifest: shards.Manifest, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="mstag")
    monkeypatch.setattr(batch_size, "STEPS_PER_EPOCH", 3)
    found = resolve(recipe(), "auto", None, manifest, CPU, Ranks()).train
    assert found.batch_size in (4, 8)
    assert found.learning_rate == pytest.approx(1e-3 * (found.batch_size / 4) ** 0.5)
    assert "batch size 4: " in caplog.text
    assert "batch size 8: " in caplog.text
    assert f"batch size {found.batch_size}, learning rate" in caplog.text


def test_auto_stops_where_a_machine_has_no_room(
    manifest: shards.Manifest, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="mstag")
    monkeypatch.setattr(batch_size, "STEPS_PER_EPOCH", 1)
    peaks = iter(range(10**9, 10**12, 10**9))
    monkeypatch.setattr(batch_size, "peak_bytes", lambda: next(peaks))
    monkeypatch.setattr(batch_size, "available_bytes", lambda ranks: 2.0e9)
    monkeypatch.setattr(batch_size, "WORTH_IT", 0.0)
    found = resolve(recipe(), "auto", None, manifest, CPU, Ranks()).train
    assert found.batch_size == 4, "twice the first trial's 1 GB is more than 80% of 2 GB"
    assert "batch size 8: does not fit" in caplog.text


def test_a_gpu_without_room_is_an_answer(
    manifest: shards.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(batch_size, "make_engine", full)
    assert batch_size.seconds_of_steps(recipe(), manifest, CPU, 4) is None


def test_auto_stops_where_a_larger_batch_does_not_work(
    manifest: shards.Manifest, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="mstag")
    monkeypatch.setattr(batch_size, "STEPS_PER_EPOCH", 1)
    make_engine = batch_size.make_engine
    made = []

    def some(*args: Any) -> Any:
        made.append(args)
        if len(made) in refused:
            raise RuntimeError("Expected canUse32BitIndexMath to be true")
        return make_engine(*args)

    refused = [2]
    monkeypatch.setattr(batch_size, "make_engine", some)
    found = resolve(recipe(), "auto", None, manifest, CPU, Ranks()).train
    assert found.batch_size == 4
    assert "Expected canUse32BitIndexMath to be true\n" in caplog.text
    assert "batch size 8: does not fit" in caplog.text
    refused = [len(made) + 1]
    with pytest.raises(RuntimeError, match="canUse32Bit"):  # the recipe itself: a defect
        resolve(recipe(), "auto", None, manifest, CPU, Ranks())


def test_a_run_that_goes_on_keeps_what_auto_found(manifest: shards.Manifest) -> None:
    state = {"config": {"train": {"batch_size": 16}}}
    resolved = resolve(recipe(), "auto", state, manifest, CPU, Ranks())
    assert resolved == with_batch_size(recipe(), 16)
    assert resolve(recipe(), "8", state, manifest, CPU, Ranks()).train.batch_size == 8


@pytest.mark.parametrize("wanted", ["0", "-4", "4.5", "many", "", "\u00b2"])
def test_nonsense_is_refused(manifest: shards.Manifest, wanted: str) -> None:
    with pytest.raises(ValueError, match=r"must be a whole number above 0, or auto"):
        resolve(recipe(), wanted, None, manifest, CPU, Ranks())


def test_this_machine_counts_its_memory(tmp_path: Path) -> None:
    assert 1e7 < batch_size.peak_bytes() < 1e12
    assert batch_size.available_bytes(Ranks(local_world_size=2)) > 1e6
