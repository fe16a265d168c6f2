"""Checkpoints of a run: atomic, versioned, whole or passed over.

``checkpoints/step-NNNNNNNN.pt`` is what torch.save makes of plain tensors, numbers and
strings, followed by 44 bytes of ours: a mark and the sha256 of everything before it.
``torch.load(path, weights_only=True)`` reads it as it stands; nothing in it is executed.

    format_version, step                                    whole numbers
    config                                                  every setting, as tables
    dataset, features, tags, *_digest                       the data: see mstag.training.identity
    origin                                                  what it began from, if from a bundle
    progress, loader, engine                                where the run is: all of resuming
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mstag import config, files

log = logging.getLogger("mstag")

FORMAT_VERSION = 2
MARK = b"mstag sha256"
NUM_TRAILER_BYTES = len(MARK) + 32
NAME = re.compile(r"step-([0-9]{8,18})\.pt")


class NewerFormatError(ValueError):
    """A checkpoint of a later mstag; passing over it would throw its training away."""


def save(folder: Path, state: Mapping[str, Any], *, keep: int) -> Path:
    """Writes ``state`` as the newest checkpoint and removes all but the ``keep`` newest.

    Those of later steps, which a run that was resumed has passed over, stay and do not count.

    Args:
        folder: ``RUN/checkpoints``; nobody else may be writing to it.
        state: has "step", and values that torch.load(weights_only=True) accepts.
        keep: how many to leave.

    Raises:
        OSError: it cannot be written (a full disk); earlier checkpoints are untouched.
    """
    import torch

    step = state["step"]
    path = folder / f"step-{step:08d}.pt"
    try:
        files.remove_leftovers(folder)  # of a save that was killed: as large as a checkpoint
        with files.atomic_path(path) as temporary, temporary.open("wb") as file:
            writer = _Hashing(file)
            content = {**state, "format_version": FORMAT_VERSION}
            torch.save(content, writer)  # type: ignore[arg-type]  # write() is all it needs
            file.write(MARK + writer.digest())
    except OSError as error:
        older = [number for p in paths(folder) if (number := step_of(p)) < step]
        stays = f"the checkpoint of step {older[0]} stays" if older else "there is none before it"
        raise OSError(
            error.errno,
            f"checkpoint {path}: cannot be written ({error.strerror or error}); {stays}: mend "
            "that (make room on the disk) and start the same command again, which goes on from "
            "the newest checkpoint",
        ) from error
    for old in [p for p in paths(folder) if step_of(p) <= step][keep:]:
        try:
            old.unlink(missing_ok=True)
        except OSError as error:
            log.warning(f"checkpoint {old}: cannot be removed ({error.strerror})")
    return path


class _Hashing:
    """A file for torch.save that digests what passes through, so that it is not read again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._error: BaseException | None = None

    def write(self, data: memoryview) -> int:
        # An exception would be lost: torch's writer, which calls this, replaces it by a
        # RuntimeError of its own. It is told that all is well, and digest() raises.
        if self._error is None:
            try:
                self._file.write(data)
                self._sha256.update(data)
            except BaseException as error:
                self._error = error
        return len(data)

    def flush(self) -> None:
        """Nothing to do: the file is flushed when it is closed."""

    def digest(self) -> bytes:
        """sha256 of all that was written; raises what went wrong on the way."""
        if self._error is not None:
            raise self._error
        return self._sha256.digest()


def paths(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first; whether they are whole shows on loading."""
    named = [path for path in folder.glob("step-*.pt") if NAME.fullmatch(path.name)]
    return sorted(named, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step that a checkpoint's name tells."""
    match = NAME.fullmatch(path.name)
    assert match, path
    return int(match[1])


def load(path: Path) -> dict[str, Any]:
    """Reads one checkpoint onto the CPU, upgraded to this version of the format.

    Raises:
        ValueError: cut short, damaged, or no checkpoint at all.
        NewerFormatError: of a format that this version does not know.
        OSError: the file cannot be read.
    """
    import torch

    with path.open("rb") as file:
        if not _is_whole(file):
            raise ValueError(f"checkpoint {path}: cut short or damaged (its sha256 does not match)")
        file.seek(0)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # of the many kinds that foreign content may raise
            # Not torch's own words, which propose to execute what is in the file.
            reason = f"torch refuses it: {type(error).__name__}"
            raise ValueError(f"checkpoint {path}: not written by mstag ({reason})") from None
    version = state.get("format_version") if isinstance(state, dict) else None
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"checkpoint {path}: not written by mstag (format version {version!r})")
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"checkpoint {path}: format version {version}, this mstag reads up to "
            f"{FORMAT_VERSION}; go on with the mstag that wrote it (or a newer one), or start "
            "anew with --fresh (`FRESH=1`), which moves this run aside"
        )
    for old in range(version, FORMAT_VERSION):
        state = {**UPGRADES[old](state), "format_version": old + 1}
    return dict(state)


def _is_whole(file: BinaryIO) -> bool:
    """Whether a file ends with our mark and the sha256 of all before it; read in blocks."""
    num_bytes = file.seek(0, 2) - NUM_TRAILER_BYTES
    if num_bytes < 0:
        return False
    file.seek(0)
    sha256 = hashlib.sha256()
    while num_bytes:
        block = file.read(min(num_bytes, 1 << 20))
        if not block:
            return False
        sha256.update(block)
        num_bytes -= len(block)
    return file.read(NUM_TRAILER_BYTES) == MARK + sha256.digest()


def upgrade_1_to_2(state: dict[str, Any]) -> dict[str, Any]:
    """Version 2 has the words behind the digests, averaged weights, and which steps were bad."""
    features = state["config"]["features"]
    known = config.digest(features) == state["features_digest"]
    engine = dict(state["engine"])
    # One row of sums per rank, and the number of steps among them.
    sums = engine["sums"].new_tensor([[*engine["sums"].tolist(), engine.pop("num_steps")]])
    return {
        **state,
        "dataset": state["config"]["dataset"]["name"],
        "features": features if known else None,
        "tags": None,
        "engine": {**engine, "sums": sums, "ema": None, "news": [], "bad_steps": []},
    }


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: upgrade_1_to_2}
"""By version: what makes a state of the next one out of it."""


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint, or None where there is none at all.

    Those that are damaged or cannot be read are passed over, each named in the log.

    Raises:
        ValueError: there are checkpoints, and not one is whole.
        NewerFormatError: the newest whole one is of a later mstag.
    """
    candidates = paths(folder)
    for path in candidates:
        try:
            return load(path)
        except NewerFormatError:
            raise
        except ValueError as error:
            log.warning(f"{error}: passed over")
        except OSError as error:
            log.warning(f"checkpoint {path}: cannot be read ({error.strerror}): passed over")
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

    def is_over(self, settings: config.TrainConfig) -> bool:
        """Whether no epoch is left, or the score has not risen for too many of them."""
        # A backbone that is frozen for some epochs has its turn after them.
        stale = self.epoch - max(self.best_epoch, settings.freeze_epochs)
        early = 0 < settings.early_stop_epochs <= stale
        return self.epoch >= settings.epochs or early

    def is_scored_next(self, settings: config.TrainConfig) -> bool:
        """Whether the epoch that is about to end is one after which the validation split is scored.

        The last one always is, and with it the one that patience would end the run with.
        """
        next_one = dataclasses.replace(self, epoch=self.epoch + 1)
        every = settings.valid_every_epochs
        return next_one.epoch % every == 0 or next_one.is_over(settings)

    def note_score(self, roc_auc: float | None) -> bool:
        """Takes the validation score of the epoch just done; returns whether it is the best.

        The first that is scored is always kept, so that there is a bundle even where no tag of the
        validation split has both positives and negatives.
        """
        better = roc_auc is not None and (self.best_roc_auc is None or roc_auc > self.best_roc_auc)
        if self.best_epoch and not better:
            return False
        self.best_roc_auc, self.best_epoch = roc_auc, self.epoch
        return True
