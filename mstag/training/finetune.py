"""Fine-tuning: a network that starts from a bundle's weights, and learns other tags from there.

Taken are all weights and running statistics but those of the head (``mstag.models.head_of``),
the layer that gives one logit per tag. The head starts anew, even for tags that both sets name
alike: a word need not mean the same in two collections.

A run remembers which weights it began from by their digest, as part of its identity. One that
goes on has all of its weights in its checkpoint, and does not need the bundle again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mstag import config
from mstag.config import Config
from mstag.data.shards import Manifest
from mstag.models import head_of
from mstag.models.bundle import Bundle, load_bundle, read_tagger

log = logging.getLogger("mstag")

SHAPELESS = ("dropout", "batchnorm_momentum")
"""Settings of [model] on which no weight's shape depends: a fine-tuning chooses its own."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The bundle that a run began from."""

    card: dict[str, Any]
    """What is remembered of it, plain values: "weights" is their sha256 (hex)."""
    backbone: dict[str, Tensor] | None
    """What to start from, by name; None in a run that goes on."""


def find_origin(
    settings: Config, state: Mapping[str, Any] | None, shards: str, manifest: Manifest
) -> Origin | None:
    """Reads the bundle that ``train.init_from`` names, or remembers it.

    Args:
        settings: of the run.
        state: the checkpoint of the run that goes on, if one does. Its own bundle is not
            needed; where another path is named, which bundle that is decides
            :func:`mstag.training.identity.check_same`.
        shards: what messages call the shards.
        manifest: of the shards.

    Returns:
        None where the run starts from nothing.

    Raises:
        ValueError: no bundle there, or one whose features or network are not the run's.
    """
    where, num_epochs = settings.train.init_from, settings.train.freeze_epochs
    if not where:
        # Not when the config is read: packing reads it too, and --init-from comes after that.
        if num_epochs:
            raise ValueError(
                f"train.freeze_epochs = {num_epochs}: needs train.init_from (--init-from), because "
                "a backbone that has learnt nothing would stay like that; name a bundle, or take 0"
            )
        return None
    if state is not None and state["config"]["train"].get("init_from") == where:
        _say_if_changed(where, state["origin"])
        return Origin(state["origin"], None)
    try:
        bundle = load_bundle(Path(where))
    except (ValueError, OSError) as error:
        raise ValueError(f"train.init_from (--init-from): {error}") from None
    if state is not None:
        return Origin(card_of(bundle, settings), None)
    check_fits(bundle, settings, shards, manifest)
    origin = Origin(card_of(bundle, settings), backbone_of(bundle.model))
    log.info(
        f"starts from {where} ({origin.card['dataset']}, {origin.card['tags']} tags, weights "
        f"{bundle.digest[:12]}); the layer of the {len(manifest.tag_names)} tags is new; backbone: "
        f"{origin.card['backbone']}"
    )
    return origin


def check_fits(bundle: Bundle, settings: Config, shards: str, manifest: Manifest) -> None:
    """Refuses a bundle whose weights mean nothing to the run's network.

    Raises:
        ValueError: it hears other features than the shards hold, or its network has weights of
            other shapes; says in what they differ, and what to set.
    """
    where = f"train.init_from = {settings.train.init_from!r}"
    old, new = dataclasses.asdict(bundle.features), dataclasses.asdict(manifest.features)
    changed = config.difference({"features": old}, {"features": new})
    if changed:
        raise ValueError(
            f"{where}: its network hears other features than those of the shards {shards} "
            f"({'; '.join(changed)}), so its weights would mean nothing: pack the shards with the "
            f"bundle's ({_as_options('features', old, new)}, for packing and for training; or take "
            "a config from `shard-tools init FOLDER --like BUNDLE`)"
        )
    old, new = dataclasses.asdict(bundle.model_config), dataclasses.asdict(settings.model)
    old, new = ({k: v for k, v in d.items() if k not in SHAPELESS} for d in (old, new))
    changed = config.difference({"model": old}, {"model": new})
    if changed:
        why = ""
        if old["chunk_frames"] != new["chunk_frames"]:
            why = " (the classifier is as wide as the frames that it sees at once)"
        raise ValueError(
            f"{where}: its network is not the config's ({'; '.join(changed)}), so its weights do "
            f"not fit{why}: take {_as_options('model', old, new)}"
        )
    if bundle.features.recipe == "unknown":
        log.warning(
            f"{where}: how its spectrograms were made is unknown, as with those of {shards}: that "
            "they were made alike is yours to know"
        )


def _as_options(section: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    """``--set`` options that make ``new`` like ``old``."""
    return " ".join(
        # JSON's strings and numbers are TOML's as well.
        f"--set {section}.{key}={json.dumps(value) if not isinstance(value, str) else value}"
        for key, value in old.items()
        if new[key] != value
    )


def card_of(bundle: Bundle, settings: Config) -> dict[str, Any]:
    """What a run remembers of a bundle, and the run's own bundle says of it.

    Not its path, which is this machine's affair: the weights' sha256 says which it was.
    """
    num_epochs = settings.train.freeze_epochs
    several = f"frozen for {num_epochs} epochs"
    frozen = {-1: "frozen", 0: "trained", 1: "frozen for 1 epoch"}.get(num_epochs, several)
    before = bundle.dataset.get("fine_tuned_from")
    return {
        "dataset": bundle.dataset.get("name", "unknown"),
        "dataset_digest": bundle.dataset.get("digest", "unknown"),
        "tags": len(bundle.tag_names),
        "weights": bundle.digest,
        "backbone": frozen,
        **({"fine_tuned_from": before} if before else {}),
    }


def backbone_of(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers of all that does not depend on the tags."""
    return {name: t for name, t in model.state_dict().items() if not _is_of_head(model, name)}


def load_backbone(model: nn.Module, backbone: Mapping[str, Tensor]) -> None:
    """Puts the weights of :func:`backbone_of` into a network; its head stays as it is."""
    missing, unexpected = model.load_state_dict(dict(backbone), strict=False)
    assert not unexpected, f"weights that the network has not: {unexpected}"
    assert all(_is_of_head(model, name) for name in missing), f"weights are missing: {missing}"


def _is_of_head(model: nn.Module, name: str) -> bool:
    return name.startswith(tuple(f"{head}." for head in head_of(model)))


def _say_if_changed(where: str, card: Mapping[str, Any]) -> None:
    """Notes a bundle that was replaced since the run began; one that is gone does not matter."""
    try:
        digest = read_tagger(Path(where))["weights"]["sha256"]
    except (ValueError, OSError):
        return
    if digest != card["weights"]:
        log.warning(
            f"{where}: was replaced since this run began (weights {card['weights'][:12]}, now "
            f"{digest[:12]}); the run goes on from its own checkpoint; --fresh (`FRESH=1`) "
            "starts anew from the bundle as it is now"
        )
