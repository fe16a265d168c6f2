"""What a run is a run of, and whether another is the same: differences are shown and refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mstag import config
from mstag.data.shards import Manifest

MAX_SHOWN = 5
"""How many differences a refusal names before it says how many more there are."""

FREE_SETTINGS = (
    "shards.",  # how clips were packed: what it led to is in the dataset's digest
    "wandb.",
    "train.device",
    "train.loader_workers",
    "train.max_bad_clips",
    "train.max_bad_steps",
    "train.early_stop_epochs",
    "train.cache_",
    "train.s3_endpoint",
    "train.log_every_steps",
    "train.checkpoint_every_s",
    "train.keep_checkpoints",
)
"""Settings that a resumed run may change, because they do not change what is learnt.

``train.epochs`` may grow as well, unless the schedule is "cosine", whose learning rates
depend on it from the first step. ``train.precision`` may not, even if "auto" resolves to
another one on another device: that is the machine's doing, and is logged.
"""


def of_run(
    settings: config.Config, manifest: Manifest, origin: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What a run is a run of: its settings, its data and its first weights, by digest and in words.

    ``origin`` is the card of the bundle that it began from (mstag.training.finetune), if it did.

    ``features`` and ``tags`` are what two of the digests stand for, so that a refusal can
    show the difference.
    """
    return {
        "config": config.to_tables(settings),
        "dataset": manifest.dataset,
        "dataset_digest": manifest.digest,
        "origin": origin,
        **of_model(manifest.features, manifest.tag_names),
    }


def of_model(features: config.FeatureConfig, tag_names: list[str]) -> dict[str, Any]:
    """What goes into a network and what comes out of it."""
    return {
        "features": dataclasses.asdict(features),
        "features_digest": config.features_digest(features),
        "tags": tag_names,
        "tags_digest": config.tags_digest(tag_names),
    }


def check_same(stored: Mapping[str, Any], current: Mapping[str, Any], run: Path) -> None:
    """Refuses to go on with a run under other settings, features, tags or data.

    Raises:
        ValueError: names the differences that change the result, and the ways out.
    """
    remedy = "put it back, or start anew with --fresh (`FRESH=1`), which moves this run aside"
    changed = changes(stored["config"], current["config"])
    began, begins = stored.get("origin"), current.get("origin")
    if began and begins and began["weights"] == begins["weights"]:  # in another place
        changed = [line for line in changed if not line.startswith("train.init_from:")]
    if changed:
        raise ValueError(
            f"run {run}: its settings have changed ({_some(changed)}), so it cannot go on: {remedy}"
        )
    for what, how in data_changes(stored, current):
        raise ValueError(
            f"run {run}: the {what} of the shards differ from those it was trained on ({how}): "
            f"{remedy}"
        )


def check_fits(source: Path, stored: Mapping[str, Any], shards: str, manifest: Manifest) -> None:
    """Refuses shards whose features or tags are not those that weights were trained on.

    Args:
        source: where the weights are from.
        stored: their :func:`of_run` or :func:`of_model`.
        shards: what messages call the shards.
        manifest: of the shards.

    Raises:
        ValueError: says in what they differ.
    """
    for what, how in data_changes(stored, of_model(manifest.features, manifest.tag_names)):
        raise ValueError(
            f"{source}: was trained on other {what} than those of the shards {shards} ({how}), so "
            "a score would mean nothing; name the shards that fit with --shards"
        )


def changes(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> list[str]:
    """Differences between two configs that change what a run learns, as readable lines.

    A setting that ``old`` does not have yet counts as its default: defaults of new settings
    are what mstag did before there was a choice.
    """
    defaults = config.to_tables(config.Config())
    old = {section: table | old.get(section, {}) for section, table in defaults.items()} | {
        section: table for section, table in old.items() if section not in defaults
    }
    lines = [line for line in config.difference(old, new) if not line.startswith(FREE_SETTINGS)]
    longer = new["train"]["epochs"] > old["train"]["epochs"]
    if longer and new["train"]["schedule"] != "cosine":
        lines = [line for line in lines if not line.startswith("train.epochs:")]
    return lines


def data_changes(
    stored: Mapping[str, Any], current: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """In what the data of two identities differ: ("features" | "tags" | "dataset", how).

    Only what both know is compared; digests decide, names and values explain.
    """
    explain: dict[str, Callable[[Any, Any], str]] = {
        "features": _features_difference,
        "tags": _tags_difference,
        "dataset": lambda old, new: f"{old!r} -> {new!r}",
    }
    for what, describe in explain.items():
        key = f"{what}_digest"
        if key not in stored or key not in current or stored[key] == current[key]:
            continue
        before, now = stored.get(what), current.get(what)
        digests = f"digest {stored[key][:12]} -> {current[key][:12]}"
        known = before is not None and now is not None and before != now
        yield what, f"{describe(before, now)}; {digests}" if known else digests


def _features_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    return _some(config.difference({"features": old}, {"features": new}))


def _tags_difference(old: Sequence[str], new: Sequence[str]) -> str:
    parts = [
        f"{word}: {_some([repr(tag) for tag in tags], ', ')}"
        for word, tags in (
            ("added", [tag for tag in new if tag not in old]),
            ("removed", [tag for tag in old if tag not in new]),
        )
        if tags
    ]
    if parts:
        return "; ".join(parts)
    number = next(i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    return (
        f"the same tags in another order: number {number + 1} was {old[number]!r} and is "
        f"{new[number]!r}"
    )


def _some(parts: Sequence[str], separator: str = "; ") -> str:
    """The first few of them, and how many more there are."""
    more = len(parts) - MAX_SHOWN
    text = separator.join(parts[:MAX_SHOWN])
    return f"{text} and {more} more" if more > 0 else text
