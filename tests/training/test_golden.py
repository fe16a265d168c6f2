"""Fifty steps of the real network on fixed shards, against the loss curve that is committed.

``python tests/training/test_golden.py`` writes the curve anew, after a change that is meant to
change it; the two paths that pytest knows must then be in PYTHONPATH (``.:tests``).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from make_shards import make_shards

from mstag.config import FeatureConfig, ModelConfig, TrainConfig
from mstag.data.stream import ShardLoader
from mstag.models import build_model
from mstag.runtime import Ranks, seed_everything
from mstag.training.engine import Engine
from mstag.training.schedule import learning_rate_at

GOLDEN = Path(__file__).with_name("golden_loss.json")
COMMAND = "PYTHONPATH=.:tests python tests/training/test_golden.py"
NUM_STEPS = 50
FEATURES = FeatureConfig(n_mels=32, num_frames=128)
MODEL = ModelConfig(hidden_units=16, batchnorm_momentum=0.1)
# Adam turns the rounding of a gradient near zero into whole steps: two ways of adding up the same
# gradients are 0.1 apart after 50 steps at 1e-3, 1e-4 to 1e-3 at 3e-5 (SSE, AVX2 and AVX-512).
# So the curve is that of instructions which every x86 processor has.
PLAIN = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "NUMBA_CPU_NAME": "generic",
    "NUMBA_CPU_FEATURES": "",
}
TRAIN = TrainConfig(batch_size=8, learning_rate=3e-5, warmup_steps=5, schedule="cosine", seed=3)


def curve(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Loss of each step, and the weights after the last; dropout on, float32, one thread."""
    make_shards(folder, {"train": [20, 33, 11]}, FEATURES)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seed_everything(TRAIN.seed)
        model = build_model(MODEL, FEATURES.n_mels, FEATURES.num_frames, 5)
        cpu = torch.device("cpu")
        engine = Engine(model, TRAIN, device=cpu, precision="fp32", ranks=Ranks())
        loader = ShardLoader(
            folder, "train", batch_size=8, shuffle=True, seed=TRAIN.seed, num_workers=0
        )
        losses: list[float] = []
        while len(losses) < NUM_STEPS:
            loader.set_epoch(len(losses) // len(loader))
            for batch in loader:
                step = len(losses)
                engine.step(batch, step, learning_rate_at(step, NUM_STEPS, TRAIN))
                losses.append(engine.read_means()[0])
                if len(losses) == NUM_STEPS:
                    break
        return losses, engine.model.state_dict()
    finally:
        torch.set_num_threads(threads)


def plain_curve() -> list[float]:
    """The same in a process that keeps to :data:`PLAIN`."""
    done = subprocess.run(
        [sys.executable, __file__, "--print"],
        env={**os.environ, **PLAIN, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    losses: list[float] = json.loads(done.stdout)
    return losses


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the curve is that of x86 processors")
def test_the_loss_follows_the_golden_curve() -> None:
    golden = json.loads(GOLDEN.read_text())
    losses = plain_curve()
    assert losses == pytest.approx(golden["losses"], abs=1e-4), golden["origin"]
    assert losses[-1] < 0.95 * losses[0], "it learns"


def test_two_runs_are_alike_bit_by_bit(tmp_path: Path) -> None:
    losses, weights = curve(tmp_path / "one")
    # Far from the rounding of any processor, and as far from another recipe.
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())["losses"], abs=1e-2)
    again, same_weights = curve(tmp_path / "two")
    assert again == losses
    for name, tensor in weights.items():
        assert torch.equal(tensor, same_weights[name]), name


def main() -> None:
    """Prints the curve, or writes it with where it came from."""
    if "--print" in sys.argv:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(curve(Path(folder))[0]))
        return
    plain = " ".join(f"{name}={value}" for name, value in PLAIN.items())
    origin = f"{COMMAND}, torch {torch.__version__}, x86_64, {plain}, fp32, 1 thread"
    losses = [round(loss, 7) for loss in plain_curve()]
    GOLDEN.write_text(json.dumps({"origin": origin, "losses": losses}, indent=1) + "\n")


if __name__ == "__main__":
    main()
