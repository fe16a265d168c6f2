"""What W&B holds of an offline run, read back by its own viewer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def records(folder: Path) -> list[dict[str, Any]]:
    """Everything in one of W&B's folders, in order."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(held: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows among what :func:`records` returned, W&B's own columns included."""
    return [record["history"]["item"] for record in held if record["type"] == "history"]


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder, without W&B's own columns."""
    return [
        {key: value for key, value in row.items() if not key.startswith("_")}
        for row in history(records(folder))
    ]
