"""The W&B page of a project, laid out by us: Score, Loss, Tags, Listen, Speed, Data.

Saving it needs a login and the package wandb-workspaces (the extra ``dashboard``).
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any
from urllib.parse import urlsplit

NAME = "mstag"

CURVES: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "Score": (
        ("ROC-AUC on the validation split", "epoch", ("valid/roc_auc",)),
        ("PR-AUC on the validation split", "epoch", ("valid/pr_auc",)),
    ),
    "Loss": (
        ("Training loss", "clips_seen", ("train/loss",)),
        ("Validation loss", "epoch", ("valid/loss",)),
        ("Learning rate", "clips_seen", ("train/lr",)),
        ("Gradient norm", "clips_seen", ("train/grad_norm",)),
        ("Weight norm", "clips_seen", ("train/weight_norm",)),
        ("Distance of the averaged weights", "clips_seen", ("train/ema_distance",)),
    ),
    "Speed": (
        ("Clips per second", "clips_seen", ("train/clips_per_s",)),
        ("Share of time spent waiting for data", "clips_seen", ("train/data_wait",)),
        ("Device memory", "clips_seen", ("train/memory_gb",)),
    ),
    "Data": (("Clips of an epoch", "epoch", ("data/seen", "data/dropped", "data/refused")),),
}
"""Section -> title, step axis, keys of its curves."""

SCALARS = ("test/roc_auc", "test/pr_auc")
MEDIA = {
    "Tags": ("bars", "roc", "pr", "calibration", "scores", "confusion_map"),
    "Listen": ("clips", "spectrograms", "taggrams"),
}
"""Section -> names of what wandb_media.py logs there, for each split."""
SPLITS = ("valid", "test")


def project_of(url: str) -> tuple[str, str]:
    """(entity, project) of the address of a run's page, ``.../ENTITY/PROJECT/runs/ID``.

    Raises:
        ValueError: it is not such an address.
    """
    parts = [part for part in urlsplit(url).path.split("/") if part]
    if len(parts) < 4 or parts[-2] != "runs":
        raise ValueError(f"{url}: is not the address of a W&B run")
    return parts[-4], parts[-3]


def build(entity: str, project: str) -> Any:
    """The workspace; nothing is sent.

    Raises:
        ValueError: wandb-workspaces is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its own affair
            panels: Any = importlib.import_module("wandb_workspaces.reports.v2")
            workspaces: Any = importlib.import_module("wandb_workspaces.workspaces")
    except ImportError:
        raise ValueError(
            "wandb-workspaces is not installed, so the page keeps W&B's own layout: "
            "pip install -e '.[dashboard]' brings it"
        ) from None

    def lines(section: str) -> list[Any]:
        return [
            panels.LinePlot(title=title, x=axis, y=list(keys))
            for title, axis, keys in CURVES[section]
        ]

    def media(section: str) -> list[Any]:
        return [
            panels.MediaBrowser(
                title=f"{split}: {name.replace('_', ' ')}",
                media_keys=[f"{section.lower()}/{split}/{name}"],
            )
            for split in SPLITS
            for name in MEDIA[section]
        ]

    scalars = [panels.ScalarChart(title=key, metric=key) for key in SCALARS]
    contents = {
        "Score": scalars + lines("Score"),
        "Loss": lines("Loss"),
        "Tags": media("Tags"),
        "Listen": media("Listen"),
        "Speed": lines("Speed"),
        "Data": [*lines("Data"), panels.RunComparer(diff_only="split")],
    }
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            workspaces.Section(name=name, panels=content, is_open=True)
            for name, content in contents.items()
        ],
    )


def save(url: str) -> str:
    """Saves the workspace into the project of a run; returns its address.

    Raises:
        ValueError: not the address of a run, no package, or W&B refused.
    """
    entity, project = project_of(url)
    workspace = build(entity, project)
    try:
        workspace.save()
    except Exception as error:  # whatever W&B's client raises; the run's own page is there
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"W&B: cannot save the workspace ({reason})") from None
    return str(workspace.url)
