"""Settings: frozen dataclasses, read from a TOML file and checked once, here.

One file is one reproducible experiment. Every field has a default, so a minimal file
names a dataset and nothing else; an unknown field is an error that names the nearest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from mstag import checks

DATASET_KINDS = ("demo", "mtt", "mtg-jamendo", "msd", "openmic", "table", "folders", "shards")
SUBSETS = ("top50tags", "genre", "instrument", "moodtheme", "all")
SPLIT_RULES = ("auto", "folders", "folders-clean", "random", "artist", "given")
VOCABULARIES = ("auto", "merged", "raw", "table")
VARIANTS = ("small", "large", "stranger", "scout")
RECIPES = ("log-mel", "unknown")
LONG_CLIPS = ("windows", "centre")
ON_BAD_CLIP = ("fail", "skip")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine")
LR_SCALINGS = ("sqrt", "linear", "none")
DEVICES = ("auto", "cpu", "cuda")
WANDB_MODES = ("auto", "online", "offline", "disabled")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """[dataset] Which clips, which tags, which split."""

    name: str = "demo"
    """What the dataset is called in manifests, reports and file names."""
    kind: str = "demo"
    """How its files are laid out: demo, mtt, mtg-jamendo, msd, openmic, table, folders, or
    shards: WebDataset tars of somebody else (`shard-tools index`)."""
    table: str = ""
    """The table of clips and tags (kind "table"; msd: labels), relative to the data folder."""
    split: str = "auto"
    """Split rule: folders, folders-clean, random, artist (no artist in two splits), given (the
    table's own), or auto: folders for mtt, a table's own where it has one, else artist."""
    split_seed: int = 0
    """Seed of the rules that draw lots (random, artist)."""
    split_sizes: tuple[float, float, float] = (0.75, 0.1, 0.15)
    """Shares of train, valid and test under the artist rule; they add up to 1."""
    vocabulary: str = "auto"
    """Tags as they stand ("raw"), MagnaTagATune's synonym groups merged ("merged"), as they
    stand and in the order of the table, which two tables of the same columns share ("table"),
    or auto: merged for mtt, the literature's 50 for msd, else raw."""
    num_tags: int = 50
    """How many tags at most: the most frequent ones of the whole table."""
    num_clips: int = 0
    """Size of a dataset that is made on the spot (kind "demo"); 0: its default."""
    variant: str = "small"
    """Which demo set: "small"; "large", a harder one with a test split of other patches and
    scores; "stranger", a test split from another soundfont, to be scored and never trained on;
    "scout", a validation split from a third soundfont, to choose settings by."""
    soundfonts: tuple[str, ...] = ()
    """.sf2 files of the stranger and scout sets; empty: Debian's, where installed."""
    subset: str = "top50tags"
    """Which tags and tracks of mtg-jamendo: top50tags, genre, instrument, moodtheme, or all."""
    split_number: int = 0
    """Which of a dataset's own splits (mtg-jamendo: 0 to 4), where it gives several."""
    mirrors: tuple[str, ...] = ()
    """Addresses that `shard-tools fetch` tries in order; empty: the dataset's own."""

    def __post_init__(self) -> None:
        checks.one_of("dataset.kind", self.kind, DATASET_KINDS)
        checks.one_of("dataset.split", self.split, SPLIT_RULES)
        checks.one_of("dataset.vocabulary", self.vocabulary, VOCABULARIES)
        checks.at_least("dataset.num_tags", self.num_tags, 1)
        checks.one_of("dataset.subset", self.subset, SUBSETS)
        checks.at_least("dataset.num_clips", self.num_clips, 0)
        checks.one_of("dataset.variant", self.variant, VARIANTS)
        checks.within("dataset.split_number", self.split_number, 0, 4)
        if not self.name or any(c in self.name for c in "/\\\n\0"):
            raise ValueError(
                f"dataset.name = {self.name!r}: must be a plain name without slashes, "
                "because files and runs are named after it"
            )
        if min(self.split_sizes) < 0 or not math.isclose(sum(self.split_sizes), 1, abs_tol=1e-6):
            raise ValueError(
                f"dataset.split_sizes = {list(self.split_sizes)}: must be three shares >= 0 that "
                "add up to 1 (train, valid, test), e.g. [0.75, 0.1, 0.15]"
            )
        if self.kind == "table" and not self.table:
            raise ValueError(
                'dataset.table is empty: kind "table" needs the name of the table in the data '
                'folder, e.g. table = "tracks.csv"'
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureConfig:
    """[features] Waveform -> log-mel spectrogram; the defaults are the 2017 recipe's."""

    sample_rate_hz: int = 11025
    """Audio is mixed to mono and resampled to this rate."""
    n_fft: int = 2048
    """Length of the (periodic Hann) window and of the FFT, in samples."""
    hop_length: int = 512
    """Samples from one frame to the next."""
    n_mels: int = 128
    """Number of Slaney mel bands from 0 Hz to half the sample rate."""
    recipe: str = "log-mel"
    """How spectrograms are made from audio: "log-mel", as this table says, or "unknown": by
    somebody else (`shard-tools index`), so that what learns from them cannot tag audio."""
    num_frames: int = 628
    """Frames of every stored spectrogram; shorter clips are padded with the silence floor."""

    def __post_init__(self) -> None:
        checks.one_of("features.recipe", self.recipe, RECIPES)
        checks.at_least("features.sample_rate_hz", self.sample_rate_hz, 1000)
        checks.at_least("features.n_fft", self.n_fft, 16)
        checks.at_least("features.hop_length", self.hop_length, 1)
        checks.at_least("features.n_mels", self.n_mels, 1)
        checks.at_least("features.num_frames", self.num_frames, 1)
        if self.n_fft % 2:
            raise ValueError(f"features.n_fft = {self.n_fft}: must be even, e.g. 2048")

    @property
    def frame_s(self) -> float:
        """Seconds from one frame to the next."""
        return self.hop_length / self.sample_rate_hz

    @property
    def num_samples(self) -> int:
        """Samples after which a centred spectrogram has exactly ``num_frames`` frames."""
        return (self.num_frames - 1) * self.hop_length


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsConfig:
    """[shards] How clips are packed."""

    clips_per_shard: int = 256
    """Samples in a tar shard (160 KB each with the default features: 40 MB)."""
    max_skipped: float = 0.01
    """Share of clips that may be skipped (undecodable, missing) before packing fails."""
    long_clips: str = "windows"
    """A clip longer than the window: cut into consecutive "windows", or its "centre" alone."""

    def __post_init__(self) -> None:
        checks.at_least("shards.clips_per_shard", self.clips_per_shard, 1)
        checks.within("shards.max_skipped", self.max_skipped, 0.0, 1.0)
        checks.one_of("shards.long_clips", self.long_clips, LONG_CLIPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """[model] The network."""

    name: str = "mscnn"
    """Architecture, as registered in mstag.models."""
    hidden_units: int = 500
    """Width of the fully connected layer."""
    dropout: float = 0.6
    """Dropout rate in front of it."""
    batchnorm_momentum: float = 0.01
    """Weight of the newest batch in BatchNorm's running statistics. The 2017 code says 0.99,
    a Keras figure that in PyTorch means nearly no averaging; 0.01 is what it meant."""
    chunk_frames: int = 0
    """Frames that the network sees at once; 0: the whole stored spectrogram. Training takes one
    random chunk of each clip, scoring averages the sigmoids over consecutive chunks that cover
    it."""

    def __post_init__(self) -> None:
        checks.at_least("model.hidden_units", self.hidden_units, 1)
        checks.within("model.dropout", self.dropout, 0.0, 0.99)
        checks.within("model.batchnorm_momentum", self.batchnorm_momentum, 0.0, 1.0)
        checks.at_least("model.chunk_frames", self.chunk_frames, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """[train] The optimisation."""

    epochs: int = 100
    """Passes over the training split."""
    batch_size: int = 20
    """Clips per optimiser step, over all ranks together."""
    accumulate_steps: int = 1
    """Pieces in which a rank's part of a batch goes through the network one after the other,
    where it does not fit in memory at once. What is learnt is the same, but that BatchNorm
    compares the clips of a piece."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    lr_scaling: str = "sqrt"
    """How the learning rate follows another batch size asked for with --batch-size: with the
    square root of their ratio ("sqrt", the rule for Adam), with the ratio ("linear"), or "none"."""
    optimizer: str = "adam"
    """adam (weight decay as L2 in the gradient, as in 2017) or adamw (decoupled)."""
    weight_decay: float = 1e-4
    """L2 penalty (adam) or decoupled decay (adamw)."""
    schedule: str = "constant"
    """Learning rate over the run: constant, or cosine to zero."""
    init_from: str = ""
    """A bundle, or a run, whose weights the network starts from, all but those of its head (the
    layer that gives the tags), which starts anew; empty: everything does."""
    freeze_epochs: int = 0
    """Epochs at the start in which only the head learns, and what init_from gave stays as it
    is; -1: all epochs."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from zero."""
    grad_clip: float = 0.0
    """Largest gradient norm; 0: no clipping (the norm is logged all the same)."""
    precision: str = "auto"
    """fp32, bf16, fp16 (with loss scaling) or auto: the fastest that is safe on the device."""
    compile: bool = False
    """torch.compile the network: a minute or so at the start, faster steps on GPUs. Needs a
    compiler (g++ for CPUs, gcc or clang for GPUs)."""
    sync_batchnorm: bool = True
    """BatchNorm over the clips of all ranks, which waits for the GPU at each of its layers; on
    GPUs alone, CPU ranks normalise by their own."""
    channels_last: bool = True
    """Memory layout of activations; the faster one on CPUs and on tensor cores."""
    mixup_alpha: float = 0.0
    """Mixup: Beta(alpha, alpha) weights between pairs of clips; 0: off."""
    equaliser_db: float = 0.0
    """Random equaliser: standard deviation, in dB, of the smooth curve over the mel bands that a
    clip is given; 0: off."""
    num_time_masks: int = 0
    """SpecAugment: time masks per clip."""
    time_mask_frames: int = 60
    """SpecAugment: longest time mask, in frames."""
    num_mel_masks: int = 0
    """SpecAugment: frequency masks per clip."""
    mel_mask_bands: int = 16
    """SpecAugment: widest frequency mask, in mel bands."""
    label_smoothing: float = 0.0
    """Share s by which labels are drawn to a half, y (1 - s) + s / 2; 0: off, at most 0.5."""
    positive_weight: float = 0.0
    """Exponent p of the weight (negatives / positives) ** p that a tag's positives have in the
    loss, 100 at most; 0: off, 1: both sides weigh the same."""
    ema_decay: float = 0.0
    """Decay per step of an exponential moving average of the weights, which then is what is
    scored and saved, e.g. 0.999; 0: off."""
    early_stop_epochs: int = 0
    """Training ends after this many epochs without a better validation score, freeze_epochs not
    counted; 0: never."""
    valid_every_epochs: int = 1
    """Epochs from one scoring of the validation split to the next; the last is always scored."""
    max_bad_steps: int = 10
    """Steps whose loss or gradient is not finite that a run leaves out before it stops."""
    seed: int = 0
    """Seed of initial weights, epoch order, dropout and augmentation."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    loader_workers: int = 2
    """Reading processes per rank; 0 reads in the training process."""
    shuffle_window: int = 0
    """Shards whose clips are shuffled together; 0: all, the best shuffle. A few shards spare a
    slow disk its seeks, and let training on remote shards start before all have come."""
    on_bad_clip: str = "fail"
    """A damaged clip in the shards ends training ("fail") or is left out of it ("skip");
    scoring always fails on one."""
    max_bad_clips: float = 0.01
    """Share of the training clips that may be left out in an epoch before training fails."""
    cache_dir: str = ""
    """Where remote shards are kept; empty: the user's cache folder ($MSTAG_CACHE)."""
    cache_gb: float = 50.0
    """Bound of that folder, in GB."""
    s3_endpoint: str = ""
    """Address of an S3 service other than AWS; empty: as the environment says."""
    log_every_steps: int = 10
    """Steps between two lines of metrics."""
    checkpoint_every_s: float = 60.0
    """Seconds between two checkpoints within an epoch; each epoch's end writes one too."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch_size",
            "accumulate_steps",
            "log_every_steps",
            "keep_checkpoints",
            "valid_every_epochs",
        ):
            checks.at_least(f"train.{name}", getattr(self, name), 1)
        for name in (
            "weight_decay",
            "warmup_steps",
            "grad_clip",
            "mixup_alpha",
            "equaliser_db",
            "num_time_masks",
            "time_mask_frames",
            "num_mel_masks",
            "mel_mask_bands",
            "early_stop_epochs",
            "max_bad_steps",
            "seed",
            "loader_workers",
            "shuffle_window",
            "checkpoint_every_s",
        ):
            checks.at_least(f"train.{name}", getattr(self, name), 0)
        if not 0 < self.learning_rate < 10:
            raise ValueError(
                f"train.learning_rate = {self.learning_rate}: must be above 0 and below 10, "
                "e.g. 1e-4"
            )
        checks.at_least("train.freeze_epochs", self.freeze_epochs, -1)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"train.ema_decay = {self.ema_decay}: must be at least 0 (off) and below 1, "
                "because at 1 the average would never move; e.g. 0.999"
            )
        checks.within("train.label_smoothing", self.label_smoothing, 0.0, 0.5)
        checks.within("train.positive_weight", self.positive_weight, 0.0, 1.0)
        checks.within("train.max_bad_clips", self.max_bad_clips, 0.0, 1.0)
        if self.cache_gb <= 0:
            raise ValueError(f"train.cache_gb = {self.cache_gb}: must be above 0, e.g. 50")
        checks.one_of("train.on_bad_clip", self.on_bad_clip, ON_BAD_CLIP)
        checks.one_of("train.optimizer", self.optimizer, OPTIMIZERS)
        checks.one_of("train.schedule", self.schedule, SCHEDULES)
        checks.one_of("train.lr_scaling", self.lr_scaling, LR_SCALINGS)
        checks.one_of("train.precision", self.precision, PRECISIONS)
        checks.one_of("train.device", self.device, DEVICES)


@dataclass(frozen=True, slots=True, kw_only=True)
class WandbConfig:
    """[wandb] Tracking. The same numbers always go to metrics.jsonl too."""

    mode: str = "auto"
    """online, offline, disabled, or auto: online with an API key, else offline."""
    project: str = "mstag"
    """W&B project."""
    entity: str = ""
    """W&B team or user; empty: the account's default."""
    group: str = ""
    """W&B group, for runs that belong together; empty: the runs that differ in seed or fold only,
    and what watches and scores them."""
    audio_dir: str = ""
    """Folder of the clips' audio (data/NAME), a few of which can then be played in W&B; empty:
    none is sent."""

    def __post_init__(self) -> None:
        checks.one_of("wandb.mode", self.mode, WANDB_MODES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting of one experiment."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    shards: ShardsConfig = field(default_factory=ShardsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Reads a TOML file and applies ``section.key=value`` overrides to it.

    Raises:
        ValueError: no such file, not TOML, an unknown or ill-typed setting.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = ", ".join(sorted(str(other) for other in path.parent.glob("*.toml")))
        raise ValueError(
            f"config {path}: no such file; "
            + (f"there are {beside}" if beside else "name a TOML file such as configs/demo.toml")
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"config {path}: cannot be read ({error}); "
            "name a TOML file such as configs/demo.toml with --config"
        ) from None
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"config {path}: not valid TOML: {error}") from None
    changed = {name: dict(t) if isinstance(t, dict) else t for name, t in tables.items()}
    for override in overrides:
        apply_override(changed, override)
    try:
        return from_tables(changed)
    except ValueError as error:
        raise ValueError(f"{_culprit(path, tables)}: {error}") from None


def _culprit(path: Path, tables: dict[str, Any]) -> str:
    """Where a bad setting stands: in the file, or in what --set put on top of a good one."""
    try:
        from_tables(tables)
    except ValueError:
        return f"config {path}"
    return "--set"


def apply_override(tables: dict[str, Any], override: str) -> None:
    """Puts one ``section.key=value`` into ``tables``; value is TOML, or else a plain string."""
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise ValueError(
            f"--set {override!r}: must look like section.key=value, e.g. train.epochs=3"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table = tables.setdefault(section, {})
    if isinstance(table, dict):
        table[key] = value


def from_tables(tables: dict[str, Any]) -> Config:
    """Builds a Config from nested dicts (a parsed TOML file, or a stored checkpoint's).

    Raises:
        ValueError: an unknown section or field (naming the nearest), a wrong type, a bad value.
    """
    sections = {f.name: f.default_factory for f in dataclasses.fields(Config)}
    built: dict[str, Any] = {}
    for section, table in tables.items():
        if section not in sections:
            raise ValueError(checks.unknown(f"[{section}]", section, list(sections), "section"))
        if not isinstance(table, dict):
            raise ValueError(f"{section} = {table!r}: must be a section, written [{section}]")
        cls = sections[section]
        hints = get_type_hints(cls)
        for key, value in table.items():
            if key not in hints:
                raise ValueError(checks.unknown(f"{section}.{key}", key, list(hints), "setting"))
            table = {**table, key: checks.typed(f"{section}.{key}", value, hints[key])}
        built[section] = cls(**table)  # type: ignore[operator]
    return Config(**built)


def to_tables(config: Config) -> dict[str, dict[str, Any]]:
    """The inverse of :func:`from_tables`; tuples become lists, as JSON has them."""
    return {
        f.name: {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(getattr(config, f.name)).items()
        }
        for f in dataclasses.fields(config)
    }


def to_toml(config: Config) -> str:
    """The resolved config as TOML text, every field written out."""
    # JSON's strings, numbers, booleans and arrays of numbers are TOML's as well.
    return "\n".join(
        f"[{section}]\n"
        + "".join(f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in table.items())
        for section, table in to_tables(config).items()
    )


def difference(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> list[str]:
    """Lines ``section.key: old -> new`` for every setting in which two configs differ."""
    flat_old, flat_new = (
        {f"{section}.{key}": value for section, table in t.items() for key, value in table.items()}
        for t in (old, new)
    )
    return [
        f"{name}: {flat_old.get(name)!r} -> {flat_new.get(name)!r}"
        for name in {**flat_old, **flat_new}
        if flat_old.get(name) != flat_new.get(name)
    ]


def digest(value: object) -> str:
    """sha256 (hex) of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def features_digest(features: FeatureConfig) -> str:
    """Digest by which shards, checkpoints and bundles recognise the same features."""
    return digest(dataclasses.asdict(features))


def tags_digest(tag_names: list[str]) -> str:
    """Digest of the tag vocabulary in vector order."""
    return digest(tag_names)
