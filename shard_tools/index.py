"""WebDataset tars that somebody else wrote -> a folder that training reads like our own.

Each tar is read once and stays as it is; a manifest, an index, labels and ids are written
beside it. All or nothing: one fault anywhere, and nothing is written.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mstag
from mstag import config, files
from mstag.data import shards, tars
from mstag.data.shards import Foreign, Manifest, Split
from shard_tools.foreign_layout import find_layout, first_sample, parse_place
from shard_tools.foreign_samples import (
    LABEL_KINDS,
    MEL_KINDS,
    SampleReader,
    Scan,
    place,
    read_tags,
)
from shard_tools.foreign_tars import shown

COMPRESSED = {"gz": "gunzip", "tgz": "gunzip", "bz2": "bunzip2", "xz": "unxz", "zst": "unzstd"}
NUM_SHOWN = 3
_WORDS = {
    "train": "train training",
    "valid": "valid val validation dev",
    "test": "test testing eval evaluation",
}
SPLIT_OF_WORD = {word: split for split, words in _WORDS.items() for word in words.split()}
REMEDY = "say it with --split NAME=GLOB"


@dataclass(frozen=True, slots=True)
class Report:
    """What indexing a folder came to; ``manifest`` is None where there are faults."""

    sizes: dict[str, int]
    faults: list[str]
    notes: list[str]
    manifest: Manifest | None = None


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
    layout, shape = Foreign(""), None
    faults: list[str] = []
    if isinstance(sample, str):
        faults.append(sample)
    else:
        try:
            layout, shape = find_layout(sample[1], tag_names, mel_at, labels_at)
        except ValueError as error:
            faults.append(f"{sample[0]}: {error}")
    if faults:
        return Report(dict.fromkeys(by_split, 0), faults, notes)
    if settings and shape:
        _check_features(settings.features, shape)

    reader = SampleReader(layout, tag_names, shape)
    scans = _scan_all(folder, by_split, reader, progress)
    sizes = {split: sum(len(scan.rows) for scan in own) for split, own in scans.items()}
    faults = [fault for own in scans.values() for scan in own for fault in scan.faults]
    if faults:
        return Report(sizes, faults, notes)
    assert reader.shape is not None, "sound samples have a shape"
    n_mels, num_frames = reader.shape
    if settings:
        _check_features(settings.features, reader.shape)
    features = (
        settings.features
        if settings
        else config.FeatureConfig(n_mels=n_mels, num_frames=num_frames, recipe="unknown")
    )
    _remove_earlier(folder, earlier)
    manifest = Manifest(
        dataset=dataset,
        features=features,
        tags=[
            {
                "tag": tag,
                "positives": {
                    split: sum(int(scan.labels[:, number].sum()) for scan in own)
                    for split, own in scans.items()
                },
            }
            for number, tag in enumerate(tag_names)
        ],
        splits={split: _write_split(folder, split, own) for split, own in scans.items()},
        split_rule=split_rule,
        leaks={},
        oracle_roc_auc=None,
        skipped=[],
        mstag_version=mstag.__version__,
        foreign=layout,
    )
    shards.write_manifest(folder, manifest)
    return Report(sizes, [], notes + _notes_on_samples(manifest, scans), manifest)


def list_tars(folder: Path) -> list[str]:
    """Names of the tars that lie directly in a folder, in order.

    Raises:
        ValueError: no such folder; no tars in it; compressed ones.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name the one that holds the .tar files")
    there = sorted(path.name for path in folder.iterdir() if path.is_file())
    names = [name for name in there if name.endswith(".tar") and not name.startswith(".")]
    for name in there:
        match = re.fullmatch(r"(.+)\.(?:tar\.(gz|bz2|xz|zst)|(tgz))", name)
        if match and f"{match[1]}.tar" not in names:
            raise ValueError(
                f"{folder / name}: compressed, and samples must be readable in place; unpack it "
                f"with `{COMPRESSED[match[2] or match[3]]} {name}`"
            )
    if not names:
        deeper = _tars_below(folder)
        where = f" (but in sub-folders: {', '.join(deeper)})" if deeper else ""
        raise ValueError(
            f"{folder}: no .tar file lies directly in it{where}; index a folder of tars, such as "
            "one of links to them: `ln train/0.tar all/train-0.tar`"
        )
    return names


def assign_splits(
    names: list[str], rules: tuple[str, ...] = ()
) -> tuple[dict[str, list[str]], str, list[str]]:
    """Which tar belongs to which split.

    Args:
        names: of the tars, in order.
        rules: NAME=GLOB each; without any, words in the names decide (train, valid, test and
            their usual variants, between anything that is no letter).

    Returns:
        Names per split, in the order of shards.SPLITS; the rule in words; notes for the user.

    Raises:
        ValueError: a rule that fits nothing, a tar in two splits, a name that says two or none.
    """
    notes = []
    if rules:
        split_of = _by_rules(names, rules)
        left = [name for name in names if name not in split_of]
        if left:
            notes.append(f"in no --split, so left out: {_some(left)}")
        rule = " ".join(f"--split {rule}" for rule in rules)
    else:
        split_of, rule = _by_words(names), "as the file names say"
        if not split_of:
            split_of, rule = dict.fromkeys(names, "train"), "all in train"
            notes.append(
                f"no file name says a split, so everything is train; training needs a valid split "
                f"too: {REMEDY}, e.g. --split 'train=*[0-8].tar' --split 'valid=*9.tar'"
            )
    by_split = {
        split: [name for name in names if split_of.get(name) == split] for split in shards.SPLITS
    }
    return {split: own for split, own in by_split.items() if own}, rule, notes


def _by_rules(names: list[str], rules: tuple[str, ...]) -> dict[str, str]:
    split_of: dict[str, str] = {}
    for rule in rules:
        split, equals, glob = rule.partition("=")
        if split not in shards.SPLITS or not equals:
            raise ValueError(
                f"--split {rule}: must look like NAME=GLOB, with train, valid or test as NAME, "
                "e.g. --split 'train=a-*.tar'"
            )
        fitting = [name for name in names if fnmatch.fnmatchcase(name, glob)]
        if not fitting:
            raise ValueError(f"--split {rule}: fits none of the tars: {_some(names)}")
        for name in fitting:
            if split_of.setdefault(name, split) != split:
                raise ValueError(
                    f"--split {rule}: {shown(name)} is in {split_of[name]} already, and a tar "
                    "belongs to one split"
                )
    return split_of


def _by_words(names: list[str]) -> dict[str, str]:
    split_of: dict[str, str] = {}
    for name in names:
        words = re.split(r"[^a-z]+", name.removesuffix(".tar").lower())
        said = {SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD}
        if not said:  # trainset-0.tar, validset.tar
            said = {split for split in shards.SPLITS if words[0].startswith(split)}
        if len(said) > 1:
            raise ValueError(f"{shown(name)}: its name says {' and '.join(sorted(said))}; {REMEDY}")
        if said:
            split_of[name] = said.pop()
    silent = [name for name in names if name not in split_of]
    if split_of and silent:
        raise ValueError(
            f"{_some(silent)}: other file names say their split, these do not; {REMEDY} for all"
        )
    return split_of


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


def _small_files(by_split: dict[str, list[str]]) -> list[str]:
    return [f"{s}.{what}" for s in by_split for what in ("index.npy", "labels.npy", "ids.json")]


def _check_in_the_way(
    folder: Path, by_split: dict[str, list[str]], earlier: Manifest | None
) -> None:
    if earlier:
        return
    for name in _small_files(by_split):
        if (folder / name).exists():
            raise ValueError(
                f"{folder / name}: in the way, and no earlier index tells of it; move it elsewhere "
                "(or delete it, if an interrupted `shard-tools index` left it)"
            )


def _remove_earlier(folder: Path, earlier: Manifest | None) -> None:
    """The manifest first: without it, whatever else is there is unfinished."""
    if earlier:
        (folder / shards.MANIFEST_NAME).unlink()
        for split in earlier.splits.values():
            for entry in (split.index, split.labels, split.ids):
                if entry:
                    (folder / entry.name).unlink(missing_ok=True)


def _tars_below(folder: Path) -> list[str]:
    """Sub-folders, one level down, that hold tars."""
    return sorted({path.parent.name for path in folder.glob("*/*.tar*")})


def _notes_on_folders(folder: Path) -> list[str]:
    deeper = _tars_below(folder)
    return [f"tars in sub-folders are not looked at: {_some(deeper)}"] if deeper else []


def _notes_on_samples(manifest: Manifest, scans: dict[str, list[Scan]]) -> list[str]:
    notes = []
    others = [other for own in scans.values() for scan in own for other in scan.others]
    if others:
        notes.append(f"{len(others)} groups of members that are no samples: {_some(others)}")
    ids = {split: {i for scan in own for i in scan.ids} for split, own in scans.items()}
    for split in ids.keys() - {"train"}:
        both = ids[split] & ids.get("train", set())
        if both:
            notes.append(
                f"{len(both)} ids of {split} stand in train too: if they are the same clips, "
                f"scores flatter ({_some(sorted(both))})"
            )
    for split in manifest.splits:
        never = [tag["tag"] for tag in manifest.tags if not tag["positives"][split]]
        if never:
            notes.append(f"tags that no sample of {split} has: {_some(never)}")
    features = manifest.features
    if features.n_mels > features.num_frames:
        notes.append(
            f"{features.n_mels} mel bands and {features.num_frames} frames: are the spectrograms "
            "transposed? They should be (n_mels, num_frames)"
        )
    return notes


def format_report(folder: Path, manifest: Manifest) -> str:
    """What was found, and a config to train on it, for people."""
    layout, features = manifest.foreign, manifest.features
    assert layout is not None
    lines = [
        f"{folder}: {manifest.dataset}, {len(manifest.tags)} tags; spectrograms "
        f"{place(layout.mel, layout.key)} ({features.n_mels}, {features.num_frames}), labels "
        f"{place(layout.labels, layout.labels_key)}"
    ]
    for name, split in manifest.splits.items():
        num_bytes = sum(entry.bytes for entry in split.shards)
        lines.append(
            f"  {name:5} {split.clips:>9,} samples in {len(split.shards):,} tars, "
            f"{num_bytes / 1e6:,.1f} MB"
        )
    lines += ["", f"A config for it (train.py --config FILE --shards {folder}):", ""]
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


def _some(names: list[str]) -> str:
    """The first few names of a list, and how many more there are."""
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(shown(name) for name in names[:NUM_SHOWN]) + more
