"""What may stand in a setting: checks that name the setting, the rule and the remedy.

All raise ValueError.
"""

from __future__ import annotations

import difflib
import math
from typing import Any, get_args, get_origin


def typed(name: str, value: Any, kind: Any) -> Any:
    """A setting's value as ``kind``; TOML's integers serve as floats, its arrays as tuples."""
    if get_origin(kind) is tuple and get_args(kind)[1:] == (Ellipsis,):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} = {value!r}: must be an array")
        return tuple(typed(name, v, get_args(kind)[0]) for v in value)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            raise ValueError(f"{name} = {value!r}: must be an array of {len(kinds)} numbers")
        return tuple(typed(name, v, k) for v, k in zip(value, kinds, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
        raise ValueError(f"{name} = {value!r}: must be {words[kind]}")
    return value


def unknown(shown: str, name: str, known: list[str], what: str) -> str:
    """What to say of a name that is not known: the nearest one, or all."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
    return f"unknown {what} {shown}: {hint}"


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuses a word that is not allowed."""
    if value not in allowed:
        raise ValueError(unknown(f"{name} = {value!r}", value, list(allowed), "value"))


def at_least(name: str, value: float, low: float) -> None:
    """Refuses a number below ``low``."""
    if value < low:
        raise ValueError(f"{name} = {value}: must be at least {low}")


def within(name: str, value: float, low: float, high: float) -> None:
    """Refuses a number outside ``low`` to ``high``."""
    if not low <= value <= high:
        raise ValueError(f"{name} = {value}: must be between {low} and {high}")
