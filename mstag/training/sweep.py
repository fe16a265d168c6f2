"""A random search over the settings of one recipe, on this machine, without an account.

The file is W&B's own for sweeps; of its ways to draw, the ones below. A trial is a run like any
other, in a folder of its own, and is judged by the validation split: nothing here reads what
train.py has measured on the test split.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mstag import config, files
from mstag.training import runs

TABLE = "sweep.tsv"
DISTRIBUTIONS = ("uniform", "log_uniform_values", "int_uniform")

Settings = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial of a sweep."""

    number: int
    settings: Settings
    """``section.key`` -> value, for what the sweep varies."""
    run: Path
    roc_auc: float | None = None
    """Best macro ROC-AUC on the validation split; None: failed, or undefined."""
    epoch: int | None = None
    """The epoch that reached it."""


def read_sweep(path: Path) -> dict[str, Mapping[str, Any]]:
    """The parameters of a sweep file: ``section.key`` -> how to draw it.

    Raises:
        ValueError: not such a file, a parameter that is no setting, or a way to draw that we
            do not know.
    """
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        raise ValueError("PyYAML cannot be imported: `pip install pyyaml` brings it") from None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"sweep {path}: cannot be read ({reason})") from None
    parameters = content.get("parameters") if isinstance(content, dict) else None
    if not isinstance(parameters, dict) or not parameters:
        raise ValueError(
            f"sweep {path}: has no parameters; write a section `parameters:` with lines such as "
            "`train.learning_rate: {distribution: log_uniform_values, min: 1.0e-4, max: 1.0e-2}`"
        )
    for name, how in parameters.items():
        try:
            value = draw_one(how, np.random.default_rng(0))
            tables: dict[str, Any] = {}
            section, _, key = str(name).partition(".")
            tables[section] = {key: value}
            config.from_tables(tables)
        except ValueError as error:
            raise ValueError(f"sweep {path}: {name}: {error}") from None
    return parameters


def draw(parameters: Mapping[str, Mapping[str, Any]], seed: int, number: int) -> Settings:
    """The settings of trial ``number``: a function of these three alone."""
    rng = np.random.default_rng((seed, number))
    return {name: draw_one(how, rng) for name, how in sorted(parameters.items())}


def draw_one(how: Any, rng: np.random.Generator) -> Any:
    """One value, by W&B's rules: value, values, or min and max with a distribution.

    Raises:
        ValueError: none of these.
    """
    if isinstance(how, dict) and "value" in how:
        return how["value"]
    if isinstance(how, dict) and isinstance(how.get("values"), list) and how["values"]:
        return how["values"][int(rng.integers(len(how["values"])))]
    try:
        low, high = how["min"], how["max"]
        whole = isinstance(low, int) and isinstance(high, int)
        distribution = how.get("distribution", "int_uniform" if whole else "uniform")
        if distribution == "int_uniform":
            return int(rng.integers(low, high, endpoint=True))
        if distribution == "uniform":
            return float(rng.uniform(low, high))
        if distribution == "log_uniform_values":
            return float(math.exp(rng.uniform(math.log(low), math.log(high))))
    except (KeyError, TypeError, ValueError, AttributeError):
        distribution = None
    problem = f"distribution {distribution!r}" if distribution else f"{how!r}"
    raise ValueError(
        f"cannot be drawn from ({problem}); take value, values, or min and max (numbers, as "
        f"3.0e-4) with one of the distributions {', '.join(DISTRIBUTIONS)}"
    )


def run_sweep(
    parameters: Mapping[str, Mapping[str, Any]],
    train: Sequence[str],
    folder: Path,
    *,
    count: int,
    seed: int,
    show: Callable[[Sequence[Trial]], None],
) -> list[Trial]:
    """Runs trials one after the other, and keeps ``folder/sweep.tsv``, the best one first.

    A trial that is finished is not run again, one that was cut short goes on.

    Args:
        parameters: of :func:`read_sweep`.
        train: the command that trains, without what the sweep adds to it.
        folder: of the runs, ``trial-000`` and so on.
        count: how many trials.
        seed: of what is drawn.
        show: called with all trials so far after each.

    Returns:
        The trials, best first; those without a score last.

    Raises:
        ValueError: all of them failed.
    """
    trials: list[Trial] = []
    for number in range(count):
        trial = Trial(number, draw(parameters, seed, number), folder / f"trial-{number:03d}")
        if not runs.is_finished(trial.run):
            chosen = [f"--set={name}={json.dumps(v)}" for name, v in trial.settings.items()]
            group = f"--set=wandb.group={json.dumps(folder.name)}"
            command = [*train, "--out", str(trial.run), group, *chosen]
            done = subprocess.run(command)  # noqa: S603 - a list, of the user's own settings
            if done.returncode < 0 or done.returncode > 128:
                raise KeyboardInterrupt
        trials.append(judged(trial))
        # None sorts last: nothing is better than a score.
        trials.sort(key=lambda t: math.inf if t.roc_auc is None else -t.roc_auc)
        files.write_text(folder / TABLE, as_table(trials))
        show(trials)
    if all(trial.epoch is None for trial in trials):
        raise ValueError(
            f"sweep {folder}: none of its {count} trials has ended; see what they said"
        )
    return trials


def run_online(path: Path, settings: config.WandbConfig, train: Sequence[str], count: int) -> None:
    """Hands the file to W&B, which draws the trials, and runs ``count`` of them here.

    Args:
        path: the file; its command, which is for W&B's own agents, gives way to ``train``.
        settings: [wandb].
        train: the command that trains, without what the sweep adds to it. Its runs go to
            ``runs/NAME-sweep``.
        count: how many trials.
    """
    import wandb
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["command"] = [*train, "${args_no_hyphens}"]
    sweep_id = wandb.sweep(content, project=settings.project, entity=settings.entity or None)
    wandb.agent(sweep_id, project=settings.project, entity=settings.entity or None, count=count)


def judged(trial: Trial) -> Trial:
    """The trial with what its run came to."""
    try:
        outcome = json.loads((trial.run / runs.FINISHED).read_text(encoding="utf-8"))
        roc_auc, epoch = outcome["best_roc_auc"], outcome["best_epoch"]
    except (OSError, ValueError, KeyError):
        return trial
    return Trial(trial.number, trial.settings, trial.run, roc_auc, epoch)


def as_table(trials: Sequence[Trial]) -> str:
    """Tab-separated lines: valid/roc_auc, its epoch, the run, the settings that vary."""
    names = sorted(trials[0].settings) if trials else []
    lines = [["valid/roc_auc", "epoch", "run", *names]]
    for trial in trials:
        score = "none" if trial.roc_auc is None else f"{trial.roc_auc:.4f}"
        values = [_short(trial.settings[name]) for name in names]
        lines.append([score, str(trial.epoch or "-"), trial.run.name, *values])
    return "".join("\t".join(line) + "\n" for line in lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
