"""The W&B page of a project, laid out by us: Score, Loss, Tags, Listen, Speed, Data.

Saving it needs a login and the package wandb-workspaces (the extra ``dashboard``).
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mstag import files

NAME = "mstag"
SAVED = Path("wandb") / "workspace"
"""Where a run folder keeps the address of the workspace: each save would make another."""

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
        ("Share of the device in use", "clips_seen", ("train/utilisation",)),
    ),
    "Data": (("Clips of an epoch", "epoch", ("data/seen", "data/dropped", "data/refused")),),
}
"""Section -> title, step axis, keys of its curves."""

SCALARS = ("test/roc_auc", "test/pr_auc")
PICTURES = {"Tags": ("bars", "confusion_map"), "Listen": ("spectrograms", "taggrams")}
"""Section -> names of what wandb_media.py logs there, for each split; and so are these:"""
TABLES = {"Tags": ("table", "extremes", "confusions"), "Listen": ("clips",)}
CHARTS = {
    "roc": ("ROC", "false positive rate"),
    "pr": ("Precision", "recall"),
    "calibration": ("Share with the tag", "mean score"),
    "scores": ("Share of the clips", "score"),
}
"""W&B's own charts in Tags: name -> (title, x axis)."""
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

    def chart(split: str, name: str) -> Any:
        title, xname = CHARTS[name]
        return panels.CustomChart(
            query={"summaryTable": {"tableKey": f"tags/{split}/{name}_table"}},
            chart_name="wandb/lineseries/v0",
            chart_fields={key: key for key in ("step", "lineKey", "lineVal")},
            chart_strings={"title": f"{split}: {title}", "xname": xname},
        )

    def media(section: str) -> list[Any]:
        where = section.lower()
        shown = []
        for split in SPLITS:
            shown += [
                panels.MediaBrowser(
                    title=f"{split}: {name.replace('_', ' ')}",
                    media_keys=[f"{where}/{split}/{name}"],
                )
                for name in PICTURES[section]
            ]
            if section == "Tags":
                shown += [chart(split, name) for name in CHARTS]
            shown += [
                panels.WeavePanelSummaryTable(table_name=f"{where}/{split}/{name}")
                for name in TABLES[section]
            ]
        return shown

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


def save(run: Path, url: str) -> str:
    """Saves the workspace into the project of a run, or brings it up to date there.

    Args:
        run: the run folder; it, and those beside it, remember where the workspace is.
        url: the address of the run's page.

    Returns:
        The workspace's address.

    Raises:
        ValueError: not the address of a run, no package, or W&B refused.
    """
    entity, project = project_of(url)
    workspace = build(entity, project)
    for path in [run / SAVED, *sorted(run.absolute().parent.glob(f"*/{SAVED}"))]:
        if earlier := _find(path, entity, project):
            earlier.sections = workspace.sections
            workspace = earlier
            break
    try:
        workspace.save()
        files.write_text(run / SAVED, f"{workspace.url}\n")
    except Exception as error:  # whatever W&B's client raises; the run's own page is there
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"W&B: cannot save the workspace ({reason})") from None
    return str(workspace.url)


def _find(path: Path, entity: str, project: str) -> Any:
    """The workspace that a file remembers; None: it is gone, or another project's."""
    workspaces: Any = importlib.import_module("wandb_workspaces.workspaces")
    try:
        url = path.read_text(encoding="utf-8").strip()
        if urlsplit(url).path.split("/") != ["", entity, project]:
            return None
        return workspaces.Workspace.from_url(url)
    except Exception:  # of reading, or whatever W&B's client raises: another one is made
        return None
