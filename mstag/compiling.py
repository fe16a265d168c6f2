"""How loops are compiled: by numba, once for a machine, and kept on disk beside their file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

# nogil: threads run compiled loops side by side. contract: a product and a sum may become one
# instruction; nothing else of IEEE arithmetic is given up.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "fastmath": {"contract"},
    "error_model": "numpy",
}


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles a function when it is first called with arguments of new types."""
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:
        # Neither beside the file nor in the user's cache folder can anything be written: then
        # each process compiles for itself, which takes seconds.
        return njit(**_OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """For small functions that only compiled ones call."""
    return njit(inline="always")(function)
