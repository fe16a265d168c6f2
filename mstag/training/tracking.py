"""Tracking: the same numbers in metrics.jsonl, which is the record, and in W&B, a view of it.

Nothing here stops or holds up a training: W&B that is missing, unreachable or broken is
said once, and metrics.jsonl goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from mstag import files
from mstag.config import WandbConfig
from mstag.data.store import Store
from mstag.training import lineage, runs, wandb_media
from mstag.training.wandb_media import Evaluation
from mstag.training.wandb_run import Line, WandbRun, guarded

log = logging.getLogger("mstag")

MAX_SHARE = 0.01
"""Of the training's time: what tracking may take of it."""
MEDIA_S = 3.0
"""What the media of one evaluation are taken to cost before the first have been made."""


class Tracker:
    """Logs the lines of a training. Leaving its ``with`` block ends it.

    Args:
        run: the run folder.
        config: ``[wandb]``.
        settings: what W&B shows as the run's config.
        num_lines: how many lines of metrics.jsonl the resumed run has behind it; later ones
            come from steps that will be done again, and are dropped.
        active: False on all ranks but the first: nothing is written or sent.
        store: the shards; None: evaluations are shown without their media.
    """

    def __init__(
        self,
        run: Path,
        config: WandbConfig,
        settings: dict[str, Any],
        *,
        num_lines: int = 0,
        active: bool = True,
        store: Store | None = None,
    ) -> None:
        self.path = run / "metrics.jsonl"
        self.num_lines = 0
        self._run, self._store, self._audio_dir = run, store, config.audio_dir
        self._stopwatch = Stopwatch()
        self._media_s = MEDIA_S
        self._last_report: dict[str, wandb_media.Report] = {}
        self._file: TextIO | None = None
        self._shown: WandbRun | None = None
        if not active:
            return
        lines = _keep_lines(self.path, num_lines)
        self.num_lines = len(lines)
        self._file = self.path.open("a", encoding="utf-8")
        past = [json.loads(line) for line in lines]
        if settings:
            files.write_text(run / runs.ABOUT, lineage.about(settings))
        self._shown = WandbRun(run, config, settings, job="train", record=self.path, past=past)
        if store is not None:
            self._shown.use(lambda: [lineage.shards_artifact(store)])
        self._stopwatch = Stopwatch()

    def log(self, values: Line) -> None:
        """Records one line; NaN and infinities become null, as JSON has neither."""
        with self._stopwatch.running():
            self._log(values)

    def evaluation(
        self, values: Line, evaluation: Evaluation, *, is_best: bool = False, is_last: bool = False
    ) -> None:
        """Records the line of an evaluation, and shows what lies behind it in W&B.

        The table of tags is always shown. Curves and clips take a second or two: those of the
        last evaluation of a split are always made, and those of a new best one where they
        keep to MAX_SHARE of the time, with as much again put by for the last two.
        """
        if self._file is None:
            return
        with self._stopwatch.running():
            media: Line = {}
            if self._shown is not None and self._shown.is_alive and self._store is not None:
                affordable = self._stopwatch.share(3 * self._media_s) <= MAX_SHARE
                in_full = is_last or (is_best and affordable)
                media = self._media(evaluation, self._store, in_full=in_full)
            self._log(values | {"track/share": self._stopwatch.share()}, media)

    def _media(self, evaluation: Evaluation, store: Store, *, in_full: bool) -> Line:
        started = time.monotonic()
        before = self._last_report.get(evaluation.split)
        self._last_report[evaluation.split] = evaluation.report
        media = guarded(lambda: wandb_media.tag_table(evaluation, before), "table of tags") or {}
        if in_full:
            made = guarded(
                lambda: wandb_media.all_media(evaluation, store, self._audio_dir),
                "curves and clips",
            )
            media |= made or {}
            self._media_s = time.monotonic() - started
        return media

    def bundle(self, folder: Path) -> None:
        """Hands a run's best bundle to W&B, as the newest version of its model."""
        if self._shown is not None:
            with self._stopwatch.running():
                name = self._run.absolute().name
                self._shown.hand_over(
                    lambda: lineage.bundle_artifact(folder, name), ["best", "latest"]
                )

    def _log(self, values: Line, media: Line | None = None) -> None:
        if self._file is None:
            return
        line = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self.num_lines += 1
        if self._shown is not None:
            self._shown.log(line, media)

    @property
    def dashboard(self) -> str:
        """Where to look at the run: a URL, or the command that uploads an offline run."""
        return str(self.path) if self._shown is None else self._shown.where

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk, which log() has reported
                self._file.close()
        if self._shown is not None:
            share, seconds = self._stopwatch.share(), self._stopwatch.seconds
            self._shown.summarize({"track/share": share, "track/seconds": seconds})
            self._shown.finish(failed=kind is not None)


class Stopwatch:
    """What something takes of the time since the watch was made."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._made = clock()
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time inside."""
        started = self._clock()
        try:
            yield
        finally:
            self.seconds += self._clock() - started

    def share(self, more_s: float = 0.0) -> float:
        """The share of what was counted, and of ``more_s`` besides, in all the time."""
        return (self.seconds + more_s) / max(self._clock() - self._made, 1e-9)


def show_evaluation(
    run: Path,
    settings: dict[str, Any],
    config: WandbConfig,
    store: Store,
    evaluation: Evaluation,
    *,
    epoch: float,
    label: str = "",
) -> None:
    """Shows the scores of a run's best bundle as a W&B run of their own, beside the training.

    Args:
        run: the run folder.
        settings: what W&B shows as the run's config.
        config: ``[wandb]``.
        store: the shards that were scored.
        evaluation: their scores.
        epoch: after which the bundle was saved.
        label: see ``score.label_of``; empty: the split.
    """
    label, report = label or evaluation.split, evaluation.report
    record = run / f"eval-{label}.json"
    shown = WandbRun(run, config, settings, job="eval", record=record, past=[])
    if not shown.is_alive:
        return
    name = run.absolute().name
    shown.use(lambda: [lineage.shards_artifact(store), lineage.bundle_artifact(run / "best", name)])
    line = {f"{label}/{key}": report[key] for key in ("roc_auc", "pr_auc", "loss")}
    media = guarded(lambda: wandb_media.tag_table(evaluation, None), "table of tags") or {}
    made = guarded(lambda: wandb_media.all_media(evaluation, store, config.audio_dir), "clips")
    shown.log({"epoch": epoch} | line, media | (made or {}))
    log.info(f"W&B: {shown.where}")
    shown.finish(failed=False)


def _keep_lines(path: Path, num_lines: int) -> list[str]:
    """Cuts a file down to its first lines and returns them."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[:num_lines]
    except FileNotFoundError:
        lines = []
    files.write_text(path, "".join(line + "\n" for line in lines))
    return lines
