"""A folder of shards -> one HTML page to look at before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mstag import files
from mstag.show.page import Section, html_page
from shard_tools import report, report_words
from shard_tools import report_sections as content
from shard_tools.survey import MAX_SAMPLES, Survey, survey


def write_report(
    folder: Path, out: Path, *, most: int = MAX_SAMPLES, seed: int = 0, progress: bool = False
) -> int:
    """Writes a self-contained page on a finished folder of shards.

    Args:
        folder: of shards, packed by mstag or indexed.
        out: the page; replaced as a whole.
        most: samples that are read; of larger folders a part is drawn, and the page says so.
        seed: of the draw and of the spectrograms shown.
        progress: show a bar, on a terminal, when it takes more than two seconds.

    Returns:
        The page's size in bytes.

    Raises:
        ValueError: no finished shards, a sample is damaged, or ``out`` is no .html file.
    """
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        # A manifest or a tar named by mistake would be gone.
        raise ValueError(f"{out}: the page needs the name of a file that ends in .html")
    looked_at = survey(folder, most=most, seed=seed, progress=progress)
    html = page(looked_at, statistics(looked_at, seed=seed)).encode()
    files.write_bytes(out, html)
    return len(html)


def statistics(looked_at: Survey, *, seed: int = 0) -> dict[str, Any]:
    """All that the page says, but for the pictures."""
    manifest, split = looked_at.manifest, looked_at.split
    names, tag_names = list(manifest.splits), manifest.tag_names
    sizes = {name: entry.clips for name, entry in manifest.splits.items()}
    known = _known(looked_at, sizes)
    positives = {name: [t["positives"].get(name, 0) for t in manifest.tags] for name in names}
    together = report.co_occurrence(looked_at.tags, looked_at.mask)
    quiet = _quiet(looked_at)
    spectra = report.spectra(looked_at.bands, split, len(names))
    frames, padded = looked_at.num_frames, looked_at.num_padded
    return {
        "num_clips": len(looked_at.ids),
        "clips": _num_clips(looked_at, sizes),
        "is_power": manifest.features.recipe != "unknown",
        "is_partial": known is not None,
        "counts": report.tag_counts(tag_names, positives, sizes, known),
        "together": together,
        "pairs": report.pairs(together, tag_names),
        "quiet": quiet,
        "spectra": dict(zip(names, spectra, strict=True)),
        "shifts": _shifts(looked_at, dict(zip(names, spectra, strict=True))),
        "flags": {
            "padded": int((padded > 0).sum()),
            "short": int((padded > 0.1 * (frames + padded)).sum()),
            "truncated": int(looked_at.is_truncated.sum()),
            "windows": int((looked_at.num_samples > 1).sum()),
            "not_finite": int(np.isnan(looked_at.levels).sum()),
            "quiet": len(quiet),
        },
        "reasons": report.group_reasons(manifest.skipped),
        "examples": report.examples(
            looked_at.tags,
            split == (names.index("train") if "train" in names else -1),
            looked_at.makers,
            max(1, min(3, content.MAX_SHOWN // max(1, len(tag_names)))),
            seed=seed,
        ),
    }


def page(looked_at: Survey, found: dict[str, Any]) -> str:
    """The page as HTML."""
    manifest = looked_at.manifest
    sections = [
        Section("Before training", content.before_training(looked_at, found)),
        Section("What is in it", content.contents(looked_at, found)),
        Section("Tags", content.tag_counts(found)),
        Section("Tags together", content.tags_together(looked_at, found)),
        Section("Durations", content.durations(looked_at, found)),
        Section("Levels", content.levels(looked_at, found)),
        Section("Split and leaks", content.leaks(looked_at)),
        Section("Skipped clips", content.skipped_clips(looked_at, found)),
        Section("Spectrograms", content.spectrograms(looked_at, found)),
    ]
    return html_page(f"Shards of {manifest.dataset}", sections)


def _quiet(looked_at: Survey) -> Any:
    if looked_at.manifest.features.recipe == "unknown":
        return np.empty(0, np.int64)
    return report.quiet_clips(looked_at.levels)


def _shifts(looked_at: Survey, spectra: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of the splits with clips enough to compare them with train, in dB."""
    if looked_at.manifest.features.recipe == "unknown":
        return {}
    enough = [n for n, num in looked_at.starts.items() if num >= report_words.MIN_COMPARED]
    comparable = {name: spectra[name] for name in enough if spectra[name] is not None}
    if "train" not in comparable:
        return {}
    train = comparable.pop("train")
    return {name: report.shift(train, line) for name, line in comparable.items()}


def _num_clips(looked_at: Survey, sizes: dict[str, int]) -> dict[str, int]:
    """Clips per split; estimated from how many of the drawn samples begin one."""
    if looked_at.drawn is None:
        return dict(looked_at.starts)
    return {
        name: round(sizes[name] * looked_at.starts[name] / max(1, looked_at.drawn[name]))
        for name in sizes
    }


def _known(looked_at: Survey, sizes: dict[str, int]) -> dict[str, list[float]] | None:
    """Known labels per split and tag: as the manifest says, else from the clips that were read."""
    tags = looked_at.manifest.tags
    if all("known" in tag for tag in tags) and tags:
        return {name: [tag["known"].get(name, 0) for tag in tags] for name in sizes}
    if looked_at.mask is None:
        return None
    known = {}
    for number, (name, size) in enumerate(sizes.items()):
        weights = looked_at.num_samples * (looked_at.split == number)
        share = weights @ looked_at.mask / max(1, int(weights.sum()))
        known[name] = [float(value) for value in size * share]
    return known
