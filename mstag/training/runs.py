"""A run folder: opened, refused, moved aside, finished. Its layout is DESIGN 3.6.

``finished.json`` is written last: a run that has it is done, one that lacks it was cut short.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

from mstag import config, files
from mstag.data.shards import Manifest
from mstag.data.store import Store, open_store

log = logging.getLogger("mstag")

CONFIG = "config.toml"
CHECKPOINTS = "checkpoints"
BEST = "best"
FINISHED = "finished.json"
ABOUT = "about.json"
"""Code, data, network and machine of the last session: see lineage.py."""
OWN_FILES = (CONFIG, FINISHED, ABOUT, "metrics.jsonl", "eval-test.json", "scores-test.npz")
"""What the training writes into the folder itself."""


def open_run(run: Path, settings: config.Config, *, fresh: bool) -> None:
    """Makes the folder of a run and writes its settings into it.

    With ``fresh``, an earlier run in it moves to ``RUN.1`` etc. A finished run that trains on
    is no longer finished.

    Raises:
        ValueError: the folder holds something else than a run.
    """
    check_place(run)
    files.remove_leftovers(run, OWN_FILES)
    if fresh and (run / CONFIG).exists():
        aside = free_name(run)
        run.rename(aside)
        log.info(f"moved the earlier run aside: {aside}")
    run.mkdir(parents=True, exist_ok=True)
    (run / FINISHED).unlink(missing_ok=True)
    files.write_text(run / CONFIG, config.to_toml(settings))


def check_place(run: Path) -> None:
    """Refuses a folder in which there cannot be a run, changing nothing.

    Raises:
        ValueError: it holds something else, or is none.
    """
    for place in (run, *run.absolute().parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"--out {run}: {place} is a file; name a folder for the run")
    if not run.is_dir() or (run / CONFIG).exists():
        return
    # A start that was killed may have left the half of a config.
    if any(not path.name.startswith(f".{CONFIG}.") for path in run.iterdir()):
        raise ValueError(
            f"--out {run}: holds files but no {CONFIG}, so it is not a run; name another folder"
        )


def default_folder(name: str) -> Path:
    """Where the run of a dataset goes; each trial of a W&B sweep has a folder of its own."""
    sweep, trial = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    return Path("runs") / f"{name}-sweep" / trial if sweep and trial else Path("runs") / name


def free_name(run: Path) -> Path:
    """The first of RUN.1, RUN.2, ... that does not exist."""
    number = 1
    while (aside := run.with_name(f"{run.name}.{number}")).exists():
        number += 1
    return aside


def read_config(run: Path) -> config.Config:
    """The settings of a run."""
    return config.load_config(run / CONFIG)


def finish(run: Path, outcome: dict[str, Any]) -> None:
    """Marks a run as done; ``outcome`` says what it came to."""
    files.write_text(run / FINISHED, json.dumps(outcome, indent=1) + "\n")


def is_finished(run: Path) -> bool:
    """Whether the run's training has ended by itself."""
    return (run / FINISHED).exists()


def open_shards(where: str | None, name: str, settings: config.TrainConfig) -> Store:
    """Opens shards for training or scoring.

    Args:
        where: a folder or an address; None: ``shards/NAME``.
        name: of the dataset.
        settings: the cache for remote shards, the S3 endpoint.
    """
    return open_store(
        where or Path("shards") / name,
        cache_folder=settings.cache_dir,
        cache_gb=settings.cache_gb,
        s3_endpoint=settings.s3_endpoint,
    )


def check_shards(folder: Path | str, manifest: Manifest, settings: config.Config) -> None:
    """Refuses shards that are not what the config describes, or too few to train on.

    Raises:
        ValueError: another dataset or other features, an empty split, less than one batch.
    """
    remedy = "pack them again (`make shards`), or name the folder that fits with --shards"
    if manifest.dataset != settings.dataset.name:
        raise ValueError(
            f"shards {folder}: hold the dataset {manifest.dataset!r}, the config says "
            f"dataset.name = {settings.dataset.name!r}: {remedy}"
        )
    packed = {"features": dataclasses.asdict(manifest.features)}
    wanted = {"features": dataclasses.asdict(settings.features)}
    changed = config.difference(packed, wanted)
    if changed:
        raise ValueError(
            f"shards {folder}: packed with other features than the config's "
            f"({'; '.join(changed)}): {remedy}"
        )
    for split in ("train", "valid"):
        require_split(folder, manifest, split)
    num_clips = manifest.splits["train"].clips
    if num_clips < settings.train.batch_size:
        raise ValueError(
            f"shards {folder}: {num_clips} training clips are less than one batch "
            f"(train.batch_size = {settings.train.batch_size}): take a smaller batch"
        )


def require_split(folder: Path | str, manifest: Manifest, split: str) -> None:
    """Refuses a split that is not there or has no clips.

    Raises:
        ValueError: says which splits there are.
    """
    if not has_clips(manifest, split):
        sizes = ", ".join(f"{name} {part.clips}" for name, part in manifest.splits.items())
        raise ValueError(
            f"shards {folder}: no clips in split {split!r} (clips: {sizes}); name one of these, or "
            "choose another split rule or sizes (dataset.split, dataset.split_sizes) and pack again"
        )


def has_clips(manifest: Manifest, split: str) -> bool:
    """Whether there is such a split with a clip in it."""
    return split in manifest.splits and manifest.splits[split].clips > 0


def dataset_card(
    manifest: Manifest, kind: str, origin: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What a bundle says of the data that it was trained on.

    Args:
        manifest: of the shards.
        kind: ``dataset.kind``.
        origin: card of the bundle that training began from, if it did.
    """
    return {
        "name": manifest.dataset,
        "kind": kind,
        "digest": manifest.digest,
        "clips": {name: split.clips for name, split in manifest.splits.items()},
        "oracle_roc_auc": manifest.oracle_roc_auc,
        "split_rule": manifest.split_rule,
        "leaks": manifest.leaks,
        **({"fine_tuned_from": origin} if origin else {}),
    }


def ending(
    run: Path, report: dict[str, Any] | None, dashboard: str, features: config.FeatureConfig
) -> str:
    """What train.py says last: the test scores, what they are worth, where to look."""
    lines = []
    if report is not None:
        oracle = report["oracle_roc_auc"]
        lines = [
            score_line(report),
            "oracle that hears nothing: ROC-AUC "
            + ("unknown" if oracle is None else f"{oracle:.4f}")
            + f" on this split ({report['split_rule']})",
        ]
    lines += [
        f"run:       {run}",
        f"dashboard: {dashboard}",
        f"report:    mstag report {run}",
        f"tag music: mstag tag YOUR_MUSIC --model {run / BEST}"
        if features.recipe != "unknown"
        else "tag music: not with these weights: how their spectrograms were made is unknown",
    ]
    return "\n".join(lines)


def score_line(report: dict[str, Any]) -> str:
    """One line for people: ROC-AUC and PR-AUC with their intervals, loss, clips."""
    text = "  ".join(
        f"{name} {_with_interval(report[key], report[f'{key}_ci'])}"
        for name, key in (("ROC-AUC", "roc_auc"), ("PR-AUC", "pr_auc"))
    )
    skipped = len(report["skipped_tags"])
    note = f"  ({skipped} tags without a score)" if skipped else ""
    return f"{report['split']}: {text}  loss {report['loss']:.4f}  {report['clips']} clips{note}"


def _with_interval(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")
