"""Checkpoints of a run: atomic, versioned, whole or passed over, refusing what changed.

``checkpoints/step-NNNNNNNN.pt`` is what torch.save makes of plain tensors, numbers and
strings, followed by 44 bytes of ours: a mark and the sha256 of everything before it.
``torch.load(path, weights_only=True)`` reads it as it stands; nothing in it is executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mstag import config, files
from mstag.data.shards import Manifest

log = logging.getLogger("mstag")

FORMAT_VERSION = 1
MARK = b"mstag sha256"
NUM_TRAILER_BYTES = len(MARK) + 32

FREE_SETTINGS = (
    "shards.",  # how clips were packed: what it led to is in the dataset's digest
    "wandb.",
    "train.device",
    "train.loader_workers",
    "train.max_bad_clips",
    "train.cache_",
    "train.s3_endpoint",
    "train.log_every_steps",
    "train.checkpoint_every_s",
    "train.keep_checkpoints",
)
"""Settings that a resumed run may change, because they do not change what is learnt.

``train.epochs`` may grow as well, unless the schedule is "cosine", whose learning rates
depend on it from the first step. ``train.precision`` may not, even if "auto" resolves to
another one on another device: that is the machine's doing, and is logged.
"""


def identity(settings: config.Config, manifest: Manifest) -> dict[str, Any]:
    """What a run is a run of: its settings and the digests of its data."""
    return {
        "config": config.to_tables(settings),
        "dataset_digest": manifest.digest,
        "features_digest": manifest.features_digest,
        "tags_digest": manifest.tags_digest,
    }


def check_identity(stored: Mapping[str, Any], current: Mapping[str, Any], run: Path) -> None:
    """Refuses to go on with a run under other settings, features, tags or data.

    Raises:
        ValueError: names every difference that changes the result, and the ways out.
    """
    remedy = "put it back, or start anew with --fresh (`FRESH=1`), which moves this run aside"
    changed = changes(stored["config"], current["config"])
    if changed:
        raise ValueError(
            f"run {run}: its settings have changed ({'; '.join(changed)}), so it cannot go on: "
            f"{remedy}"
        )
    for name in ("features", "tags", "dataset"):
        before, now = stored[f"{name}_digest"], current[f"{name}_digest"]
        if before != now:
            raise ValueError(
                f"run {run}: the {name} of the shards differ from those it was trained on "
                f"(digest {before[:12]} -> {now[:12]}): {remedy}"
            )


def changes(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> list[str]:
    """Differences between two configs that change what a run learns, as readable lines."""
    lines = [line for line in config.difference(old, new) if not line.startswith(FREE_SETTINGS)]
    longer = new["train"]["epochs"] > old["train"]["epochs"]
    if longer and new["train"]["schedule"] != "cosine":
        lines = [line for line in lines if not line.startswith("train.epochs:")]
    return lines


def save(folder: Path, state: Mapping[str, Any], *, keep: int) -> Path:
    """Writes ``state`` as the newest checkpoint and removes all but the ``keep`` newest.

    Args:
        folder: ``RUN/checkpoints``.
        state: has "step", and values that torch.load(weights_only=True) accepts.
        keep: how many to leave.
    """
    import torch

    path = folder / f"step-{state['step']:08d}.pt"
    with files.atomic_path(path) as temporary:
        torch.save({**state, "format_version": FORMAT_VERSION}, temporary)
        digest = hashlib.sha256(temporary.read_bytes()).digest()
        with temporary.open("ab") as file:
            file.write(MARK + digest)
    for old in paths(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def paths(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first; whether they are whole shows on loading."""
    # By length first: the number has eight digits or, in a very long run, more.
    return sorted(folder.glob("step-*.pt"), key=lambda p: (len(p.name), p.name), reverse=True)


def load(path: Path) -> dict[str, Any]:
    """Reads one checkpoint onto the CPU.

    Raises:
        ValueError: cut short, damaged, or of a format that this version does not know.
        OSError: the file cannot be read.
    """
    import torch

    content = path.read_bytes()
    body, trailer = content[:-NUM_TRAILER_BYTES], content[-NUM_TRAILER_BYTES:]
    if trailer != MARK + hashlib.sha256(body).digest():
        raise ValueError(f"checkpoint {path}: cut short or damaged (its sha256 does not match)")
    state: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    version = state.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"checkpoint {path}: format version {version!r}, this mstag reads {FORMAT_VERSION}; "
            "go on with the mstag that wrote it, or start anew with --fresh"
        )
    return state


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint, or None where there is none at all.

    Damaged ones are passed over, each named in the log.

    Raises:
        ValueError: there are checkpoints, and not one is whole.
    """
    candidates = paths(folder)
    for path in candidates:
        try:
            return load(path)
        except ValueError as error:
            log.warning(f"{error}: passed over")
    if candidates:
        raise ValueError(
            f"{folder}: none of its {len(candidates)} checkpoints is whole: start anew with "
            "--fresh (`FRESH=1`), which moves this run aside"
        )
    return None


@dataclasses.dataclass(slots=True)
class Progress:
    """Where a run is; with the engine's and the loader's state it is all that resuming takes."""

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    """Epochs done, their validation included."""
    clips_seen: int = 0
    """Clips trained on, repetitions counted."""
    num_lines: int = 0
    """Lines of metrics.jsonl written."""
    best_roc_auc: float | None = None
    """Highest macro ROC-AUC on the validation split; None: none yet, or undefined."""
    best_epoch: int = 0
    """Epoch (counted from 1) that reached it; 0: none yet."""

    def note_score(self, roc_auc: float | None) -> bool:
        """Takes the validation score of the epoch just done; returns whether it is the best.

        The first epoch is always kept, so that there is a bundle even where no tag of the
        validation split has both positives and negatives.
        """
        better = roc_auc is not None and (self.best_roc_auc is None or roc_auc > self.best_roc_auc)
        if self.best_epoch and not better:
            return False
        self.best_roc_auc, self.best_epoch = roc_auc, self.epoch
        return True
