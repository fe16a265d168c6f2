"""What bench/accuracy.py compares: networks with their features and recipes, as settings.

Every contestant is ``configs/demo-large.toml`` with the settings of its own put on top, so that
any of them can be trained by hand: ``train.py --config configs/demo-large.toml --set ...``.
Learning rates and ways of augmenting were chosen by the validation split and the scouts
(docs/accuracy.md), nothing by the test split or by the strangers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mstag.config import Config, load_config

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
    is_slow_on_cpus: bool = False
    """Left out by --quick."""

    def config(self) -> Config:
        """The settings in full."""
        return load_config(ROOT / BASE, self.settings)


SHORT_CHUNKS = (
    "features.sample_rate_hz=16000",
    "features.n_fft=512",
    "features.hop_length=256",
    "features.num_frames=1813",
)


def all_contestants() -> list[Contestant]:
    """Networks, the baseline's learning rates, ablations, shares of the clips."""
    ours = ("model.name=mscnn2", "model.hidden_units=256", "model.dropout=0.4")
    ours += ("model.chunk_frames=314", "train.learning_rate=3e-3")
    short_chunk_res = ("model.name=short_chunk_res", "model.hidden_units=512")
    short_chunk_res += ("model.dropout=0.5", "model.chunk_frames=231", "features.n_mels=128")
    musicnn = ("model.name=musicnn", "model.hidden_units=200", "model.dropout=0.5")
    musicnn += ("model.chunk_frames=187", "features.n_mels=96")
    faithful = ("train.learning_rate=1e-4", "train.schedule=constant", "train.warmup_steps=0")
    faithful += ("train.batch_size=20", "model.batchnorm_momentum=0.99")
    return [
        Contestant(name="mscnn2", settings=ours),
        Contestant(
            name="mscnn",
            settings=("train.learning_rate=1e-3",),
            what="the network of 2017, BatchNorm mended, its learning rate tuned",
        ),
        Contestant(
            name="short_chunk_res",
            settings=(*SHORT_CHUNKS, *short_chunk_res, "train.learning_rate=3e-4"),
            what="Short-chunk CNN + Res, its learning rate the better one of 3e-4 and 1e-3",
            valid_every=4,
        ),
        Contestant(
            name="musicnn",
            settings=(*SHORT_CHUNKS, *musicnn),
            is_slow_on_cpus=True,
        ),
        *(
            Contestant(
                name=f"mscnn-{rate}",
                settings=(f"train.learning_rate={rate}",),
                what="the same at another learning rate",
                num_seeds=1,
            )
            for rate in ("5e-4", "2e-3")
        ),
        Contestant(
            name="mscnn-2017",
            settings=faithful,
            what="the recipe of 2017 to the letter: constant rate, batches of 20, its BatchNorm",
            num_seeds=1,
        ),
    ]


CONTESTANTS = {contestant.name: contestant for contestant in all_contestants()}
