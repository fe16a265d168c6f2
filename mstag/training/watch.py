"""Following a run from outside: each new checkpoint is scored once, oldest first.

The run may be trained by another process or, over a shared folder, by another machine. All
that is known of it is what lies in its folder, and clocks are never compared: something has
changed when it looks different from the last time.

``RUN/watch.jsonl`` has one line per scored checkpoint and makes "once" true across restarts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mstag import config, console
from mstag.data.store import Store
from mstag.models import build_model
from mstag.runtime import Ranks
from mstag.training import checkpoint, identity, lineage, runs, score
from mstag.training.wandb_run import WandbRun

log = logging.getLogger("mstag")

RECORD = "watch.jsonl"
POLL_EVERY_S = 2.0
GRACE_S = 90.0
"""How long the last checkpoint of a finished run may take to show up: clients of a shared
folder remember its listing for up to a minute."""


class UnusableError(Exception):
    """A checkpoint that cannot be scored, and why; the watch goes on without it."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look at a run folder showed."""

    outcome: dict[str, Any] | None
    """Content of finished.json; None: the training has not ended by itself."""
    has_config: bool
    """Whether a training has begun there."""
    checkpoints: dict[int, Path]
    """By step, oldest first."""
    marks: dict[str, tuple[int, int]]
    """(bytes, time of change in ns) of the files that a living training changes."""


def look(run: Path) -> Sight:
    """Looks at a run folder once; what is not there, or cannot be read now, is left out."""
    # Asked before listing: a run that finishes in between has its last checkpoint there.
    outcome = _read_outcome(run)
    checkpoints: list[Path] = []
    with contextlib.suppress(OSError):
        checkpoints = checkpoint.paths(run / runs.CHECKPOINTS)[::-1]
    own = [run / name for name in (runs.CONFIG, "metrics.jsonl", runs.FINISHED)]
    marks = {}
    for path in [*own, *checkpoints]:
        with contextlib.suppress(OSError):
            status = path.stat()
            marks[path.name] = status.st_size, status.st_mtime_ns
    return Sight(
        outcome=outcome,
        has_config=runs.CONFIG in marks,
        checkpoints={checkpoint.step_of(path): path for path in checkpoints},
        marks=marks,
    )


def _read_outcome(run: Path) -> dict[str, Any] | None:
    try:
        outcome = json.loads((run / runs.FINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return outcome if isinstance(outcome, dict) else None


def read_record(run: Path) -> list[dict[str, Any]]:
    """The lines of RUN/watch.jsonl; those that a killed watcher left unfinished do not count."""
    try:
        texts = (run / RECORD).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    lines = []
    for text in texts:
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


class Patience:
    """How long a run folder has looked the same, by this machine's own steady clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: object = None
        self._since = clock()

    def note(self, seen: object) -> None:
        """Takes what the folder looks like now."""
        if seen != self._seen:
            self._seen, self._since = seen, self._clock()

    @property
    def idle_s(self) -> float:
        """Seconds since it last looked different."""
        return self._clock() - self._since


def weights_to_score(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """What of a checkpoint is scored: the averaged weights where it has them, as in training."""
    engine = state["engine"]
    weights: dict[str, Tensor] = (engine.get("ema") or engine)["model"]
    return weights


def read_state(path: Path) -> dict[str, Any]:
    """Reads a checkpoint that can be scored.

    Raises:
        UnusableError: removed in the meantime, damaged, unreadable, or with weights that are
            not finite.
        mstag.training.checkpoint.NewerFormatError: this mstag is too old for it.
    """
    try:
        state = checkpoint.load(path)
    except FileNotFoundError:
        raise UnusableError(f"checkpoint {path}: removed before it could be read") from None
    except checkpoint.NewerFormatError:
        raise
    except (ValueError, OSError) as error:
        raise UnusableError(console.one_line(error)) from None
    tensors = [t for t in weights_to_score(state).values() if t.is_floating_point()]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise UnusableError(f"checkpoint {path}: its weights are not finite")
    return state


class Scorer:
    """Scores checkpoints of one run on its validation split, and records them.

    Args:
        run: its folder, with a config.toml.
        store: the shards.
        settings: the run's.
        device: where to score.
        options: further arguments of :func:`mstag.training.score.score_split`.
    """

    def __init__(
        self,
        run: Path,
        store: Store,
        settings: config.Config,
        *,
        device: torch.device,
        options: Mapping[str, Any],
    ) -> None:
        runs.require_split(store.name, store.manifest, "valid")
        self.run = run
        self._store = store
        self._device = device
        self._options = options
        self._model: tuple[config.ModelConfig, torch.nn.Module] | None = None
        past = read_record(run)
        # Held open, so that lines about this run follow it when --fresh moves it aside.
        self._file = (run / RECORD).open("ab")
        if self._file.tell() and not (run / RECORD).read_bytes().endswith(b"\n"):
            self._file.write(b"\n")  # after a line that a killed watcher left unfinished
        self._shown = WandbRun(
            run,
            settings.wandb,
            lineage.run_settings(settings, store, watches=run.absolute().name, device=str(device)),
            job="watch",
            record=run / RECORD,
            past=past,
        )
        self._shown.use(lambda: [lineage.shards_artifact(store)])

    def score(self, path: Path) -> dict[str, Any]:
        """Scores and records one checkpoint; returns its report, with "step" in front.

        Raises:
            UnusableError: see :func:`read_state`.
            ValueError: the shards are not those that it was trained on, or are damaged.
        """
        state = read_state(path)
        manifest = self._store.manifest
        identity.check_fits(self.run, state, self._store.name, manifest)
        report, _ = score.score_split(
            self._model_of(state),
            self._store,
            "valid",
            device=self._device,
            ranks=Ranks(),
            **self._options,
        )
        progress = state["progress"]
        steps_per_epoch = manifest.splits["train"].clips // state["loader"]["batch_size"]
        self._append(
            {
                "step": progress["step"],
                "clips_seen": progress["clips_seen"],
                "epoch": progress["step"] / steps_per_epoch,
                **{f"valid/{key}": report[key] for key in ("roc_auc", "pr_auc", "loss")},
            }
        )
        return {"step": state["step"], **score.full_report(report, manifest, path.stem)}

    def _model_of(self, state: Mapping[str, Any]) -> torch.nn.Module:
        """The network with a checkpoint's weights; built once per architecture."""
        settings = config.from_tables({"model": state["config"]["model"]}).model
        if self._model is None or self._model[0] != settings:
            manifest = self._store.manifest
            features, num_tags = manifest.features, len(manifest.tag_names)
            network = build_model(settings, features.n_mels, features.num_frames, num_tags)
            self._model = settings, network.to(self._device)
        self._model[1].load_state_dict(weights_to_score(state))
        return self._model[1]

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._shown.log(line)

    def is_moved(self) -> bool:
        """Whether the run is no longer where it was: --fresh has moved it aside."""
        try:
            (self.run / RECORD).stat()
        except OSError:
            return True
        return False

    def close(self, *, failed: bool) -> None:
        """Ends the record and the W&B run."""
        self._file.close()
        self._shown.finish(failed=failed)


def watch(
    run: Path,
    open_store: Callable[[config.Config], Store],
    show: Callable[[dict[str, Any]], None],
    *,
    patience_s: float,
    device: torch.device,
    options: Mapping[str, Any],
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Scores each checkpoint of a run on the validation split until its training has ended.

    The folder and its first checkpoint may still be to come. A checkpoint that is removed,
    damaged or not finite is named in the log and passed over; it is tried again when its
    file changes, as one does that is still being copied.

    Args:
        run: the run folder.
        open_store: the run's settings -> its shards.
        show: takes each report.
        patience_s: how long to wait where nothing changes.
        device: where to score.
        options: further arguments of :func:`mstag.training.score.score_split`.
        pause: waits so many seconds.

    Raises:
        ValueError: nothing has changed for ``patience_s``, a finished run's last checkpoint
            cannot be scored, or the shards do not fit.
    """
    patience = Patience()
    say = _OnChange()
    scorer: Scorer | None = None
    passed_over: dict[int, tuple[int, int] | None] = {}
    expected: set[int] = set()
    failed = True
    try:
        while True:
            sight = look(run)
            patience.note(sight.marks)
            if scorer is not None and scorer.is_moved():
                log.info(f"{run} has been moved aside: waiting for another training there")
                scorer.close(failed=False)
                scorer, passed_over, expected = None, {}, set()
            scored = {line["step"] for line in read_record(run)}
            left = [
                step
                for step, path in sight.checkpoints.items()
                if step not in scored
                and (step not in passed_over or passed_over[step] != sight.marks.get(path.name))
            ]
            for step in sorted(expected - scored - set(sight.checkpoints) - set(passed_over)):
                passed_over[step] = None
                log.warning(f"step {step}: removed before it could be scored: passed over")
            expected = set(left)
            last = _last_step(sight)
            if not left and last is not None and last in scored:
                log.info(f"{run} is finished, and its last checkpoint (step {last}) is scored")
                failed = False
                return
            if scorer is None and sight.has_config:
                settings = runs.read_config(run)
                store = open_store(settings)
                scorer = Scorer(run, store, settings, device=device, options=options)
            if left and scorer is not None:
                step = left[0]
                try:
                    show(scorer.score(sight.checkpoints[step]))
                except UnusableError as error:
                    if step not in passed_over:
                        log.warning(f"{error}: passed over")
                    passed_over[step] = sight.marks.get(sight.checkpoints[step].name)
                continue
            _check_patience(run, sight, last, patience.idle_s, patience_s)
            say(_waiting_for(run, sight))
            pause(POLL_EVERY_S)
    finally:
        if scorer is not None:
            scorer.close(failed=failed)


class _OnChange:
    """Logs a line where it differs from the last."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, line: str) -> None:
        if line != self._last:
            log.info(line)
            self._last = line


def _last_step(sight: Sight) -> int | None:
    """The step at which a finished training ended; None: not finished, or nothing is there."""
    if sight.outcome is None:
        return None
    step = sight.outcome.get("step")
    return step if isinstance(step, int) else max(sight.checkpoints, default=None)


def _waiting_for(run: Path, sight: Sight) -> str:
    if not sight.has_config:
        return f"waiting for a training in {run}"
    if not sight.checkpoints:
        return f"waiting for the first checkpoint of {run}"
    return f"waiting for the next checkpoint of {run}"


def _check_patience(
    run: Path, sight: Sight, last: int | None, idle_s: float, patience_s: float
) -> None:
    """Gives up on a run in which nothing happens.

    Raises:
        ValueError: says what is missing and what to do.
    """
    if sight.outcome is not None:
        if idle_s >= min(GRACE_S, patience_s):
            raise ValueError(
                f"{run}: its training has finished, but its last checkpoint "
                f"({'none is there' if last is None else f'step {last}'}) could not be scored: it "
                "is damaged or not there; `eval.py RUN --split valid` scores the best weights"
            )
        return
    if idle_s < patience_s:
        return
    waited = f"for {patience_s / 60:g} minutes (--patience)"
    if not sight.has_config:
        raise ValueError(
            f"{run}: no training has begun there {waited}; start one (`make train`), or name a run "
            "folder such as runs/demo"
        )
    newest = max(sight.checkpoints, default=None)
    after = "before its first checkpoint" if newest is None else f"after step {newest}"
    raise ValueError(
        f"{run}: nothing in it has changed {waited}: its training seems dead {after}; the same "
        "train.py command (`make train`) goes on with it, and then this one"
    )
