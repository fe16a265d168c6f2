"""What a network costs a clip: multiply-adds, weights, time of training steps and of scoring."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import torch
from accuracy_rows import Contestant, designed
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mstag import runtime
from mstag.config import Config
from mstag.models import build_model, frames_at_once
from mstag.models.predict import chunk_starts, in_float32, score_windows
from mstag.runtime import Ranks
from mstag.training.engine import Engine

NUM_TAGS = 49
SCORED_AT_ONCE = 4
ROUNDS = 5


def build(config: Config) -> nn.Module:
    """The network of a config, for the demo set's tags."""
    features = config.features
    return build_model(config.model, features.n_mels, features.num_frames, NUM_TAGS)


def gmacs_of(config: Config) -> dict[str, float]:
    """Billions of multiply-adds: of a chunk (training's forward pass), of a clip as scored."""
    features = config.features
    with torch.device("meta"):
        model = build(config).eval()
        num_frames = frames_at_once(model)
        mel = torch.empty(2, 1, features.n_mels, num_frames)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(mel)
    # Of two windows, and each multiply-add is two operations.
    of_chunk = counted.get_total_flops() / 2 / 2 / 1e9
    return {
        "gmacs_chunk": of_chunk,
        "gmacs_clip": of_chunk * len(chunk_starts(features.num_frames, num_frames)),
        "chunk_s": num_frames * features.frame_s,
        "weights": sum(weights.numel() for weights in model.parameters()),
    }


class Costs:
    """The steps of one contestant, to be timed in turns with the others'."""

    def __init__(self, config: Config) -> None:
        features, size = config.features, config.train.batch_size
        device = runtime.pick_device("auto")
        runtime.prepare_device(device)
        self._device, self._size = device, size
        precision = runtime.pick_precision(config.train.precision, device)
        runtime.seed_everything(0)
        train = dataclasses.replace(config.train, seed=0)
        self._engine = Engine(
            build(config), train, device=device, precision=precision, ranks=Ranks()
        )
        mel = torch.randn(size, 1, features.n_mels, features.num_frames).half() - 8
        tags = torch.zeros(size, NUM_TAGS, dtype=torch.uint8)
        self._batch = {"mel": mel.to(device), "tags": tags.to(device)}
        self._number = 0
        self.train_s: list[float] = []
        self.score_s: list[float] = []

    def turn(self, *, counts: bool) -> None:
        """A training step and a batch that is scored."""
        began = self._now()
        self._engine.step(self._batch, self._number, 1e-4)
        self._engine.read_means()  # waits for the device
        trained = self._now()
        mel = self._batch["mel"][:SCORED_AT_ONCE].float()
        with in_float32(self._engine.model):
            score_windows(self._engine.model, mel)
        scored = self._now()
        self._number += 1
        if counts:
            self.train_s.append((trained - began) / self._size)
            self.score_s.append((scored - trained) / SCORED_AT_ONCE)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def costs_of(contestants: list[Contestant]) -> dict[str, dict[str, Any]]:
    """Of each contestant: see :func:`gmacs_of`; clips/s in training and scoring, medians."""
    timed, counted = {}, {}
    for contestant in contestants:
        with designed(contestant):
            config = contestant.config()
            timed[contestant.name], counted[contestant.name] = Costs(config), gmacs_of(config)
    for number in range(1 + ROUNDS):
        for cost in timed.values():
            cost.turn(counts=number > 0)
    return {
        name: counted[name]
        | {
            "train_clips_per_s": 1 / statistics.median(cost.train_s),
            "score_clips_per_s": 1 / statistics.median(cost.score_s),
        }
        for name, cost in timed.items()
    }
