"""Where a run comes from: code, data, network; as settings for W&B and as its artifacts.

A score is worth what its split is worth, so whoever looks at a run finds the split rule, its
leaks and the oracle that hears nothing beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from platform import python_version
from typing import Any
from urllib.parse import urlsplit

from mstag import __version__, config
from mstag.data import shards
from mstag.data.shards import Manifest
from mstag.data.store import Store
from mstag.models import build_model, frames_at_once
from mstag.training import identity

LOTS = ("train.seed", "dataset.split_seed", "dataset.split_number")
"""What seeds and folds of one recipe differ in."""
CODE = Path(__file__).resolve().parents[2]
GIT_TIMEOUT_S = 5.0


def run_settings(settings: config.Config, store: Store, **resolved: Any) -> dict[str, Any]:
    """What W&B shows as a run's config.

    Args:
        settings: the run's.
        store: its shards.
        resolved: what "auto" came to, and the like.
    """
    import torch

    manifest = store.manifest
    versions = {"mstag": __version__, "torch": torch.__version__, "python": python_version()}
    return {
        **config.to_tables(settings),
        **resolved,
        "versions": versions,
        "recipe": recipe(settings),
        "dataset_digest": manifest.digest,
        "data": data_card(manifest) | {"shards": store.name, "tags": manifest.tag_names},
        "git": git_state(),
        "network": network_card(settings.model, manifest),
    }


def about(shown: Mapping[str, Any]) -> str:
    """Of what :func:`run_settings` returned, all that a run's config.toml does not have: JSON."""
    sections = {field.name for field in dataclasses.fields(config.Config)}
    rest = {key: value for key, value in shown.items() if key not in sections}
    return json.dumps(rest, indent=1) + "\n"


def recipe(settings: config.Config) -> str:
    """The name of what runs share that differ in seed or fold, or in what changes no result."""
    free = (*LOTS, *identity.FREE_SETTINGS)
    lines = [
        f"{section}.{key} = {value!r}"
        for section, table in sorted(config.to_tables(settings).items())
        for key, value in sorted(table.items())
        if not f"{section}.{key}".startswith(free)
    ]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f"{settings.dataset.name}-{digest[:6]}"


def data_card(manifest: Manifest) -> dict[str, Any]:
    """What the data are, and what a score on them is worth."""
    return {
        "name": manifest.dataset,
        "digest": manifest.digest,
        "split_rule": manifest.split_rule,
        "leaks": manifest.leaks,
        "oracle_roc_auc": manifest.oracle_roc_auc,
        "clips": {name: split.clips for name, split in manifest.splits.items()},
    }


def git_state(folder: Path = CODE) -> dict[str, Any] | None:
    """The commit of a checkout, and whether tracked files differ from it; None: there is none."""
    if not (folder / ".git").exists():
        return None  # git would go on to look in the folders above, which are not ours
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}


def network_card(settings: config.ModelConfig, manifest: Manifest) -> dict[str, int | None]:
    """Size and cost of a network: weights, and operations to score one clip.

    A multiplication and an addition are two operations, as torch.utils.flop_counter counts;
    None where it cannot.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from mstag.models.predict import chunk_starts

    features = manifest.features
    # The meta device would compute nothing, but takes two seconds to be imported.
    with torch.random.fork_rng(devices=[]):  # the training's lots are its own
        network = build_model(
            settings, features.n_mels, features.num_frames, len(manifest.tag_names)
        ).eval()
    chunk_frames = frames_at_once(network)
    chunk = torch.zeros(1, 1, features.n_mels, chunk_frames)
    num_weights = sum(weights.numel() for weights in network.parameters())
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(chunk)
    except RuntimeError:
        return {"weights": num_weights, "flops_per_clip": None}
    num_chunks = len(chunk_starts(features.num_frames, chunk_frames))
    return {"weights": num_weights, "flops_per_clip": num_chunks * counter.get_total_flops()}


def shards_artifact(store: Store) -> Any:
    """The shards as a W&B artifact: the manifest itself, and where the rest lies.

    The manifest vouches for every shard by sha256: no shard is read or sent for this.
    """
    import wandb

    manifest = store.manifest
    artifact = wandb.Artifact(
        _artifact_name("shards", manifest.dataset), type="dataset", metadata=data_card(manifest)
    )
    with artifact.new_file(shards.MANIFEST_NAME) as file:
        file.write(shards.manifest_text(manifest))
    where = store.name if urlsplit(store.name).netloc else Path(store.name).resolve().as_uri()
    artifact.add_reference(where, name="shards", checksum=False, max_objects=10**7)
    return artifact


def bundle_artifact(folder: Path, run_name: str) -> Any:
    """A run's best bundle as a W&B artifact, with its scores and its data."""
    import wandb

    card = json.loads((folder / "tagger.json").read_text(encoding="utf-8"))
    metadata = {key: card[key] for key in ("scores", "dataset") if key in card}
    artifact = wandb.Artifact(_artifact_name("model", run_name), type="model", metadata=metadata)
    for path in sorted(folder.iterdir()):
        artifact.add_file(str(path))  # add_dir would print
    return artifact


def _artifact_name(kind: str, name: str) -> str:
    """W&B takes letters, digits, dashes, underscores and dots, 128 at most."""
    text = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name)
    return f"{kind}-{text}"[:128]


def _git(folder: Path, *argv: str) -> str:
    done = subprocess.run(  # noqa: S603 (no word of it comes from outside)
        ["git", "-C", str(folder), *argv],  # noqa: S607 (the user's own git)
        capture_output=True,
        text=True,
        check=True,
        timeout=GIT_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        # Looking must not take the lock that somebody's commit needs.
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
    )
    return done.stdout.strip()
