"""What test_engine.py starts under torchrun: training steps on two ranks, whose end it compares.

    torchrun ... engine_on_ranks.py FILE

Rank 0 writes what :func:`train` returns for every case to FILE.
"""

from __future__ import annotations

import copy
import logging
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mstag import console, runtime
from mstag.config import TrainConfig
from mstag.runtime import Ranks
from mstag.training.engine import Engine

NUM_STEPS = 20
STEPS_PER_EPOCH = 8
BATCH_SIZE = 8
CASES: dict[str, dict[str, Any]] = {
    "everything": {
        "mixup_alpha": 0.4,
        "num_time_masks": 2,
        "time_mask_frames": 4,
        "num_mel_masks": 1,
        "mel_mask_bands": 3,
        "ema_decay": 0.9,
        "label_smoothing": 0.1,
        "grad_clip": 0.5,
    },
    "pieces": {"accumulate_steps": 2, "mixup_alpha": 0.4, "ema_decay": 0.9},
    "bad": {"ema_decay": 0.9, "mixup_alpha": 0.4},
    "frozen": {"init_from": "a bundle", "freeze_epochs": 1, "ema_decay": 0.9},
}
BAD_STEPS = (5, 11)
"""Steps of the case "bad" with a NaN in a clip of the last rank."""


def plain_model() -> nn.Module:
    """Without BatchNorm and dropout: each clip's gradient is its own affair."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 8, 16), nn.Linear(16, 5)
    )
    model.head = ("4",)  # type: ignore[assignment]
    return model


def own_batch(case: str, step: int, ranks: Ranks) -> dict[str, Any]:
    """A rank's part of a global batch with partial labels; each rank knows another number."""
    generator = torch.Generator().manual_seed(step)
    mel = torch.randn(BATCH_SIZE, 1, 8, 10, generator=generator).half()
    tags = (torch.rand(BATCH_SIZE, 5, generator=generator) < 0.4).byte()
    mask = (torch.rand(BATCH_SIZE, 5, generator=generator) < 0.5).byte()
    mask[: BATCH_SIZE // 2] |= tags[: BATCH_SIZE // 2]
    if case == "bad" and step in BAD_STEPS:
        mel[-1, 0, 2, 3] = math.nan
    share = BATCH_SIZE // ranks.world_size
    own = slice(ranks.rank * share, (ranks.rank + 1) * share)
    return {"mel": mel[own], "tags": tags[own], "mask": mask[own]}


def make_engine(case: str, ranks: Ranks) -> Engine:
    """An engine of float32 on the CPU."""
    return Engine(
        plain_model(),
        TrainConfig(batch_size=BATCH_SIZE, **CASES[case]),
        device=torch.device("cpu"),
        precision="fp32",
        ranks=ranks,
        positive_weights=torch.tensor([1.0, 2, 3, 4, 5]),
    )


def train(case: str, ranks: Ranks) -> dict[str, Any]:
    """Some steps: the weights, their average, and what was logged."""
    engine = make_engine(case, ranks)
    means = []
    for step in range(NUM_STEPS):
        engine.begin_epoch(step // STEPS_PER_EPOCH)
        engine.step(own_batch(case, step, ranks), step, 1e-3)
        if step % 4 == 3:
            means.append(engine.read_means())
    state = engine.state_dict()
    assert state["ema"] is not None
    return {
        "model": state["model"],
        "ema": state["ema"]["model"],
        "means": means,
        "bad_steps": state["bad_steps"],
    }


def check_alike(result: dict[str, Any], ranks: Ranks) -> None:
    """All ranks end with the same weights and numbers, bit by bit."""
    for other in runtime.gather_over_ranks(result, ranks):
        for name in ("model", "ema"):
            for key, tensor in other[name].items():
                assert torch.equal(tensor, result[name][key]), (name, key)
        assert other["means"] == result["means"]
        assert other["bad_steps"] == result["bad_steps"]


def check_resumed_means(ranks: Ranks) -> None:
    """What rank 0 saves between two readings goes on on every rank as if never cut short."""
    straight, resumed = make_engine("everything", ranks), make_engine("everything", ranks)
    for step in range(3):
        straight.step(own_batch("everything", step, ranks), step, 1e-3)
    (saved, *_) = runtime.gather_over_ranks(straight.state_dict(), ranks)
    resumed.load_state_dict(copy.deepcopy(saved))
    for engine in (straight, resumed):
        engine.step(own_batch("everything", 3, ranks), 3, 1e-3)
    assert straight.read_means() == resumed.read_means()


def check_fp16(ranks: Ranks) -> None:
    """A loss that is not finite on one rank alone is bad on both, not an overflow."""
    engine = Engine(
        plain_model(),
        TrainConfig(batch_size=BATCH_SIZE),
        device=torch.device("cpu"),
        precision="fp16",
        ranks=ranks,
    )
    engine.step(own_batch("bad", BAD_STEPS[0], ranks), 0, 1e-3)
    assert engine.state_dict()["news"] == [(0, True)]
    engine.read_means()
    assert engine.state_dict()["bad_steps"] == [0]


def main(path: Path) -> None:
    """Runs all cases."""
    ranks = runtime.start_ranks(torch.device("cpu"))
    logging.getLogger("mstag").setLevel(logging.ERROR)
    results = {case: train(case, ranks) for case in CASES}
    for result in results.values():
        check_alike(result, ranks)
    check_resumed_means(ranks)
    check_fp16(ranks)
    if ranks.is_first:
        torch.save(results, path)
    print(f"rank {ranks.rank} is done", flush=True)
    runtime.stop_ranks()
    console.end_process(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
