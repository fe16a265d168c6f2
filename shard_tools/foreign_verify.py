"""Are indexed shards still what `shard-tools index` wrote down of them?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mstag.data import shards
from mstag.data.shards import Manifest, Split
from shard_tools.foreign_samples import Layout, SampleReader, Scan
from shard_tools.foreign_tars import shown

REMEDY = "restore the files, or run `shard-tools index` again"


def verify_foreign(folder: Path, manifest: Manifest, *, progress: bool = False) -> list[str]:
    """Scans every tar again and compares it with the manifest, the index, labels and ids.

    Returns:
        One line per fault, none when the folder is whole.
    """
    from tqdm import tqdm

    assert manifest.foreign is not None
    mel, features = manifest.foreign, manifest.features
    if not manifest.foreign_labels:
        return [f"{folder}: the manifest does not say where the labels came from; {REMEDY}"]
    labels_at, _, labels_key = manifest.foreign_labels.partition(":")
    layout = Layout(mel.mel, mel.key, labels_at, labels_key)
    reader = SampleReader(layout, manifest.tag_names, (features.n_mels, features.num_frames))
    faults: list[str] = []
    total = sum(len(split.shards) for split in manifest.splits.values())
    hidden = None if progress else True  # None: shown on a terminal
    with tqdm(total=total, desc="verifying", unit="tar", delay=2, disable=hidden) as bar:
        for name, split in manifest.splits.items():
            try:
                index, labels, ids = _read_small_files(folder, name, manifest)
            except ValueError as error:
                faults.append(str(error))
                index, labels, ids = None, None, None
            positives = np.zeros(len(manifest.tags), np.int64)
            start = 0
            for number, entry in enumerate(split.shards):
                scan = _scan(folder / entry.name, reader, faults)
                bar.update()
                end = start + entry.clips
                if scan is not None:
                    positives += scan.labels.sum(axis=0, dtype=np.int64)
                    own = _entry_faults(scan, entry)
                    if index is not None and labels is not None and ids is not None and not own:
                        scan.rows["shard"] = number
                        own = _differences(
                            scan, index[start:end], labels[start:end], ids[start:end]
                        )
                    faults += own
                start = end
            faults += _positive_faults(name, manifest, positives)
    return faults


def _read_small_files(
    folder: Path, name: str, manifest: Manifest
) -> tuple[NDArray[np.void], NDArray[np.uint8], list[str]]:
    split: Split = manifest.splits[name]
    index = shards.read_index(folder, name, manifest)
    if split.labels is None or split.ids is None:
        raise ValueError(f"{name}: the manifest names no labels or no ids; {REMEDY}")
    path = folder / split.labels.name
    labels = shards.parse_npy(shards.read_vouched(path, split.labels), path)
    if labels.dtype != np.uint8 or labels.shape != (split.clips, len(manifest.tags)):
        raise ValueError(f"{path}: not the labels of {split.clips} samples; {REMEDY}")
    ids = json.loads(shards.read_vouched(folder / split.ids.name, split.ids))
    if not isinstance(ids, list) or len(ids) != split.clips:
        raise ValueError(f"{folder / split.ids.name}: not {split.clips} ids; {REMEDY}")
    return index, labels, ids


def _scan(path: Path, reader: SampleReader, faults: list[str]) -> Scan | None:
    try:
        scan = reader.scan(path)
    except OSError as error:
        faults.append(f"{shown(path.name)}: missing ({error.strerror or error})")
        return None
    faults += scan.faults
    return scan


def _entry_faults(scan: Scan, entry: shards.FileEntry) -> list[str]:
    """What differs from the manifest in a whole tar; if it is another tar, that says it all."""
    found, name = scan.entry, shown(entry.name)
    if found.bytes != entry.bytes:
        return [f"{name}: {found.bytes} bytes, the manifest says {entry.bytes}"]
    if found.sha256 != entry.sha256:
        return [f"{name}: sha256 {found.sha256[:12]}..., the manifest says {entry.sha256[:12]}..."]
    if found.clips != entry.clips:
        return [f"{name}: {found.clips} samples, the manifest says {entry.clips}"]
    return []


def _differences(
    scan: Scan, index: NDArray[np.void], labels: NDArray[np.uint8], ids: list[str]
) -> list[str]:
    faults = []
    different = {
        "index": scan.rows != index,
        "labels": (scan.labels != labels).any(axis=1),
        "ids": np.array([a != b for a, b in zip(scan.ids, ids, strict=True)], bool),
    }
    for what, rows in different.items():
        if rows.any():
            first = int(np.argmax(rows))
            faults.append(
                f"{shown(scan.entry.name)}: the {what} of {int(rows.sum())} samples are not what "
                f"the tar says, first {shown(scan.ids[first])} (sample {first} of it); {REMEDY}"
            )
    return faults


def _positive_faults(name: str, manifest: Manifest, positives: NDArray[np.int64]) -> list[str]:
    return [
        f"{name}: tag {tag['tag']} has {count} positives, not {tag['positives'].get(name, 0)}"
        for tag, count in zip(manifest.tags, positives.tolist(), strict=True)
        if tag["positives"].get(name, 0) != count
    ]
