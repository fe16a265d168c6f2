"""A trained model as one folder that stands alone; saved and loaded here only.

    weights-<16 hex>.safetensors   named from their content
    tagger.json                    everything else; names the weights
    README.md                      the model card

``tagger.json`` is replaced last and atomically, and old weights go after that: whoever kills
the writer at whatever moment finds a whole bundle, the old one or the new one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mstag import __version__, files
from mstag.config import FeatureConfig, ModelConfig, features_digest, tags_digest
from mstag.models import build_model, bundle_format
from mstag.models.card import model_card

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHTS_NAME = re.compile(r"weights-[0-9a-f]{16}\.safetensors")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A trained model and all that is needed to use it."""

    model: nn.Module
    """In evaluation mode, on the device that was asked for."""
    model_config: ModelConfig
    features: FeatureConfig
    tag_names: list[str]
    """In vector order."""
    thresholds: list[float]
    """Per tag: a score at or above it means yes."""
    dataset: dict[str, Any]
    """name, digest, split_rule, leaks, ... of the training data."""
    scores: dict[str, Any]
    """What it reached, and on which split."""
    digest: str
    """sha256 (hex) of the weights."""


def save_bundle(
    folder: Path,
    model: nn.Module,
    *,
    model_config: ModelConfig,
    features: FeatureConfig,
    tag_names: list[str],
    thresholds: Sequence[float],
    dataset: dict[str, Any],
    scores: dict[str, Any],
) -> str:
    """Writes a bundle, or replaces the one that is there; returns the weights' sha256.

    Args:
        folder: made if need be.
        model: the network itself, without a wrapper of DDP or torch.compile.
        model_config: what :func:`mstag.models.build_model` builds it from.
        features: of the spectrograms that it was trained on.
        tag_names: in vector order.
        thresholds: one per tag.
        dataset: JSON-able: name, digest, split_rule, leaks.
        scores: JSON-able: split, roc_auc, pr_auc and the like.
    """
    from safetensors.torch import save

    assert len(tag_names) == len(thresholds), "one threshold per tag"
    # safetensors stores contiguous tensors; channels-last weights are not.
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    content = save(tensors)
    sha256 = hashlib.sha256(content).hexdigest()
    weights_name = f"weights-{sha256[:16]}.safetensors"
    tagger = {
        "format_version": bundle_format.FORMAT_VERSION,
        "mstag_version": __version__,
        "weights": {"file": weights_name, "sha256": sha256},
        "model": dataclasses.asdict(model_config),
        "features": dataclasses.asdict(features),
        "features_digest": features_digest(features),
        "tags": list(tag_names),
        "tags_digest": tags_digest(list(tag_names)),
        "thresholds": [float(threshold) for threshold in thresholds],
        "dataset": dataset,
        "scores": scores,
    }
    text = bundle_format.to_text(tagger)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_bytes(folder / weights_name, content)
    files.write_text(folder / "README.md", model_card(tagger))
    files.write_text(folder / "tagger.json", text)
    for path in folder.iterdir():
        is_old_weights = WEIGHTS_NAME.fullmatch(path.name) and path.name != weights_name
        # What atomic writes leave behind when they are killed.
        is_leftover = path.name.startswith(".") and path.name.endswith(".tmp")
        if is_old_weights or is_leftover:
            with suppress(FileNotFoundError):
                path.unlink()
    return sha256


def load_bundle(folder: Path, device: torch.device | str = "cpu") -> Bundle:
    """Loads a bundle, or the best bundle of a run folder; executes nothing of what it reads.

    Args:
        folder: a bundle of this mstag or of any before it, or a run.
        device: where the model goes.

    Raises:
        ValueError: no bundle, a damaged one, or one of a newer mstag.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = find_bundle(folder)
    tagger, content = _read(folder)
    sha256 = hashlib.sha256(content).hexdigest()
    where = f"bundle {folder}"
    try:
        if sha256 != tagger["weights"]["sha256"]:
            raise ValueError(f"{tagger['weights']['file']} is not the file that was saved")
        features, model_config = bundle_format.settings(tagger)
        tag_names = [str(tag) for tag in tagger["tags"]]
        thresholds = [float(threshold) for threshold in tagger["thresholds"]]
        if len(thresholds) != len(tag_names):
            raise ValueError(f"{len(thresholds)} thresholds for {len(tag_names)} tags")
        # Building would draw initial weights; the caller's random numbers are not ours to use.
        with torch.random.fork_rng(devices=[]):
            model = build_model(model_config, features.n_mels, features.num_frames, len(tag_names))
        model.load_state_dict(load(content))
        bundle = Bundle(
            model=model.eval().to(device),
            model_config=model_config,
            features=features,
            tag_names=tag_names,
            thresholds=thresholds,
            dataset=dict(tagger["dataset"]),
            scores=dict(tagger["scores"]),
            digest=sha256,
        )
    except bundle_format.NewerFormatError as error:
        raise ValueError(f"{where}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: tagger.json lacks or garbles {error}; get it anew") from None
    except (ValueError, SafetensorError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        if advice := bundle_format.advice(tagger):
            raise ValueError(f"{where}: {reason}; {advice}") from None
        raise ValueError(f"{where}: damaged: {reason}; copy or train it anew") from None
    return bundle


def find_bundle(folder: Path) -> Path:
    """The bundle that a user means: the folder itself, or ``best`` in a run folder.

    Raises:
        ValueError: neither holds a tagger.json.
    """
    for candidate in (folder, folder / "best"):
        if (candidate / "tagger.json").is_file():
            return candidate
    reason = "no tagger.json in it" if folder.is_dir() else "no such folder"
    beside = bundles_beside(folder)
    remedy = f"there are {', '.join(map(str, beside))}" if beside else "name one such as runs/demo"
    raise ValueError(f"{folder}: not a trained model ({reason}); {remedy}")


def bundles_beside(folder: Path) -> list[Path]:
    """Bundles and runs with one in the folder where another was looked for, by name.

    Of runs/typo/best, whose folder is not there either, those in runs.
    """
    place = folder.parent if folder.parent.is_dir() else folder.parent.parent
    try:
        return sorted(
            path
            for path in place.iterdir()
            if any((path / part / "tagger.json").is_file() for part in ("", "best"))
        )
    except OSError:  # not there, or not to be read: no help, but no reason to fail either
        return []


def read_tagger(folder: Path) -> dict[str, Any]:
    """The tagger.json of a bundle, or of a run's best one: all but the weights. Needs no torch.

    Its "model" and "features" are those of a config, checked.

    Raises:
        ValueError: as :func:`load_bundle`.
    """
    folder = find_bundle(folder)
    tagger, _ = _read(folder)
    try:
        bundle_format.settings(tagger)
        return {**tagger, "weights": {"sha256": str(tagger["weights"]["sha256"])}}
    except bundle_format.NewerFormatError as error:
        raise ValueError(f"bundle {folder}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"bundle {folder}: tagger.json lacks or garbles {error}; get it anew"
        ) from None


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """tagger.json, upgraded and checked as far as its weights' name, and the weights' bytes."""
    where = f"bundle {folder}"
    for attempt in range(3):
        try:
            tagger = bundle_format.parse((folder / "tagger.json").read_text(encoding="utf-8"))
            name = tagger["weights"]["file"]
            if not WEIGHTS_NAME.fullmatch(name):
                raise KeyError("weights")
        except (
            json.JSONDecodeError,
            UnicodeDecodeError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:
            raise ValueError(
                f"{where}: tagger.json is not what mstag writes ({error}); get it anew"
            ) from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        try:
            return tagger, (folder / name).read_bytes()
        except FileNotFoundError:
            # A training run may have replaced the bundle between the two reads.
            if attempt == 2:
                raise ValueError(f"{where}: {name} is missing; copy the whole folder") from None
    raise AssertionError("unreachable")
