"""Samples <-> one tar shard: plain WebDataset, written once, read back sceptically.

A sample is three adjacent members, ``<key>.mel.npy`` (float16, (n_mels, num_frames)),
``<key>.tags.npy`` (uint8, (n_tags,)), ``<key>.json``; where labels are partial a
``<key>.mask.npy`` (uint8, 1 = known) stands before the json. From the first header to the
end of the json it is one stretch of bytes, read in one go and covered by one checksum.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from mstag import files

INDEX_DTYPE = np.dtype(
    [
        ("shard", "<u4"),
        ("start", "<u8"),
        ("bytes", "<u4"),
        ("mel_at", "<u4"),
        ("mel_bytes", "<u4"),
        ("tags_at", "<u4"),
        ("tags_bytes", "<u4"),
        ("mask_at", "<u4"),
        ("mask_bytes", "<u4"),
        ("json_at", "<u4"),
        ("json_bytes", "<u4"),
        ("checksum", "<u8"),
    ]
)
"""A row of the index: one sample is the ``bytes`` bytes from ``start`` of its shard, and
``checksum`` is their xxh3-64. ``*_at`` count from ``start`` to the payloads (whole .npy or
.json files); ``mask_bytes`` is 0 where labels are complete."""

Row = tuple[int, ...]
"""The fields of INDEX_DTYPE in order."""

PAYLOADS = ("mel", "tags", "mask", "json")
BLOCK_BYTES = tarfile.BLOCKSIZE
MAX_META_BYTES = 1 << 16
"""Of a sample's json; a reader's buffers have room for the longest in every row."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one sample holds; see the module's docstring for shapes and types."""

    key: str
    mel: NDArray[np.float16]
    tags: NDArray[np.uint8]
    meta: Mapping[str, Any]
    mask: NDArray[np.uint8] | None = None


class ShardWriter:
    """Appends samples to a tar as they come; none of them stays in memory.

    Same samples, same bytes: mtime 0, fixed owner and mode, ordered members. The standard
    library's tarfile makes the headers: webdataset's TarWriter would sort a sample's members
    and costs seconds of import in every worker.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = 0
        self._rows: list[Row] = []

    @property
    def num_samples(self) -> int:
        """How many samples are in it."""
        return len(self._rows)

    @property
    def rows(self) -> NDArray[np.void]:
        """Index rows (INDEX_DTYPE) of the samples, with ``shard`` 0."""
        return np.array(self._rows, dtype=INDEX_DTYPE)

    def add(self, sample: Sample) -> None:
        """Appends one sample.

        Raises:
            ValueError: its names are too long.
        """
        assert "." not in sample.key, f"dots in {sample.key} would split the sample"
        parts: list[bytes | memoryview] = []
        places: dict[str, tuple[int, int]] = {}
        at = 0
        for name, payload in _payloads(sample).items():
            num_bytes = sum(len(part) for part in payload)
            extension = "json" if name == "json" else f"{name}.npy"
            header = bytes(-at % BLOCK_BYTES) + _header(f"{sample.key}.{extension}", num_bytes)
            places[name] = (at + len(header), num_bytes)
            parts += [header, *payload]
            at += len(header) + num_bytes
        checksum = xxhash.xxh3_64()
        for part in parts:
            checksum.update(part)
        flat = [number for name in PAYLOADS for number in places.get(name, (0, 0))]
        self._rows.append((0, self._end, at, *flat, checksum.intdigest()))
        self._file.writelines([*parts, bytes(-at % BLOCK_BYTES)])
        self._end += at + -at % BLOCK_BYTES

    def rewind(self, num_samples: int) -> None:
        """Takes back every sample but the first ``num_samples``."""
        if num_samples < len(self._rows):
            self._end = self._rows[num_samples][1]
            del self._rows[num_samples:]
            self._file.seek(self._end)
            self._file.truncate()

    def finish(self) -> None:
        """Writes what ends a tar: zeros, up to a whole record."""
        end = self._end + 2 * BLOCK_BYTES
        self._file.write(bytes(end + -end % tarfile.RECORDSIZE - self._end))


@contextmanager
def open_shard(path: Path) -> Iterator[ShardWriter]:
    """Yields a writer of one shard, which stands at ``path`` when all went well."""
    with files.atomic_path(path) as temporary, temporary.open("wb") as file:
        writer = ShardWriter(file)
        yield writer
        writer.finish()


def write_shard(path: Path, samples: Iterable[Sample]) -> NDArray[np.void]:
    """Writes one tar shard atomically.

    Returns:
        Index rows (INDEX_DTYPE) of the samples, with ``shard`` 0.
    """
    with open_shard(path) as writer:
        for sample in samples:
            writer.add(sample)
    return writer.rows


def _header(name: str, num_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = num_bytes, 0, 0o444
    info.uname = info.gname = "mstag"
    return info.tobuf(format=tarfile.USTAR_FORMAT)


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file, C order, version 1.0."""
    return b"".join(_npy_parts(array))


def _npy_parts(array: NDArray[Any]) -> list[bytes | memoryview]:
    """The head of a .npy file and the array's own memory."""
    assert not array.dtype.hasobject
    contiguous = np.ascontiguousarray(array)
    head = _npy_head(contiguous.shape, contiguous.dtype)
    return [head, contiguous.reshape(-1).view(np.uint8).data]


@lru_cache(maxsize=64)
def _npy_head(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    head = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    fields = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, fields)
    return head.getvalue()


def _payloads(sample: Sample) -> dict[str, list[bytes | memoryview]]:
    """The files of a sample, each as pieces to be written one after the other."""
    assert sample.mel.dtype == np.float16 and sample.mel.ndim == 2, sample.mel.dtype
    assert sample.tags.dtype == np.uint8 and sample.tags.ndim == 1, sample.tags.dtype
    payloads = {"mel": _npy_parts(sample.mel), "tags": _npy_parts(sample.tags)}
    if sample.mask is not None:
        assert sample.mask.dtype == np.uint8 and sample.mask.shape == sample.tags.shape
        payloads["mask"] = _npy_parts(sample.mask)
    # The id comes first: see rows.find_ids.
    meta = {"id": sample.meta["id"], **sample.meta}
    text = json.dumps(meta, ensure_ascii=False).encode()
    if len(text) > MAX_META_BYTES:
        raise ValueError(
            f"clip {sample.meta.get('id')}: its names (path, track, artist, album) take "
            f"{len(text)} bytes, a sample has room for {MAX_META_BYTES}; shorten them"
        )
    payloads["json"] = [text]
    return payloads


def _row(start: int, stretch: bytes | bytearray, places: Mapping[str, tuple[int, int]]) -> Row:
    flat = [number for name in PAYLOADS for number in places.get(name, (0, 0))]
    return (0, start, len(stretch), *flat, xxhash.xxh3_64_intdigest(stretch))


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
    for key, group in itertools.groupby(members, key=lambda member: member[0]):
        row, sample = _parse_sample(key, list(group), content)
        rows.append(row)
        samples.append(sample)
    return np.array(rows, dtype=INDEX_DTYPE), samples


def _parse_sample(
    key: str, group: list[tuple[str, str, int, bytes]], content: bytes
) -> tuple[Row, Sample]:
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
    start = payloads["mel"][0] - tarfile.BLOCKSIZE
    end = payloads["json"][0] + len(payloads["json"][1])
    places = {name: (at - start, len(data)) for name, (at, data) in payloads.items()}
    sample = Sample(key, arrays["mel"], arrays["tags"], meta, arrays.get("mask"))
    return _row(start, content[start:end], places), sample
