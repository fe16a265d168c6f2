"""A run folder -> where to look at it: W&B's page, its terminal viewer, or our own report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mstag.training import wandb_run


@dataclass(frozen=True, slots=True)
class View:
    """Where a run can be looked at."""

    kind: Literal["online", "offline", "local"]
    where: str
    """A URL (online), W&B's folder of the run (offline), or metrics.jsonl (local)."""


def find_view(run: Path) -> View:
    """The newest view of a run.

    Raises:
        ValueError: there is no such run.
    """
    if not (run / "metrics.jsonl").exists():
        reason = "holds no metrics.jsonl" if run.is_dir() else "no such folder"
        raise ValueError(
            f"{run}: not a run ({reason}); train one (`make train`), or name one such as runs/demo"
        )
    # W&B names them [offline-]run-<time>-<id>.
    sessions = [*run.glob("wandb/run-2*"), *run.glob("wandb/offline-run-2*")]
    if not sessions:
        return View("local", str(run / "metrics.jsonl"))
    newest = max(sessions, key=lambda session: session.name.removeprefix("offline-"))
    if newest.name.startswith("offline-"):
        return View("offline", str(newest))
    url = wandb_run.read_url(run)
    return View("online", url) if url else View("local", str(run / "metrics.jsonl"))
