"""Statistics of a collection -> what a reader should know of it before training, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mstag.config import FeatureConfig

LEAK_SHARE = 0.01
"""Of a split's clips: from here on a leak is worth a warning."""
ORACLE_ROC_AUC = 0.55
"""Of a guesser that hears nothing; 0.5 is chance, and small splits scatter around it."""
SHIFT_DB = 3.0
"""Between the median spectra of train and another split."""
MIN_COMPARED = 20
"""Clips of a split below which its median spectrum is chance."""

Point = tuple[bool, str]
"""(whether it is a warning, the words)."""


def features_in_words(features: FeatureConfig) -> str:
    """What a sample holds, for people."""
    if features.recipe == "unknown":
        return (
            f"spectrograms made elsewhere, nobody told how: {features.n_mels} bands, "
            f"{features.num_frames} frames"
        )
    rate, hop, fft = features.sample_rate_hz, features.hop_length, features.n_fft
    return (
        f"natural log of mel power: {features.n_mels} bands from 0 to {rate / 2:,.0f} Hz, "
        f"{features.num_frames} frames = {features.num_frames * features.frame_s:.1f} s a sample; "
        f"a frame every {1000 * hop / rate:.1f} ms (hop {hop}), from windows of "
        f"{1000 * fft / rate:.0f} ms (FFT {fft}), of mono audio at {rate:,} Hz"
    )


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
            found = _listed([f"{percent(share)} have their {kind}" for kind, share in hits.items()])
            words.append(f"Of the {split} clips, {found} in train too")
            if max(hits.values()) >= LEAK_SHARE:
                words[-1] += ": expect scores that flatter, or split by artist"
        elif shares:
            words.append(f"No {split} clip has its {_listed(list(shares), 'or')} in train")
        if unknown:
            words.append(f"{split}: whether train has the same {_listed(unknown, 'or')} is unknown")
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


def tags_in_words(counts: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Tags that cannot be learnt or scored, by what is wrong."""
    by_note: dict[tuple[str, str], list[str]] = {}
    for entry in counts:
        for split, cell in entry["splits"].items():
            if cell["note"]:
                by_note.setdefault((cell["note"], split), []).append(entry["tag"])
    if not by_note:
        return [(False, "Every tag has enough positives in every split to be learnt and scored.")]
    return [
        (True, f"{count(len(names), 'tag')}: {note} in {split} ({_listed(names, most=8)}).")
        for (note, split), names in by_note.items()
    ]


def notes_in_words(entry: Mapping[str, Any]) -> str:
    """What a tag's counts mean, e.g. "vague score in valid and test"."""
    splits_of: dict[str, list[str]] = {}
    for split, cell in entry["splits"].items():
        if cell["note"]:
            splits_of.setdefault(cell["note"], []).append(split)
    return "; ".join(f"{note} in {_listed(splits)}" for note, splits in splits_of.items())


def clips_in_words(found: Mapping[str, Any]) -> list[Point]:
    """What the clips themselves show: silence, padding, breaks, values, twins, shifts.

    Args:
        found: the statistics of ``report_page.statistics``.
    """
    total, flags = found["num_clips"], found["flags"]
    points: list[Point] = []
    for key, words in (
        ("not_finite", "With values that are not finite (NaN or infinite)"),
        ("quiet", "Nearly silent"),
        ("truncated", "From files that break off"),
        ("short", "Padded by more than a tenth of their samples"),
    ):
        if flags[key]:
            share = percent(flags[key] / total)
            points.append((True, f"{words}: {count(flags[key], 'clip')} ({share})."))
    if not points and total:
        fine = "No clip is silent, cut short or mostly padding."
        points.append((False, fine if found["is_power"] else "All values are finite numbers."))
    for split, gap in found["shifts"].items():
        far = [f"{gap['level']:+.1f} dB in level"] if abs(gap["level"]) >= SHIFT_DB else []
        far += [f"{gap['shape']:.1f} dB in colour"] if gap["shape"] >= SHIFT_DB else []
        if far:
            words = f"{split} sounds different from train: {_listed(far)} (medians of the spectra)."
            points.append((True, words))
    twins = [f"{pair['a']} = {pair['b']}" for pair in found["pairs"]["twins"]]
    if twins:
        some = _listed(twins, most=6)
        points.append((True, f"Tags that are nearly one and the same: {some}; merge them?"))
    return points


def skipped_in_words(num_skipped: int, num_packed: int) -> Point:
    """How much of the collection is not there."""
    if not num_skipped:
        return False, "No clip was skipped."
    share = num_skipped / (num_skipped + num_packed)
    words = f"{count(num_skipped, 'clip')} ({percent(share)} of the collection) were skipped"
    return share > 0.01, f"{words}; the reasons stand below."


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


def _listed(words: Sequence[str], last: str = "and", most: int = 99) -> str:
    shown = list(words[:most])
    if len(words) > most:
        return ", ".join(shown) + f" and {len(words) - most} more"
    return f" {last} ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
