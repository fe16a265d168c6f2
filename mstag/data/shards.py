"""The on-disk contract of a folder of shards, format version 1.

    manifest.json            what is in the folder; written last: without it, it is unfinished
    <split>-<NNNNNN>.tar     plain WebDataset tars that any WebDataset reader reads
    <split>.index.npy        per sample: its shard, the byte ranges of its payloads, a checksum

A sample is three adjacent members, ``<key>.mel.npy`` (float16, (n_mels, num_frames)),
``<key>.tags.npy`` (uint8, (n_tags,)), ``<key>.json``; where labels are partial a
``<key>.mask.npy`` (uint8, 1 = known) stands before the json. This room reads and writes
these files and knows nothing about audio, training or torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from mstag import config, files

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "valid", "test")

INDEX_DTYPE = np.dtype(
    [
        ("shard", "<u4"),
        ("mel_at", "<u8"),
        ("mel_bytes", "<u4"),
        ("tags_at", "<u8"),
        ("tags_bytes", "<u4"),
        ("mask_at", "<u8"),
        ("mask_bytes", "<u4"),
        ("json_at", "<u8"),
        ("json_bytes", "<u4"),
        ("checksum", "<u8"),
    ]
)
"""A row of the index. ``*_at`` are byte offsets of payloads (whole .npy or .json files) in
the shard; ``mask_bytes`` is 0 where labels are complete; ``checksum`` is the xxh3-64 of the
payloads one after the other (mel, tags, mask, json)."""

PAYLOADS = ("mel", "tags", "mask", "json")


@dataclass(frozen=True, slots=True)
class Sample:
    """What one sample holds; see the module's docstring for shapes and types."""

    key: str
    mel: NDArray[np.float16]
    tags: NDArray[np.uint8]
    meta: Mapping[str, Any]
    mask: NDArray[np.uint8] | None = None


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
        shards = {name: [s.sha256 for s in split.shards] for name, split in self.splits.items()}
        return config.digest([self.features_digest, self.tags_digest, shards])


def write_shard(path: Path, samples: Iterable[Sample]) -> NDArray[np.void]:
    """Writes one tar shard atomically.

    Same samples, same bytes: mtime 0, fixed owner and mode, ordered members. The standard
    library's tarfile writes it: webdataset's TarWriter would sort a sample's members and
    costs seconds of import in every worker.

    Returns:
        Index rows (INDEX_DTYPE) of the samples, with ``shard`` 0.
    """
    rows: list[tuple[int, ...]] = []
    with (
        files.atomic_path(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for sample in samples:
            assert "." not in sample.key, f"dots in {sample.key} would split the sample"
            payloads = _payloads(sample)
            places: dict[str, tuple[int, int]] = {}
            checksum = xxhash.xxh3_64()
            for name, payload in payloads.items():
                extension = "json" if name == "json" else f"{name}.npy"
                info = tarfile.TarInfo(f"{sample.key}.{extension}")
                info.size, info.mtime, info.mode = len(payload), 0, 0o444
                info.uname = info.gname = "mstag"
                places[name] = (tar.offset + tarfile.BLOCKSIZE, len(payload))
                checksum.update(payload)
                tar.addfile(info, io.BytesIO(payload))
            flat = [number for name in PAYLOADS for number in places.get(name, (0, 0))]
            rows.append((0, *flat, checksum.intdigest()))
    return np.array(rows, dtype=INDEX_DTYPE)


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file, C order, version 1.0."""
    buffer = io.BytesIO()
    np.lib.format.write_array(
        buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False
    )
    return buffer.getvalue()


def _payloads(sample: Sample) -> dict[str, bytes]:
    assert sample.mel.dtype == np.float16 and sample.mel.ndim == 2, sample.mel.dtype
    assert sample.tags.dtype == np.uint8 and sample.tags.ndim == 1, sample.tags.dtype
    payloads = {"mel": npy_bytes(sample.mel), "tags": npy_bytes(sample.tags)}
    if sample.mask is not None:
        assert sample.mask.dtype == np.uint8 and sample.mask.shape == sample.tags.shape
        payloads["mask"] = npy_bytes(sample.mask)
    text = json.dumps(sample.meta, ensure_ascii=False, sort_keys=True)
    payloads["json"] = text.encode()
    return payloads


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes manifest.json atomically; from then on the folder is finished."""
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
                "index": {k: v for k, v in dataclasses.asdict(split.index).items() if k != "clips"},
            }
            for name, split in manifest.splits.items()
        },
        "split_rule": manifest.split_rule,
        "leaks": manifest.leaks,
        "oracle_roc_auc": manifest.oracle_roc_auc,
        "skipped": manifest.skipped,
        "mstag_version": manifest.mstag_version,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    files.write_text(folder / MANIFEST_NAME, text + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks ``folder/manifest.json``.

    Raises:
        ValueError: no folder, unfinished, not a manifest, a format of another version, or
            digests that do not match what they vouch for.
    """
    path = folder / MANIFEST_NAME
    remedy = "make them with `make shards` or `shard-tools pack`"
    if not folder.is_dir():
        raise ValueError(f"shards {folder}: no such folder; {remedy}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"shards {folder}: no {MANIFEST_NAME}, so the folder holds no finished shards; {remedy}"
        ) from None
    except (OSError, ValueError) as error:
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
            tags=[{"tag": t["tag"], "positives": dict(t["positives"])} for t in content["tags"]],
            splits={name: _split(split) for name, split in content["splits"].items()},
            split_rule=content["split_rule"],
            leaks=content["leaks"],
            oracle_roc_auc=content["oracle_roc_auc"],
            skipped=content["skipped"],
            mstag_version=content["mstag_version"],
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


def _split(table: dict[str, Any]) -> Split:
    shards = [FileEntry(**shard) for shard in table["shards"]]
    for entry in shards:
        if Path(entry.name).name != entry.name:
            raise ValueError(f"shard {entry.name!r} lies outside the folder")
    total = sum(shard.clips for shard in shards)
    if total != table["clips"]:
        raise ValueError(f"shards hold {total} samples, the split says {table['clips']}")
    return Split(clips=table["clips"], shards=shards, index=FileEntry(**table["index"]))


def write_index(folder: Path, split: str, rows: NDArray[np.void]) -> FileEntry:
    """Writes ``<split>.index.npy`` atomically."""
    name = f"{split}.index.npy"
    content = npy_bytes(rows)
    files.write_bytes(folder / name, content)
    return entry_of(folder / name)


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
    remedy = "`make shards` or `shard-tools pack` restores it"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != entry.index.sha256:
        raise ValueError(
            f"{path}: sha256 {found[:12]}..., the manifest says {entry.index.sha256[:12]}...: "
            f"the index is stale or damaged; {remedy}"
        )
    rows: NDArray[np.void] = np.load(io.BytesIO(content), allow_pickle=False)
    if rows.dtype != INDEX_DTYPE or rows.shape != (entry.clips,):
        raise ValueError(f"{path}: not an index of {entry.clips} samples; {remedy}")
    return rows


def check_shards(folder: Path, split: str, manifest: Manifest) -> None:
    """Checks at once, without reading them, that a split's shards are there in full size.

    Raises:
        ValueError: a shard is missing or of another size.
    """
    remedy = "`make shards` or `shard-tools pack` restores it"
    for shard in manifest.splits[split].shards:
        try:
            num_bytes = (folder / shard.name).stat().st_size
        except OSError:
            raise ValueError(f"{folder / shard.name}: the shard is missing; {remedy}") from None
        if num_bytes != shard.bytes:
            raise ValueError(
                f"{folder / shard.name}: {num_bytes} bytes, the manifest says {shard.bytes}: "
                f"the shard was cut or replaced; {remedy}"
            )


def scan_shard(path: Path) -> tuple[NDArray[np.void], list[Sample]]:
    """Reads a whole shard the slow, sceptical way, from its tar headers alone.

    Returns:
        The index rows that :func:`write_shard` gave for it, and its samples.

    Raises:
        ValueError: the file is not a shard as this room writes them; says where and why.
    """
    content = path.read_bytes()
    members: list[tuple[str, str, int, bytes]] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for info in tar:
                key, _, extension = info.name.partition(".")
                start = info.offset_data
                members.append((key, extension, start, content[start : start + info.size]))
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(f"not a readable tar ({error})") from None
    # tarfile takes a cut at a member's boundary for the end; a whole tar ends in two blocks
    # of zeros.
    if content[end : end + 2 * tarfile.BLOCKSIZE].strip(b"\0") or len(content) < end + 1024:
        raise ValueError(f"the tar is cut or damaged at byte {end}")
    rows, samples = [], []
    while members:
        key = members[0][0]
        size = next((i for i, m in enumerate(members) if m[0] != key), len(members))
        group, members = members[:size], members[size:]
        row, sample = _parse_sample(key, group)
        rows.append(row)
        samples.append(sample)
    return np.array(rows, dtype=INDEX_DTYPE), samples


def _parse_sample(
    key: str, group: list[tuple[str, str, int, bytes]]
) -> tuple[tuple[int, ...], Sample]:
    extensions = [extension for _, extension, _, _ in group]
    if extensions not in (
        ["mel.npy", "tags.npy", "json"],
        ["mel.npy", "tags.npy", "mask.npy", "json"],
    ):
        raise ValueError(f"sample {key}: members {', '.join(extensions)} are not a sample's")
    payloads = {extension.partition(".")[0]: (at, data) for _, extension, at, data in group}
    arrays = {}
    try:
        for name in payloads.keys() - {"json"}:
            arrays[name] = np.load(io.BytesIO(payloads[name][1]), allow_pickle=False)
        meta = json.loads(payloads["json"][1])
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"sample {key}: {error}") from None
    checksum = xxhash.xxh3_64()
    flat: list[int] = []
    for name in PAYLOADS:
        at, data = payloads.get(name, (0, b""))
        checksum.update(data)
        flat += [at, len(data)]
    sample = Sample(key, arrays["mel"], arrays["tags"], meta, arrays.get("mask"))
    return (0, *flat, checksum.intdigest()), sample
