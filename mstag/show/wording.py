"""Numbers -> words that pages share: what a split is worth, shares, sizes, lists."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

LEAK_SHARE = 0.01
"""Of a split's clips: from here on a leak is worth a warning."""
ORACLE_ROC_AUC = 0.55
"""Of a guesser that hears nothing; 0.5 is chance, and small splits scatter around it."""

Point = tuple[bool, str]
"""(whether it is a warning, the words)."""


def leaks_in_words(leaks: Mapping[str, Mapping[str, float | None]]) -> list[Point]:
    """The leak report of a manifest, a sentence a split."""
    if not leaks:
        return [
            (
                True,
                "Nothing is known of artists, albums and tracks, so nobody can say whether a "
                "split repeats what is in train. If it does, its scores flatter.",
            )
        ]
    points = []
    for split, kinds in leaks.items():
        shares = {kind: share for kind, share in kinds.items() if share is not None}
        unknown = [kind for kind, share in kinds.items() if share is None]
        hits = {kind: share for kind, share in shares.items() if share > 0}
        words = []
        if hits:
            found = listed([f"{percent(share)} have their {kind}" for kind, share in hits.items()])
            words.append(f"Of the {split} clips, {found} in train too")
            if max(hits.values()) >= LEAK_SHARE:
                words[-1] += ": expect scores that flatter, or split by artist"
        elif shares:
            words.append(f"No {split} clip has its {listed(list(shares), 'or')} in train")
        if unknown:
            words.append(f"{split}: whether train has the same {listed(unknown, 'or')} is unknown")
        is_warning = max(hits.values(), default=0.0) >= LEAK_SHARE or not shares
        points.append((is_warning, ". ".join(words) + "."))
    return points


def oracle_in_words(roc_auc: float) -> Point:
    """The score of the guesser that hears nothing."""
    words = (
        f"A guesser that hears nothing, and knows only who made each clip, reaches a test ROC-AUC "
        f"of {roc_auc:.3f}"
    )
    if roc_auc <= ORACLE_ROC_AUC:
        return False, f"{words} (0.5 is chance): the split gives little away."
    return True, f"{words}: only what a model scores above that is learnt from sound."


def percent(share: float) -> str:
    """A share as a percentage that never rounds something to nothing or to all."""
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    value = 100 * share
    return f"{value:.1f}%" if value < 10 and value != round(value) else f"{value:.0f}%"


def hours(seconds: float) -> str:
    """A length of time in the unit that a reader thinks in."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 360_000 else f"{seconds / 3600:,.0f} h"


def size(num_bytes: int) -> str:
    """Bytes in decimal units."""
    power = min(4, max(0, int(math.log10(max(num_bytes, 1)) // 3)))
    number = num_bytes / 1000**power
    unit = ("bytes", "KB", "MB", "GB", "TB")[power]
    shown = f"{number:.1f}" if power and number < 100 else f"{number:,.0f}"
    return f"{shown}\N{NO-BREAK SPACE}{unit}"


def count(number: int, what: str) -> str:
    """A number and its noun."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def listed(words: Sequence[str], last: str = "and", most: int = 99) -> str:
    """Words joined by commas and ``last``; more than ``most`` are counted instead."""
    shown = list(words[:most])
    if len(words) > most:
        return ", ".join(shown) + f" and {len(words) - most} more"
    return f" {last} ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
