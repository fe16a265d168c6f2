"""WebDataset tars that somebody else wrote -> a folder that training reads like our own.

Each tar is read once and stays as it is; a manifest, an index, labels and ids are written
beside it. All or nothing: one fault anywhere, and nothing is written.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mstag
from mstag import config, files
from mstag.data import shards, tars
from mstag.data.shards import Manifest, Split
from shard_tools.foreign_layout import find_layout, first_sample, parse_place
from shard_tools.foreign_samples import (
    LABEL_KINDS,
    MEL_KINDS,
    SampleReader,
    Scan,
    place,
    read_tags,
)
from shard_tools.foreign_splits import assign_splits, list_tars, some, tars_below

MAX_SHOWN_FAULTS = 20
MAX_LOST = 0.001
"""Share of values that may become 0 in float16 before a note says so."""


@dataclass(frozen=True, slots=True)
class Report:
    """What indexing a folder came to; ``manifest`` is None where there are faults."""

    sizes: dict[str, int]
    faults: list[str]
    notes: list[str]
    num_tags: int
    manifest: Manifest | None = None

    def summary(self, folder: Path) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "folder": str(folder),
            "splits": self.sizes,
            "tags": self.num_tags,
            "faults": self.faults,
            "notes": self.notes,
        }

    def shown_faults(self) -> list[str]:
        """The first faults, and how many more there are."""
        more = len(self.faults) - MAX_SHOWN_FAULTS
        tail = [f"and {more} more (--json lists all)"] if more > 0 else []
        return self.faults[:MAX_SHOWN_FAULTS] + tail


def index(
    folder: Path,
    tags_path: Path,
    *,
    name: str | None = None,
    settings: config.Config | None = None,
    split_rules: tuple[str, ...] = (),
    mel: str | None = None,
    labels: str | None = None,
    progress: bool = True,
) -> Report:
    """Scans a folder of tars and, if every sample in it is sound, writes its manifest.

    Args:
        folder: where the tars are, directly.
        tags_path: the tags, one a line, in vector order.
        name: what to call the dataset; else as the settings say, else as the folder is called.
        settings: say how the spectrograms were made; without, their recipe is unknown.
        split_rules: NAME=GLOB each; without, file names say what split a tar belongs to.
        mel: EXT[:KEY] of the spectrogram; without, the first sample shows.
        labels: EXT[:KEY] of the labels, likewise.
        progress: whether a bar is shown on a terminal.

    Returns:
        Sizes of the splits and every fault; nothing was written if there are any.

    Raises:
        ValueError: what no scan can mend: no tars, no tags, options that do not fit the files,
            files in the way.
    """
    mel_at = parse_place("--mel", mel, MEL_KINDS)
    labels_at = parse_place("--labels", labels, LABEL_KINDS)
    tag_names = read_tags(tags_path)
    names = list_tars(folder)
    by_split, split_rule, notes = assign_splits(names, split_rules)
    dataset = _dataset_name(folder, name, settings)
    earlier = _earlier_manifest(folder)
    _check_in_the_way(folder, by_split, earlier)
    notes += _notes_on_folders(folder)

    sample = first_sample(folder / tar for split in by_split.values() for tar in split)
    nothing = dict.fromkeys(by_split, 0)
    if isinstance(sample, str):
        return Report(nothing, [sample], notes, len(tag_names))
    try:
        layout, shape = find_layout(sample[1], tag_names, mel_at, labels_at)
    except ValueError as error:
        return Report(nothing, [f"{sample[0]}: {error}"], notes, len(tag_names))
    if settings and shape:
        _check_features(settings.features, shape)

    reader = SampleReader(layout, tag_names, shape)
    scans = _scan_all(folder, by_split, reader, progress)
    sizes = {split: sum(len(scan.rows) for scan in own) for split, own in scans.items()}
    faults = [fault for own in scans.values() for scan in own for fault in scan.faults]
    if faults:
        return Report(sizes, faults, notes, len(tag_names))
    assert shape, "the first sample is sound, too"
    n_mels, num_frames = shape
    unknown = config.FeatureConfig(n_mels=n_mels, num_frames=num_frames, recipe="unknown")
    _remove_earlier(folder, earlier)
    manifest = Manifest(
        dataset=dataset,
        features=settings.features if settings else unknown,
        tags=_count_tags(tag_names, scans),
        splits={split: _write_split(folder, split, own) for split, own in scans.items()},
        split_rule=split_rule,
        leaks={},
        oracle_roc_auc=None,
        skipped=[],
        mstag_version=mstag.__version__,
        foreign=layout.foreign,
        foreign_labels=":".join(filter(None, (layout.labels, layout.labels_key))),
    )
    shards.write_manifest(folder, manifest)
    notes += _notes_on_samples(manifest, scans) + _notes_on_values(reader)
    return Report(sizes, [], notes, len(tag_names), manifest)


def _scan_all(
    folder: Path, by_split: dict[str, list[str]], reader: SampleReader, progress: bool
) -> dict[str, list[Scan]]:
    from tqdm import tqdm

    total = sum((folder / name).stat().st_size for names in by_split.values() for name in names)
    hidden = None if progress else True  # None: shown on a terminal
    bar = tqdm(total=total, desc="indexing", unit="B", unit_scale=True, delay=2, disable=hidden)
    with bar:
        return {
            split: [reader.scan(folder / name, bar.update) for name in names]
            for split, names in by_split.items()
        }


def _count_tags(tag_names: list[str], scans: dict[str, list[Scan]]) -> list[dict[str, Any]]:
    counts = {
        split: sum(scan.labels.sum(axis=0, dtype=np.int64) for scan in own).tolist()
        for split, own in scans.items()
    }
    return [
        {"tag": tag, "positives": {split: own[number] for split, own in counts.items()}}
        for number, tag in enumerate(tag_names)
    ]


def _write_split(folder: Path, split: str, scans: list[Scan]) -> Split:
    for number, scan in enumerate(scans):
        scan.rows["shard"] = number
    labels, ids = folder / f"{split}.labels.npy", folder / f"{split}.ids.json"
    files.write_bytes(labels, tars.npy_bytes(np.concatenate([scan.labels for scan in scans])))
    files.write_text(ids, json.dumps([clip_id for scan in scans for clip_id in scan.ids]) + "\n")
    return Split(
        clips=sum(len(scan.rows) for scan in scans),
        shards=[scan.entry for scan in scans],
        index=shards.write_index(folder, split, np.concatenate([scan.rows for scan in scans])),
        labels=shards.entry_of(labels),
        ids=shards.entry_of(ids),
    )


def _dataset_name(folder: Path, name: str | None, settings: config.Config | None) -> str:
    if name is None:
        name = settings.dataset.name if settings else folder.resolve().name
    return config.DatasetConfig(name=name, kind="shards").name


def _check_features(features: config.FeatureConfig, shape: tuple[int, ...]) -> None:
    if (features.n_mels, features.num_frames) != shape:
        raise ValueError(
            f"the spectrograms have (n_mels, num_frames) = {shape}, --config says "
            f"{(features.n_mels, features.num_frames)}: it describes other ones; correct "
            "[features], or leave --config out"
        )


def _earlier_manifest(folder: Path) -> Manifest | None:
    """What an earlier run left; nothing else may be there.

    Raises:
        ValueError: the folder was packed by mstag, or has a manifest of some other make.
    """
    if (folder / ".pack").is_dir():
        raise ValueError(f"{folder}: a folder of `shard-tools pack`, which needs no other index")
    path = folder / shards.MANIFEST_NAME
    if not path.exists():
        return None
    try:
        manifest = shards.read_manifest(folder)
    except ValueError as error:
        raise ValueError(f"{error}; not overwritten: move it elsewhere first") from None
    if manifest.foreign is None:
        raise ValueError(
            f"{path}: written by `shard-tools pack`, which needs no other index; not overwritten"
        )
    return manifest


def _small_files(manifest: Manifest) -> list[shards.FileEntry]:
    splits = manifest.splits.values()
    return [entry for s in splits for entry in (s.index, s.labels, s.ids) if entry]


def _check_in_the_way(
    folder: Path, by_split: dict[str, list[str]], earlier: Manifest | None
) -> None:
    ours = {entry.name for entry in _small_files(earlier)} if earlier else set()
    for name in [
        f"{s}.{what}" for s in by_split for what in ("index.npy", "labels.npy", "ids.json")
    ]:
        if name not in ours and (folder / name).exists():
            raise ValueError(
                f"{folder / name}: in the way, and no earlier index tells of it; move it elsewhere "
                "(or delete it, if an interrupted `shard-tools index` left it)"
            )


def _remove_earlier(folder: Path, earlier: Manifest | None) -> None:
    """The manifest first: without it, whatever else is there is unfinished."""
    if earlier:
        (folder / shards.MANIFEST_NAME).unlink()
        for entry in _small_files(earlier):
            (folder / entry.name).unlink(missing_ok=True)


def _notes_on_folders(folder: Path) -> list[str]:
    deeper = tars_below(folder)
    return [f"tars in sub-folders are not looked at: {some(deeper)}"] if deeper else []


def _notes_on_samples(manifest: Manifest, scans: dict[str, list[Scan]]) -> list[str]:
    notes = []
    others = [other for own in scans.values() for scan in own for other in scan.others]
    if others:
        notes.append(f"{len(others)} groups of members that are no samples: {some(others)}")
    ids = {split: {i for scan in own for i in scan.ids} for split, own in scans.items()}
    for split in sorted(ids.keys() - {"train"}):
        both = ids[split] & ids.get("train", set())
        if both:
            notes.append(
                f"{len(both)} ids of {split} stand in train too: if they are the same clips, "
                f"scores flatter ({some(sorted(both))})"
            )
    for split in manifest.splits:
        never = [tag["tag"] for tag in manifest.tags if not tag["positives"][split]]
        if never:
            notes.append(f"tags that no sample of {split} has: {some(never)}")
    features = manifest.features
    if features.n_mels > features.num_frames:
        notes.append(
            f"{features.n_mels} mel bands and {features.num_frames} frames: are the spectrograms "
            "transposed? They should be (n_mels, num_frames)"
        )
    return notes


def _notes_on_values(reader: SampleReader) -> list[str]:
    share = reader.num_lost / reader.num_values
    if share < MAX_LOST:
        return []
    return [
        f"{share:.1%} of all values are not 0 but become 0 as float16, which the loader keeps: are "
        "these powers? Logarithms of them would survive"
    ]


def format_report(folder: Path, manifest: Manifest) -> str:
    """What was found, and a config to train on it, for people."""
    layout, features = manifest.foreign, manifest.features
    assert layout is not None
    lines = [
        f"{folder}: {manifest.dataset}, {len(manifest.tags)} tags; spectrograms "
        f"{place(layout.mel, layout.key)} ({features.n_mels}, {features.num_frames}), labels "
        f"{manifest.foreign_labels}"
    ]
    for name, split in manifest.splits.items():
        num_bytes = sum(entry.bytes for entry in split.shards)
        lines.append(
            f"  {name:5} {split.clips:>9,} samples in {len(split.shards):,} tars, "
            f"{num_bytes / 1e6:,.1f} MB"
        )
    lines += [
        "",
        f"A config for it (train.py --config FILE --shards {shlex.quote(str(folder))}):",
        "",
    ]
    return "\n".join(lines) + "\n" + to_toml(manifest)


def to_toml(manifest: Manifest) -> str:
    """The least config that fits a manifest."""
    default = config.FeatureConfig()
    features = {
        key: value
        for key, value in dataclasses.asdict(manifest.features).items()
        if value != getattr(default, key)
    }
    tables = {"dataset": {"name": manifest.dataset, "kind": "shards"}, "features": features}
    return "\n".join(
        f"[{section}]\n"
        + "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in t.items())
        for section, t in tables.items()
        if t
    )
