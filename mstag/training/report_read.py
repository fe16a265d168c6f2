"""A run folder -> what there is to report on it. Nothing is computed or drawn here.

A training that is going on, or that was scored by somebody else, lacks some of the files: what
is missing is None, and what is damaged is said on the page instead of the section it was for.
"""

from __future__ import annotations

import json
import math
import os
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

SPLITS = ("test", "valid")
"""The splits that a report shows, the one that counts first."""
DAMAGED_NPZ = (
    *(OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError),
    *(NotImplementedError, zipfile.BadZipFile, zlib.error),
)
"""What numpy and zipfile raise over files that are not what they seem."""
INTERVALS = ("roc_auc_ci", "pr_auc_ci")


@dataclass(frozen=True, slots=True)
class Scores:
    """What a run's best model said of each clip of a split."""

    split: str
    ids: list[str]
    scores: NDArray[np.float32]
    """(n, t), 0 to 1."""
    labels: NDArray[np.uint8]
    """(n, t), 0 or 1."""
    mask: NDArray[np.uint8] | None
    """(n, t), 1 = known; None: all are."""

    def known(self, tag: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Labels and scores of one tag, where the label is known."""
        if self.mask is None:
            return self.labels[:, tag], self.scores[:, tag]
        rows = self.mask[:, tag].astype(bool)
        return self.labels[rows, tag], self.scores[rows, tag]

    def all_known(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Labels and scores of all tags in one, where the label is known."""
        if self.mask is None:
            return self.labels.ravel(), self.scores.ravel()
        cells = self.mask.astype(bool)
        return self.labels[cells], self.scores[cells]


@dataclass(frozen=True, slots=True)
class Run:
    """A run, read."""

    name: str
    """Unlike those of the other runs on the page."""
    folder: Path
    rows: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    evals: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Split -> eval report, checked."""
    scores: Scores | None = None
    """Of the first of SPLITS that has both a report and scores; as many tags as the report."""
    settings: dict[str, str] | None = None
    """section.key -> value."""
    about: dict[str, Any] = field(default_factory=dict)
    """about.json: code, network, machine; as far as it is JSON."""
    tagger: dict[str, Any] | None = None
    """tagger.json of the best bundle, as far as it is JSON."""
    is_finished: bool = False
    damage: list[str] = field(default_factory=list)
    """What could not be read, and what to do."""

    @property
    def report(self) -> dict[str, Any] | None:
        """The eval report that counts: on test, else on valid."""
        return next((self.evals[split] for split in SPLITS if split in self.evals), None)

    @property
    def tag_names(self) -> list[str]:
        """In vector order; empty where nothing was scored."""
        return [tag["tag"] for tag in self.report["per_tag"]] if self.report else []

    @property
    def dataset(self) -> dict[str, Any]:
        """What the run says of its data: the eval report's words, or else the bundle's."""
        report = self.report or {}
        if report.get("dataset"):
            return {**report, "name": report["dataset"], "digest": report.get("dataset_digest")}
        card = (self.tagger or {}).get("dataset")
        return card if isinstance(card, dict) else {}

    @property
    def thresholds(self) -> NDArray[np.float64] | None:
        """Of the best bundle, (t,) in the order of ``tag_names``; None where there are none."""
        tagger = self.tagger or {}
        if tagger.get("tags") != self.tag_names:
            return None
        try:
            found = np.array([float(value) for value in tagger["thresholds"]])
        except (KeyError, TypeError, ValueError):
            return None
        return found if found.shape == (len(self.tag_names),) else None


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads runs; names that several of them share are replaced by their paths.

    Raises:
        ValueError: a folder is not a run, or its metrics.jsonl is damaged.
    """
    names = [folder.absolute().name for folder in folders]
    if len(set(names)) < len(names):
        names = [os.path.normpath(folder) for folder in folders]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{', '.join(sorted(twice))}: named twice; a run is compared with others")
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """Reads one run; only without a whole metrics.jsonl it raises ValueError."""
    rows = read_metrics(folder)
    damage: list[str] = []

    def attempt(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except ValueError as error:
            damage.append(str(error))
            return None

    found = {split: attempt(partial(read_eval, folder, split)) for split in SPLITS}
    evals = {split: report for split, report in found.items() if report}
    scores = None
    for split, report in evals.items():
        if scores is None:
            scores = attempt(partial(read_scores, folder, split, len(report["per_tag"])))
    about = attempt(partial(_read_object, folder / "about.json", "it is not shown"))
    return Run(
        name=name,
        folder=folder,
        rows=rows,
        evals=evals,
        scores=scores,
        settings=attempt(partial(_read_settings, folder / "config.toml")),
        about=about or {},
        tagger=attempt(partial(_read_object, folder / "best" / "tagger.json", "train anew")),
        is_finished=(folder / "finished.json").exists(),
        damage=damage,
    )


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line cut short is left out.

    Raises:
        ValueError: there is none, so it is no run; or a line is damaged.
    """
    path = run / "metrics.jsonl"
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        raise ValueError(
            f"{run}: no metrics.jsonl, so it is not a run; name a folder such as runs/demo"
        ) from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            raise ValueError(
                f"{path}: line {number} is damaged (not a JSON object), so later ones cannot be "
                "trusted; restore the file or remove the line"
            )
    return rows


def read_eval(run: Path, split: str) -> dict[str, Any] | None:
    """A run's eval report on a split, or None when it was not scored.

    Raises:
        ValueError: it is damaged.
    """
    path = run / f"eval-{split}.json"
    remedy = f"run eval.py --split {split} again"
    report = _read_object(path, remedy)
    if report is None:
        return None
    try:
        report["clips"] = int(report["clips"])
        parts = [report, *report["per_tag"]]
        for part in parts:
            for key in ("roc_auc", "pr_auc"):
                part[key] = None if part[key] is None else _finite(part[key])
            for key in INTERVALS:
                part[key] = part.get(key) and [_finite(end) for end in part[key]][:2]
        for part in report["per_tag"]:
            part["tag"], part["positives"] = str(part["tag"]), int(part["positives"])
        oracle, leaks = report.get("oracle_roc_auc"), report.get("leaks")
        report["oracle_roc_auc"] = None if oracle is None else _finite(oracle)
        report["leaks"] = None if leaks is None else checked_leaks(leaks)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error!r}); {remedy}") from None
    return report


def read_scores(run: Path, split: str, num_tags: int) -> Scores | None:
    """A run's scores-<split>.npz, or None when there is none.

    Raises:
        ValueError: it is damaged, or of another number of tags.
    """
    path = run / f"scores-{split}.npz"
    if not path.exists():
        return None
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            scores, labels = np.asarray(file["scores"], np.float32), np.asarray(file["labels"])
            ids = [str(clip) for clip in file["ids"]]
            mask = np.asarray(file["mask"]) if "mask" in file else None
        shape = (len(ids), num_tags)
        for array in (scores, labels, *([] if mask is None else [mask])):
            if array.shape != shape:
                raise ValueError(f"an array of shape {array.shape}, expected {shape}")
        if not (np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()):
            raise ValueError("scores outside 0 to 1")
        if not all(np.isin(array, (0, 1)).all() for array in (labels, mask) if array is not None):
            raise ValueError("labels that are not 0 or 1")
    except DAMAGED_NPZ as error:
        raise ValueError(f"{path}: damaged ({error}); run eval.py --split {split} again") from None
    known = None if mask is None else mask.astype(np.uint8)
    return Scores(split, ids, scores, labels.astype(np.uint8), known)


def checked_leaks(leaks: Any) -> dict[str, dict[str, float | None]]:
    """A leak report with numbers where numbers belong.

    Raises:
        ValueError, TypeError, AttributeError: it is something else.
    """
    return {
        str(split): {
            str(kind): None if share is None else _finite(share) for kind, share in kinds.items()
        }
        for split, kinds in leaks.items()
    }


def number(value: Any) -> float | None:
    """A number from JSON as one that can be drawn; None: it is something else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        return None
    return float(value)


def _read_object(path: Path, remedy: str) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({error}); {remedy}") from None
    return content


def _read_settings(path: Path) -> dict[str, str] | None:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error}); its settings are not shown") from None
    return {
        f"{section}.{key}": str(value)
        for section, fields in tables.items()
        if isinstance(fields, dict)
        for key, value in fields.items()
    }


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} where a number belongs")
    return number
