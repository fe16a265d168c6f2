"""Statistics of a collection -> what a reader should know of it before training, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mstag.config import FeatureConfig
from mstag.show.wording import Point, count, listed, percent

SHIFT_DB = 3.0
"""Between the median spectra of train and another split."""
MIN_COMPARED = 20
"""Clips of a split below which its median spectrum is chance."""


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
        (True, f"{count(len(names), 'tag')}: {note} in {split} ({listed(names, most=8)}).")
        for (note, split), names in by_note.items()
    ]


def notes_in_words(entry: Mapping[str, Any]) -> str:
    """What a tag's counts mean, e.g. "vague score in valid and test"."""
    splits_of: dict[str, list[str]] = {}
    for split, cell in entry["splits"].items():
        if cell["note"]:
            splits_of.setdefault(cell["note"], []).append(split)
    return "; ".join(f"{note} in {listed(splits)}" for note, splits in splits_of.items())


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
            words = f"{split} sounds different from train: {listed(far)} (medians of the spectra)."
            points.append((True, words))
    twins = [f"{pair['a']} = {pair['b']}" for pair in found["pairs"]["twins"]]
    if twins:
        some = listed(twins, most=6)
        points.append((True, f"Tags that are nearly one and the same: {some}; merge them?"))
    return points


def skipped_in_words(num_skipped: int, num_packed: int) -> Point:
    """How much of the collection is not there."""
    if not num_skipped:
        return False, "No clip was skipped."
    share = num_skipped / (num_skipped + num_packed)
    words = f"{count(num_skipped, 'clip')} ({percent(share)} of the collection) were skipped"
    return share > 0.01, f"{words}; the reasons stand below."
