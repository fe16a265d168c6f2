"""What bench/accuracy.py compares: networks with their features and recipes, as settings.

Every contestant is ``configs/demo-large.toml`` with the settings of its own put on top, so that
any of them can be trained by hand: ``train.py --config configs/demo-large.toml --set ...``.
Learning rates were chosen by the validation split and the scouts (docs/accuracy.md), nothing by
the test split or by the strangers.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mstag.config import Config, load_config
from mstag.models import mscnn2

BASE = "configs/demo-large.toml"
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One way to get a tagger."""

    name: str
    settings: tuple[str, ...]
    """``section.key=value`` over the base config."""
    what: str = ""
    """What is special about it, for the tables."""
    without: str = ""
    """Of an ablation: the contestant that it differs from in one thing; else empty."""
    design: tuple[str, ...] = ()
    """``field=value`` over mstag.models.mscnn2.DESIGN, for bench/accuracy_ablated.py."""
    share: float = 1.0
    """How much of the training split it learns from."""
    valid_every: int = 1
    """Epochs between two validations, which cost some networks as much as training."""
    num_seeds: int = 99
    """At most."""
    is_in_quick: bool = True
    """Whether --quick trains it: not what crawls on CPUs, nor what shows on many passes alone."""

    @property
    def features(self) -> tuple[str, ...]:
        """Those of the settings that shards depend on."""
        return tuple(s for s in self.settings if s.startswith("features."))

    def config(self, *settings: str) -> Config:
        """The settings in full, or others."""
        return load_config(ROOT / BASE, settings or self.settings)


@contextlib.contextmanager
def designed(contestant: Contestant) -> Iterator[None]:
    """Networks that are built meanwhile are of the contestant's design."""
    usual = mscnn2.DESIGN
    pairs = (change.partition("=") for change in contestant.design)
    changes = {name: ast.literal_eval(value) for name, _, value in pairs}
    mscnn2.DESIGN = replace(usual, **changes)
    try:
        yield
    finally:
        mscnn2.DESIGN = usual


SHORT_CHUNKS = (
    "features.sample_rate_hz=16000",
    "features.n_fft=512",
    "features.hop_length=256",
    "features.num_frames=1813",
)


OURS = (
    "model.name=mscnn2",
    "model.hidden_units=256",
    "model.dropout=0.4",
    "model.chunk_frames=471",
    "train.learning_rate=3e-3",
)
FEW_SHARES = (0.3, 0.1)


def main_ones() -> list[Contestant]:
    """The networks that are compared, and the baseline at other learning rates."""
    short_chunk_res = ("model.name=short_chunk_res", "model.hidden_units=512")
    short_chunk_res += ("model.dropout=0.5", "model.chunk_frames=231", "features.n_mels=128")
    musicnn = ("model.name=musicnn", "model.hidden_units=200", "model.dropout=0.5")
    musicnn += ("model.chunk_frames=187", "features.n_mels=96")
    faithful = ("train.learning_rate=1e-4", "train.schedule=constant", "train.warmup_steps=0")
    faithful += ("train.batch_size=20", "model.batchnorm_momentum=0.99")
    return [
        Contestant(name="mscnn2", settings=OURS),
        Contestant(
            name="mscnn",
            settings=("train.learning_rate=1e-3",),
            what="the network of 2017, BatchNorm mended, its learning rate tuned",
        ),
        Contestant(
            name="short_chunk_res",
            settings=(*SHORT_CHUNKS, *short_chunk_res, "train.learning_rate=3e-4"),
            what="Short-chunk CNN + Res, its learning rate the better one of 3e-4 and 1e-3; its "
            "validation is dear, so its weights are the best of every fourth epoch and the last",
            valid_every=4,
        ),
        Contestant(
            name="musicnn",
            settings=(*SHORT_CHUNKS, *musicnn),
            what="its learning rate is the base config's, not tuned",
            is_in_quick=False,
        ),
        *(
            Contestant(
                name=f"mscnn-{rate}",
                settings=(f"train.learning_rate={rate}",),
                what="mscnn at another learning rate",
                num_seeds=1,
            )
            for rate in ("5e-4", "2e-3")
        ),
        Contestant(
            name="mscnn-2017",
            settings=faithful,
            what="with the recipe of 2017: a constant rate of 1e-4, batches of 20, its BatchNorm",
            num_seeds=1,
        ),
    ]


def ablations() -> list[Contestant]:
    """Our network with one thing changed, one seed each."""
    squares = ("kernels=((5, 5),)", "kernel_channels=(64,)")
    changes: list[tuple[str, str, tuple[str, ...], tuple[str, ...]]] = [
        ("no-courses", "the spectrogram alone is seen", (), ("has_courses=False",)),
        ("no-level", "no level taken away, no knee", (), ("knee=None",)),
        ("one-shape", "one shape of kernels, 64 squares", (), squares),
        ("last-block", "the last block alone is heard", (), ("num_heard=1",)),
        ("64-bands", "64 mel bands", ("features.n_mels=64",), ()),
        ("whole-clips", "whole clips, not chunks", ("model.chunk_frames=0",), ()),
        ("equaliser", "with random equalisers, 3 dB", ("train.equaliser_db=3",), ()),
        ("mixup", "with mixup, alpha 0.3", ("train.mixup_alpha=0.3",), ()),
        (
            "spec-augment",
            "with SpecAugment: a mask of 30 frames, one of 10 bands",
            (
                *("train.num_time_masks=1", "train.time_mask_frames=30"),
                *("train.num_mel_masks=1", "train.mel_mask_bands=10"),
            ),
            (),
        ),
        ("ema", "with an average of the weights, decay 0.98", ("train.ema_decay=0.98",), ()),
    ]
    found = [
        Contestant(
            name=f"mscnn2-{name}",
            settings=(*OURS, *settings),
            what=what,
            without="mscnn2",
            design=design,
            num_seeds=1,
        )
        for name, what, settings, design in changes
    ]
    found.append(
        Contestant(
            name="mscnn-chunks",
            settings=("model.chunk_frames=471", "train.learning_rate=1e-3"),
            what="mscnn in mscnn2's chunks",
            without="mscnn",
            num_seeds=1,
        )
    )
    return found


def recipes() -> list[Contestant]:
    """What configs/mtt.toml may turn on for ``mscnn``, one by one and together, one seed each.

    docs/accuracy.md says what came of it. The average reaches back 100 steps, most of an epoch.
    """
    adamw = ("train.optimizer=adamw", "train.weight_decay=1e-2")
    clip, ema, mixup = "train.grad_clip=1.0", "train.ema_decay=0.99", "train.mixup_alpha=0.3"
    masks = ("train.num_time_masks=2", "train.num_mel_masks=2")
    changes: list[tuple[str, str, tuple[str, ...]]] = [
        ("adamw", "with AdamW, decay 1e-2, and gradients clipped at 1", (*adamw, clip)),
        ("ema", "with an average of the weights, decay 0.99", (ema,)),
        ("mixup", "with mixup, alpha 0.3", (mixup,)),
        ("masks", "with SpecAugment: two masks of up to 60 frames, two of up to 16 bands", masks),
        (
            "masks-equaliser",
            "with those masks and random equalisers, 3 dB",
            (*masks, "train.equaliser_db=3"),
        ),
        ("all", "with all of it but equalisers", (*adamw, clip, ema, mixup, *masks)),
    ]
    return [
        Contestant(
            name=f"mscnn-{name}",
            settings=("train.learning_rate=1e-3", *settings),
            what=what,
            without="mscnn",
            num_seeds=1,
            is_in_quick=False,
        )
        for name, what, settings in changes
    ]


def fewer_clips() -> list[Contestant]:
    """Sample efficiency: as many clips seen of fewer artists."""
    wholes = [contestant for contestant in main_ones() if contestant.name in ("mscnn2", "mscnn")]
    return [
        replace(
            whole,
            name=f"{whole.name}-{share:.0%}",
            what=f"{share:.0%} of the training artists",
            without=whole.name,
            share=share,
            num_seeds=1,
        )
        for share in FEW_SHARES
        for whole in wholes
    ]


CONTESTANTS = {c.name: c for c in (*main_ones(), *ablations(), *recipes(), *fewer_clips())}
