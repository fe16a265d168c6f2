"""How loops are compiled: by numba, once for a machine, and kept on disk beside their file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

# nogil: threads run compiled loops side by side.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles a function when it is first called with arguments of new types.

    A product and a sum may become one instruction, with one rounding instead of two; nothing
    else of IEEE arithmetic is given up.
    """
    return _compiled(function, {**_OPTIONS, "fastmath": {"contract"}})


def compiled_exactly(function: Callable[..., Any]) -> Any:
    """The same, and every operation rounds as numpy's does."""
    return _compiled(function, _OPTIONS)


def inlined(function: Callable[..., Any]) -> Any:
    """For small functions that only compiled ones call."""
    return njit(inline="always")(function)


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        # Neither beside the file nor in the user's cache folder can anything be written: then
        # each process compiles for itself, which takes seconds.
        return njit(**options)(function)
