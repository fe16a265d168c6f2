"""The on-disk contract of a folder of shards, format version 1.

    manifest.json            what is in the folder; written last: without it, it is unfinished
    <split>-<NNNNNN>.tar     plain WebDataset tars that any WebDataset reader reads (tars.py)
    <split>.index.npy        per sample: its shard, byte ranges and checksum (tars.INDEX_DTYPE)

Shards that somebody else wrote (``foreign`` in the manifest) keep their own names and layout;
their labels and ids stand in two more files a split. This room reads and writes the
manifest and the index and knows nothing about audio, training or torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstag import config, files
from mstag.data.tars import INDEX_DTYPE, npy_bytes

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "valid", "test")
RESTORE = "`make shards` or `shard-tools pack` restores it (foreign shards: `shard-tools index`)"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file that the manifest vouches for. ``clips`` is 0 for an index."""

    name: str
    bytes: int
    sha256: str
    clips: int = 0


@dataclass(frozen=True, slots=True)
class Split:
    """A split's shards in order, their index, and the number of samples in them."""

    clips: int
    shards: list[FileEntry]
    index: FileEntry
    labels: FileEntry | None = None
    """Foreign shards: a .npy, uint8 0/1 of shape (clips, n_tags)."""
    ids: FileEntry | None = None
    """Foreign shards: a JSON list of the samples' clip ids."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """Where in their samples somebody else keeps the spectrogram."""

    mel: str
    """Extension of the member (what follows the first dot of its name)."""
    key: str = ""
    """Name of the array in an .npz."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json, read and checked."""

    dataset: str
    features: config.FeatureConfig
    tags: list[dict[str, Any]]
    splits: dict[str, Split]
    split_rule: str
    leaks: dict[str, Any]
    oracle_roc_auc: float | None
    skipped: list[dict[str, str]]
    mstag_version: str
    foreign: Foreign | None = None
    """Set when the shards were not written by mstag."""
    foreign_labels: str = ""
    """Their member that the labels came from, as EXT[:KEY]; for `shard-tools verify` alone."""

    @property
    def tag_names(self) -> list[str]:
        """Tag names in vector order."""
        return [tag["tag"] for tag in self.tags]

    @property
    def features_digest(self) -> str:
        """Digest of the feature settings."""
        return config.features_digest(self.features)

    @property
    def tags_digest(self) -> str:
        """Digest of the tag names in vector order."""
        return config.tags_digest(self.tag_names)

    @property
    def digest(self) -> str:
        """Names the data: features, tags and the content of every shard."""
        shards = {
            name: [s.sha256 for s in [*split.shards, split.labels, split.ids] if s]
            for name, split in self.splits.items()
        }
        return config.digest([self.features_digest, self.tags_digest, shards])


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes manifest.json atomically; from then on the folder is finished."""
    files.write_text(folder / MANIFEST_NAME, manifest_text(manifest))


def manifest_text(manifest: Manifest) -> str:
    """The content of manifest.json."""
    content = {
        "format_version": FORMAT_VERSION,
        "dataset": manifest.dataset,
        "features": dataclasses.asdict(manifest.features),
        "features_digest": manifest.features_digest,
        "tags": manifest.tags,
        "tags_digest": manifest.tags_digest,
        "splits": {
            name: {
                "clips": split.clips,
                "shards": [dataclasses.asdict(shard) for shard in split.shards],
                **{
                    what: {k: v for k, v in dataclasses.asdict(entry).items() if k != "clips"}
                    for what in ("index", "labels", "ids")
                    if (entry := getattr(split, what)) is not None
                },
            }
            for name, split in manifest.splits.items()
        },
        "split_rule": manifest.split_rule,
        "leaks": manifest.leaks,
        "oracle_roc_auc": manifest.oracle_roc_auc,
        "skipped": manifest.skipped,
        "mstag_version": manifest.mstag_version,
    }
    if manifest.foreign:
        content["foreign"] = dataclasses.asdict(manifest.foreign)
        content["foreign_labels"] = manifest.foreign_labels
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks ``folder/manifest.json``.

    Raises:
        ValueError: no folder, unfinished, or what :func:`parse_manifest` refuses.
    """
    path = folder / MANIFEST_NAME
    remedy = "make them with `make shards` or `shard-tools pack`"
    if not folder.is_dir():
        raise ValueError(f"shards {folder}: no such folder; {remedy}")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"shards {folder}: no {MANIFEST_NAME}, so the folder holds no finished shards; {remedy}"
        ) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}); pack the shards again") from None
    return parse_manifest(content, str(path))


def parse_manifest(text: bytes, path: str) -> Manifest:
    """Checks the content of a manifest.json; ``path`` is what messages call it.

    Raises:
        ValueError: not a manifest, a format of another version, or digests that do not match
            what they vouch for.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read ({error}); pack the shards again") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format version {version!r}, this mstag reads {FORMAT_VERSION}; pack the "
            "shards again or use the mstag that wrote them"
        )
    try:
        features = config.from_tables({"features": content["features"]}).features
        manifest = Manifest(
            dataset=content["dataset"],
            features=features,
            tags=[_tag(tag) for tag in content["tags"]],
            splits={name: _split(split) for name, split in content["splits"].items()},
            split_rule=content["split_rule"],
            leaks=content["leaks"],
            oracle_roc_auc=content["oracle_roc_auc"],
            skipped=content["skipped"],
            mstag_version=content["mstag_version"],
            foreign=Foreign(**content["foreign"]) if "foreign" in content else None,
            foreign_labels=content.get("foreign_labels", ""),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a manifest of format {FORMAT_VERSION} ({error!r}); pack the shards again"
        ) from None
    for name in ("features_digest", "tags_digest"):
        if content.get(name) != getattr(manifest, name):
            raise ValueError(
                f"{path}: {name} is {content.get(name)}, but what it describes has "
                f"{getattr(manifest, name)}: the file was edited; pack the shards again"
            )
    return manifest


def _tag(table: dict[str, Any]) -> dict[str, Any]:
    """A tag's name and its positives per split; where labels are partial, also the known ones."""
    known = {"known": dict(table["known"])} if "known" in table else {}
    return {"tag": table["tag"], "positives": dict(table["positives"]), **known}


def _split(table: dict[str, Any]) -> Split:
    shards = [FileEntry(**shard) for shard in table["shards"]]
    others = {k: FileEntry(**table[k]) for k in ("index", "labels", "ids") if k in table}
    for entry in (*shards, *others.values()):
        if Path(entry.name).name != entry.name:
            raise ValueError(f"{entry.name!r} lies outside the folder")
        if len(entry.sha256) != 64 or not set(entry.sha256) <= set("0123456789abcdef"):
            raise ValueError(f"{entry.name}: {entry.sha256!r} is no sha256")
    total = sum(shard.clips for shard in shards)
    if total != table["clips"]:
        raise ValueError(f"shards hold {total} samples, the split says {table['clips']}")
    return Split(clips=table["clips"], shards=shards, **others)


def write_index(folder: Path, split: str, rows: NDArray[np.void]) -> FileEntry:
    """Writes ``<split>.index.npy`` atomically."""
    entry = index_entry(split, rows)
    files.write_bytes(folder / entry.name, npy_bytes(rows))
    return entry


def index_entry(split: str, rows: NDArray[np.void]) -> FileEntry:
    """What the manifest says of a split's index."""
    content = npy_bytes(rows)
    return FileEntry(f"{split}.index.npy", len(content), hashlib.sha256(content).hexdigest())


def entry_of(path: Path, clips: int = 0) -> FileEntry:
    """Describes a file as it is on disk."""
    return FileEntry(path.name, path.stat().st_size, files.sha256_file(path), clips)


def read_index(folder: Path, split: str, manifest: Manifest) -> NDArray[np.void]:
    """Reads a split's index and checks it against the manifest.

    Returns:
        INDEX_DTYPE array of shape (clips,).

    Raises:
        ValueError: the index is missing or not the manifest's.
    """
    entry = manifest.splits[split]
    path = folder / entry.index.name
    return parse_index(read_vouched(path, entry.index), path, entry.clips)


def parse_index(content: bytes, path: Path, num_clips: int) -> NDArray[np.void]:
    """The index in a file's bytes, which it goes on using (no second copy in memory).

    Raises:
        ValueError: not an index of so many samples.
    """
    rows = parse_npy(content, path)
    if rows.dtype != INDEX_DTYPE or rows.shape != (num_clips,):
        raise ValueError(f"{path}: not an index of {num_clips} samples; {RESTORE}")
    return rows


def read_vouched(path: Path, entry: FileEntry) -> bytes:
    """Reads a small file that the manifest vouches for.

    Raises:
        ValueError: it is missing, or not what the manifest says.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {RESTORE}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise ValueError(
            f"{path}: sha256 {found[:12]}..., the manifest says {entry.sha256[:12]}...: "
            f"the file is stale or damaged; {RESTORE}"
        )
    return content


def parse_npy(content: bytes, path: Path) -> NDArray[Any]:
    """The array of a .npy file's bytes, which it goes on using; never unpickles.

    Raises:
        ValueError: not the bytes of a plain array.
    """
    head = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(head)
        if version != (1, 0):
            raise ValueError(f".npy version {version}")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(head)
        if fortran_order or dtype.hasobject:
            raise ValueError(f"{dtype}, fortran order {fortran_order}")
        flat = np.frombuffer(content, dtype, offset=head.tell())
        array: NDArray[Any] = flat.reshape(shape)
    except ValueError as error:
        raise ValueError(f"{path}: not a plain array ({error}); {RESTORE}") from None
    return array


def check_shards(folder: Path, split: str, manifest: Manifest) -> None:
    """Checks at once, without reading them, that a split's shards are there in full size.

    Raises:
        ValueError: a shard is missing or of another size.
    """
    for shard in manifest.splits[split].shards:
        path = folder / shard.name
        try:
            num_bytes = path.stat().st_size
        except OSError:
            raise ValueError(f"{path}: the shard is missing; {RESTORE}") from None
        check_size(path, num_bytes, shard)


def check_size(path: Path, num_bytes: int, shard: FileEntry) -> None:
    """Raises ValueError when a shard has not the size that the manifest says."""
    if num_bytes != shard.bytes:
        raise ValueError(
            f"{path}: {num_bytes} bytes, the manifest says {shard.bytes}: "
            f"the shard was cut or replaced; {RESTORE}"
        )
