"""What stands in a bundle's tagger.json: written readably, read for ever.

A bundle outlives the mstag that wrote it. Two rules see to that:

- Digests are taken of what the bundle itself says, so a setting that comes later changes none.
- A setting that is added to [features] or [model] raises ``FORMAT_VERSION``, and an upgrade of
  its own says what older bundles meant by not having it. A test holds the two together.

What this mstag does not know is refused, never guessed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

from mstag import __version__
from mstag.config import FeatureConfig, ModelConfig, digest, from_tables

FORMAT_VERSION = 2
LINE_LENGTH = 160
"""Of tagger.json: a tag with its scores and their intervals fits in."""
SECTIONS = {"features": FeatureConfig, "model": ModelConfig}


class NewerFormatError(ValueError):
    """Only a later mstag understands it."""


def to_text(tagger: dict[str, Any]) -> str:
    """JSON for people too: what fits into a line stands on one. NaN is a ValueError."""
    return f"{_readable(tagger, 0)}\n"


def parse(text: str) -> dict[str, Any]:
    """The content of a tagger.json, upgraded to this version of the format.

    Raises:
        KeyError, TypeError, AttributeError: it is not what any mstag writes.
        ValueError: not JSON, or changed by hand.
        NewerFormatError: of a format that this mstag does not know.
    """
    tagger = dict(json.loads(text))
    version = tagger["format_version"]
    if not isinstance(version, int) or version < 1:
        raise KeyError("format_version")
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"format {version} is newer than this mstag reads ({FORMAT_VERSION}; mstag "
            f"{_writer(tagger)} wrote it); upgrade mstag"
        )
    for name in ("features", "tags"):
        if tagger[f"{name}_digest"] != digest(tagger[name]):
            raise ValueError(
                f"tagger.json was changed by hand: the digest of its {name} does not fit; get the "
                "bundle anew"
            )
    for old in range(version, FORMAT_VERSION):
        tagger = {**UPGRADES[old](tagger), "format_version": old + 1}
    return tagger


def settings(tagger: dict[str, Any]) -> tuple[FeatureConfig, ModelConfig]:
    """The features and the architecture of what :func:`parse` returned.

    Raises:
        KeyError: one is missing.
        ValueError: a value that this mstag does not take.
        NewerFormatError: a setting that this mstag does not know.
    """
    for section, cls in SECTIONS.items():
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(tagger[section]) - known):
            raise NewerFormatError(
                f"{section}.{unknown[0]} is a setting that this mstag ({__version__}) does not "
                f"know; mstag {_writer(tagger)} wrote it: upgrade mstag"
            )
        if missing := sorted(known - set(tagger[section])):
            raise KeyError(f"{section}.{missing[0]}")
    config = from_tables({section: tagger[section] for section in SECTIONS})
    return config.features, config.model


def advice(tagger: dict[str, Any]) -> str:
    """What to do about a refused bundle that a newer mstag wrote; empty if none did."""
    if _as_numbers(_writer(tagger)) <= _as_numbers(__version__):
        return ""
    return f"mstag {_writer(tagger)} wrote it, this is {__version__}: upgrade mstag"


def upgrade_1_to_2(tagger: dict[str, Any]) -> dict[str, Any]:
    """Version 1 gained features.recipe and model.chunk_frames when bundles were about already.

    Before, there was one recipe, and every network took whole windows.
    """
    return {
        **tagger,
        "features": {"recipe": "log-mel", **tagger["features"]},
        "model": {"chunk_frames": 0, **tagger["model"]},
    }


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: upgrade_1_to_2}
"""By version: what makes a tagger.json of the next one out of it."""


def _writer(tagger: dict[str, Any]) -> str:
    return str(tagger.get("mstag_version", "unknown"))


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _readable(value: Any, depth: int) -> str:
    line = json.dumps(value, allow_nan=False)
    fits = depth > 0 and len(line) + depth + 1 <= LINE_LENGTH
    if fits or not value or not isinstance(value, dict | list):
        return line
    inner = depth + 1
    indent = " " * inner
    if isinstance(value, dict):
        rows = [f"{json.dumps(str(key))}: {_readable(v, inner)}" for key, v in value.items()]
        opening, closing = "{", "}"
    elif any(isinstance(v, dict | list) for v in value):
        rows = [_readable(v, inner) for v in value]
        opening, closing = "[", "]"
    else:
        rows = _filled([json.dumps(v) for v in value], LINE_LENGTH - inner - 1)
        opening, closing = "[", "]"
    body = f",\n{indent}".join(rows)
    return f"{opening}\n{indent}{body}\n{' ' * depth}{closing}"


def _filled(words: list[str], width: int) -> list[str]:
    """As many words a row as fit, with commas between."""
    rows = [words[0]]
    for word in words[1:]:
        if len(rows[-1]) + 2 + len(word) <= width:
            rows[-1] += f", {word}"
        else:
            rows.append(word)
    return rows
