from __future__ import annotations

import numpy as np
import pytest
from numba.core import caching

from mstag.compiling import compiled


def total(numbers: np.ndarray) -> float:
    found = 0.0
    for number in numbers:
        found += number
    return found


def test_compiled_loops_do_what_they_did() -> None:
    numbers = np.arange(10.0)
    assert compiled(total)(numbers) == total(numbers) == 45


def test_a_machine_on_which_nothing_can_be_kept_compiles_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="no locator available"):
        caching.FunctionCache(total)
    assert compiled(total)(np.arange(10.0)) == 45
