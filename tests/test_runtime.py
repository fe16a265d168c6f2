"""Devices, precision, threads, seeds, signals and ranks."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from mstag import runtime
from mstag.runtime import Ranks

CPU = torch.device("cpu")


def test_without_torchrun_this_is_the_only_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert runtime.read_ranks() == Ranks(0, 1, 0, 1)
    assert runtime.read_ranks().is_first


def test_torchruns_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", 5), ("WORLD_SIZE", 8), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 4)):
        monkeypatch.setenv(name, str(value))
    assert runtime.read_ranks() == Ranks(5, 8, 1, 4)


@pytest.mark.parametrize(
    ("said", "torchrun", "expected"),
    [("3", False, 3), ("1", False, 1), ("3", True, 3), ("1", True, None), ("", False, None)],
)
def test_threads_are_the_users_or_a_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, said: str, torchrun: bool, expected: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert runtime.num_cpu_threads(Ranks(local_world_size=2)) == (expected or 4)


def test_more_ranks_than_cores_still_have_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert runtime.num_cpu_threads(Ranks(local_world_size=10_000)) == 1


@pytest.mark.parametrize(
    ("amx", "avx512", "expected"),
    [(False, False, "fp32"), (True, False, "bf16"), (False, True, "bf16")],
)
def test_auto_takes_bf16_on_cpus_with_units_for_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    assert runtime.pick_precision("auto", CPU) == expected


def test_a_torch_without_the_private_questions_means_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert runtime.pick_precision("auto", CPU) == "fp32"


def test_what_is_asked_for_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.pick_precision("bf16", CPU) == "bf16"
    with pytest.raises(ValueError, match=r"fp16.*CPUs.*take auto"):
        runtime.pick_precision("fp16", CPU)
    assert runtime.pick_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.pick_device("auto") == CPU
    with pytest.raises(ValueError, match="no GPU here"):
        runtime.pick_device("cuda")
    with pytest.raises(ValueError, match="must be auto, cpu or cuda"):
        runtime.pick_device("tpu")


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeds_are_a_function_of_the_whole_key() -> None:
    runtime.seed_everything(7, 3, 0)
    first = draw()
    runtime.seed_everything(7, 3, 0)
    assert draw() == first
    for key in ((7, 3, 1), (7, 4, 0), (8, 3, 0), (7,)):
        runtime.seed_everything(*key)
        assert not set(draw()) & set(first)


def test_torch_draws_as_after_its_own_manual_seed_on_every_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus = torch.Generator(), torch.Generator()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "default_generators", gpus)
    runtime.seed_everything(7, 3)
    drawn = torch.rand(4)
    seed = torch.initial_seed()
    assert [gpu.initial_seed() for gpu in gpus] == [seed, seed]
    torch.manual_seed(seed)
    assert torch.equal(torch.rand(4), drawn)


def test_one_rank_needs_no_process_group() -> None:
    assert runtime.largest_over_ranks(3, Ranks()) == 3
    assert runtime.gather_over_ranks("x", Ranks()) == ["x"]
    done = []
    runtime.on_first_rank(lambda: done.append(1), Ranks())
    assert done == [1]
