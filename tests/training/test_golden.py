"""Fifty steps of the real network on fixed shards, against the loss curve that is committed.

``python tests/training/test_golden.py`` writes the curve anew, after a change that is meant to
change it; the two paths that pytest knows must then be in PYTHONPATH (``.:tests``).
"""

from __future__ import annotations

import json
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
# Slow on purpose. Adam turns the rounding of a gradient near zero into whole steps: at 1e-3 two
# ways of adding up the same gradients are 0.1 apart after 50 steps, at 3e-5 it is 2e-5.
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


def test_the_loss_follows_the_golden_curve_and_itself_bit_by_bit(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    losses, weights = curve(tmp_path / "one")
    assert losses == pytest.approx(golden["losses"], abs=1e-4), golden["origin"]
    assert losses[-1] < 0.95 * losses[0], "it learns"
    again, same_weights = curve(tmp_path / "two")
    assert again == losses
    for name, tensor in weights.items():
        assert torch.equal(tensor, same_weights[name]), name


def write() -> None:
    """Writes the curve, with where it came from."""
    with tempfile.TemporaryDirectory() as folder:
        losses, _ = curve(Path(folder))
    origin = (
        f"{COMMAND}, torch {torch.__version__}, CPU with "
        f"{torch.backends.cpu.get_cpu_capability()}, fp32, 1 thread"
    )
    text = json.dumps({"origin": origin, "losses": [round(loss, 7) for loss in losses]}, indent=1)
    GOLDEN.write_text(text + "\n")


if __name__ == "__main__":
    write()
