"""What is in a folder of shards: for programs as a dict, for people as a page of text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mstag.data import shards
from shard_tools.foreign_samples import place

NUM_SHOWN = 10


def inspect(folder: Path) -> dict[str, Any]:
    """Summarises the manifest of a folder of shards, ready for JSON.

    Raises:
        ValueError: the folder holds no finished shards.
    """
    manifest = shards.read_manifest(folder)
    return {
        "dataset": manifest.dataset,
        "digest": manifest.digest,
        "features": {name: getattr(manifest.features, name) for name in FEATURES},
        "splits": {
            name: {
                "clips": split.clips,
                "shards": len(split.shards),
                "bytes": sum(shard.bytes for shard in split.shards),
            }
            for name, split in manifest.splits.items()
        },
        "split_rule": manifest.split_rule,
        "leaks": manifest.leaks,
        "oracle_roc_auc": manifest.oracle_roc_auc,
        "tags": manifest.tags,
        "skipped": manifest.skipped,
        "foreign": _layout(manifest),
        "mstag_version": manifest.mstag_version,
    }


FEATURES = ("recipe", "sample_rate_hz", "n_fft", "hop_length", "n_mels", "num_frames")


def format_summary(summary: dict[str, Any]) -> str:
    """Lays a summary out for people."""
    known = summary["features"]
    if known["recipe"] == "unknown":  # nobody knows the other ones either
        known = {name: known[name] for name in ("recipe", "n_mels", "num_frames")}
    features = ", ".join(f"{name} {value}" for name, value in known.items())
    lines = [
        f"{summary['dataset']}: {len(summary['tags'])} tags, digest {summary['digest'][:12]}",
        *_foreign(summary["foreign"]),
        f"features  {features}",
        f"split     {summary['split_rule']}",
    ]
    for name, split in summary["splits"].items():
        size = f"{split['clips']:>7,} samples in {split['shards']:>4} shards"
        lines.append(f"          {name:5} {size}, {split['bytes'] / 1e6:,.1f} MB")
    lines += [
        *(f"leaks     {name:5} {_shares(kinds)}" for name, kinds in summary["leaks"].items()),
        f"oracle    {_number(summary['oracle_roc_auc'])} test ROC-AUC without hearing anything",
        "tags      " + " / ".join(summary["splits"]),
    ]
    wide = max((len(tag["tag"]) for tag in summary["tags"]), default=0)
    for tag in summary["tags"]:
        lines.append(f"          {tag['tag']:{wide}}  {_counts(tag, summary['splits'])}")
    skipped = summary["skipped"]
    if skipped:
        lines.append(f"skipped   {len(skipped)} clips")
        lines += [f"          {s['path'] or s['id']}: {s['reason']}" for s in skipped[:NUM_SHOWN]]
    if len(skipped) > NUM_SHOWN:
        lines.append(f"          and {len(skipped) - NUM_SHOWN} more (--json lists all)")
    return "\n".join(lines)


def _counts(tag: dict[str, Any], splits: Iterable[str]) -> str:
    """Positives per split; where labels are partial, of how many known ones."""
    counts = [f"{tag['positives'].get(name, 0):,}" for name in splits]
    if "known" in tag:
        known = [f"{tag['known'].get(name, 0):,}" for name in splits]
        counts = [f"{count} of {total}" for count, total in zip(counts, known, strict=True)]
    return " / ".join(counts) + (" known" if "known" in tag else "")


def _layout(manifest: shards.Manifest) -> dict[str, str] | None:
    """Where spectrograms and labels come from, as EXT[:KEY]; None: shards of our own."""
    if manifest.foreign is None:
        return None
    mel = place(manifest.foreign.mel, manifest.foreign.key)
    return {"mel": mel, "labels": manifest.foreign_labels}


def _foreign(layout: dict[str, str] | None) -> list[str]:
    if layout is None:
        return []
    return [
        f"foreign   indexed, not packed by mstag: spectrograms from member {layout['mel']}, labels "
        f"from {layout['labels']}"
    ]


def _shares(kinds: dict[str, float | None]) -> str:
    return "  ".join(f"{kind} {_number(share)}" for kind, share in kinds.items())


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
