"""Are these shards whole? Every byte is read, every fault is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mstag import files
from mstag.data import shards, tars
from shard_tools.foreign_verify import verify_foreign


def verify(folder: Path, *, progress: bool = False) -> list[str]:
    """Checks a folder of shards against its manifest.

    Read sceptically: sizes and sha256 of all files; each tar from its own headers; shapes,
    types and values of every sample; the index against the tars; counts and positives; no
    clip in two splits, no key twice. Shards of somebody else are compared with what
    `shard-tools index` wrote down of them.

    Returns:
        One line per fault, none when the folder is whole.
    """
    from tqdm import tqdm

    try:
        manifest = shards.read_manifest(folder)
    except ValueError as error:
        return [str(error)]
    if manifest.foreign:
        return verify_foreign(folder, manifest, progress=progress)
    faults: list[str] = []
    split_of: dict[str, str] = {}
    total = sum(len(split.shards) for split in manifest.splits.values())
    hidden = None if progress else True  # None: shown on a terminal
    with tqdm(total=total, desc="verifying", unit="shard", delay=2, disable=hidden) as bar:
        for name, split in manifest.splits.items():
            rows = []
            positives, known = np.zeros((2, len(manifest.tags)), np.int64)
            keys: set[str] = set()
            for number, entry in enumerate(split.shards):
                found, samples, own_faults = _verify_shard(folder, entry, manifest)
                faults += own_faults
                found["shard"] = number
                rows.append(found)
                for sample in samples:
                    positives += sample.tags
                    known += 1 if sample.mask is None else sample.mask
                    clip_id = str(sample.meta.get("id"))
                    if split_of.setdefault(clip_id, name) != name:
                        faults.append(
                            f"{entry.name}: clip {clip_id} is also in {split_of[clip_id]}"
                        )
                    if sample.key in keys:
                        faults.append(f"{entry.name}: key {sample.key} is there twice")
                    keys.add(sample.key)
                bar.update()
            faults += _verify_split(folder, name, manifest, rows)
            faults += _verify_counts(name, manifest, {"positives": positives, "known": known})
    return faults


def _verify_shard(
    folder: Path, entry: shards.FileEntry, manifest: shards.Manifest
) -> tuple[np.ndarray, list[tars.Sample], list[str]]:
    """Index rows, well-formed samples and faults of one shard."""
    path = folder / entry.name
    faults: list[str] = []
    try:
        num_bytes = path.stat().st_size
        sha256 = files.sha256_file(path)
    except OSError as error:
        reason = error.strerror or str(error)
        return np.empty(0, tars.INDEX_DTYPE), [], [f"{entry.name}: missing ({reason})"]
    if num_bytes != entry.bytes:
        faults.append(f"{entry.name}: {num_bytes} bytes, the manifest says {entry.bytes}")
    if sha256 != entry.sha256:
        faults.append(
            f"{entry.name}: sha256 {sha256[:12]}..., the manifest says {entry.sha256[:12]}..."
        )
    try:
        rows, samples = tars.scan_shard(path)
    except ValueError as error:
        return np.empty(0, tars.INDEX_DTYPE), [], [*faults, f"{entry.name}: {error}"]
    if len(samples) != entry.clips:
        faults.append(f"{entry.name}: {len(samples)} samples, the manifest says {entry.clips}")
    good = []
    for sample in samples:
        fault = _sample_fault(sample, manifest)
        if fault:
            faults.append(f"{entry.name}: sample {sample.key}: {fault}")
        else:
            good.append(sample)
    return rows, good, faults


def _sample_fault(sample: tars.Sample, manifest: shards.Manifest) -> str | None:
    shape = (manifest.features.n_mels, manifest.features.num_frames)
    labels = (len(manifest.tags),)
    if sample.mel.dtype != np.float16 or sample.mel.shape != shape:
        return f"mel is {sample.mel.dtype} {sample.mel.shape}, not float16 {shape}"
    if not np.isfinite(sample.mel).all():
        return "mel holds values that are not finite"
    for name, array in (("tags", sample.tags), ("mask", sample.mask)):
        if array is None:
            continue
        if array.dtype != np.uint8 or array.shape != labels or array.max(initial=0) > 1:
            return f"{name} is not a 0/1 vector of {labels[0]} uint8"
    if sample.mask is not None and (sample.tags > sample.mask).any():
        return "a tag that its mask calls unknown is set"
    if not isinstance(sample.meta, dict) or not isinstance(sample.meta.get("id"), str):
        return "its json names no id"
    return None


def _verify_split(
    folder: Path,
    name: str,
    manifest: shards.Manifest,
    rows: list[np.ndarray],
) -> list[str]:
    faults = []
    try:
        index = shards.read_index(folder, name, manifest)
    except ValueError as error:
        faults.append(str(error))
    else:
        found = np.concatenate(rows) if rows else np.empty(0, tars.INDEX_DTYPE)
        if not np.array_equal(index, found):
            faults.append(f"{name}: the index does not describe the shards")
    return faults


def _verify_counts(name: str, manifest: shards.Manifest, found: dict[str, np.ndarray]) -> list[str]:
    """Compares what the manifest says of each tag with what the shards hold."""
    words = {"positives": "positives", "known": "known labels"}
    return [
        f"{name}: tag {tag['tag']} has {count} {words[what]}, not {tag[what].get(name, 0)}"
        for what, counts in found.items()
        for tag, count in zip(manifest.tags, counts.tolist(), strict=True)
        if what in tag and tag[what].get(name, 0) != count
    ]
