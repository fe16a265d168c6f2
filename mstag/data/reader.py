"""Samples of a split -> rows of reused batch buffers, each one verified.

A row of a buffer takes a sample as it lies in its shard, headers and all: one ``preadv``
into memory that is used again and again, one checksum over it, no copy. The system call and
the hash release the interpreter's lock, so threads suffice where worker processes would copy
every batch once more. What else is done per clip is kept down to a few microseconds, because
that time is the one the threads cannot share.
"""

from __future__ import annotations

import functools
import json
import sys
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from mstag.data import foreign, tars
from mstag.data.shelf import Shelf
from mstag.data.store import Store

_ROW_ALIGNMENT = 64  # bytes: a cache line, and what copies to a device like


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a sample lie in a row of a buffer, in bytes."""

    row_bytes: int
    mel_at: int
    mel_shape: tuple[int, int]
    tags_at: int
    num_tags: int
    mask_at: int = 0
    """0: no masks, all labels are known."""


@dataclass(frozen=True, slots=True)
class BadClip:
    """A sample that is not what the index vouches for."""

    row: int
    number: int
    reason: str


class Reader:
    """Reads samples by their number in the split, verified, into buffers; thread-safe."""

    def __init__(self, store: Store, split: str) -> None:
        self._store, self._split = store, split
        manifest = store.manifest
        self._entry = manifest.splits[split]
        self._index = store.index(split)
        store.check(split)
        self._mel_shape = (manifest.features.n_mels, manifest.features.num_frames)
        self._num_tags = len(manifest.tags)
        self._foreign = manifest.foreign
        self._mel_head = _npy_head(np.float16, self._mel_shape)
        self._tags_head = _npy_head(np.uint8, (self._num_tags,))
        self.layout = self._foreign_layout() if manifest.foreign else self._own_layout()
        if manifest.foreign:
            self._load_labels()

    def fill(self, buffer: Buffer, numbers: NDArray[np.int64], shelf: Shelf) -> list[BadClip]:
        """Reads samples ``numbers`` into the first rows of a buffer.

        Returns:
            Those that are damaged; their rows hold no usable data.
        """
        rows = self._index[numbers]
        if self._foreign:
            return self._fill_foreign(buffer, numbers, rows, shelf)
        reasons: dict[int, str] = {}
        views = [
            view[:num_bytes]
            for view, num_bytes in zip(buffer.rows, rows["bytes"].tolist(), strict=False)
        ]
        found = _read_all(views, rows, shelf, reasons)
        expected = rows["checksum"].tolist()
        if found != expected:
            reasons |= _mismatches(found, expected, reasons)
        slab = buffer.slab[: len(rows)]
        for what, at, head in (
            ("mel is not float16 " + str(self._mel_shape), self.layout.mel_at, self._mel_head),
            (f"tags are not {self._num_tags} uint8", self.layout.tags_at, self._tags_head),
        ):
            same = (slab[:, at - len(head) : at] == np.frombuffer(head, np.uint8)).all(axis=1)
            for row in np.flatnonzero(~same).tolist():
                reasons.setdefault(row, f"its {what}")
        ids = [
            tars.sample_id(bytes(view[at:])) if row not in reasons else ""
            for row, (view, at) in enumerate(zip(views, rows["json_at"].tolist(), strict=True))
        ]
        buffer.ids[: len(ids)] = ids
        return [BadClip(row, int(numbers[row]), why) for row, why in sorted(reasons.items())]

    def describe(self, bad: BadClip) -> str:
        """A damaged sample in one line: where it is, what is wrong, what to do."""
        place = self._index[bad.number]
        path = self._store.path(self._entry.shards[int(place["shard"])])
        return (
            f"{path}: the clip at byte {int(place['start'])} (sample {bad.number} of {self._split})"
            f" is damaged: {bad.reason}; `shard-tools verify` names all damage of a folder; "
            "deleting the shard and `make shards` restores it, "
            'train.on_bad_clip = "skip" trains without the clip'
        )

    def _own_layout(self) -> Layout:
        """Once, over the whole index: every row must have the parts of our samples."""
        index = self._index
        mel_bytes = len(self._mel_head) + 2 * self._mel_shape[0] * self._mel_shape[1]
        tags_bytes = len(self._tags_head) + self._num_tags
        has_mask = bool(len(index)) and bool(index["mask_bytes"][0])
        sizes = {"mel": mel_bytes, "tags": tags_bytes, "mask": tags_bytes if has_mask else 0}
        at, places = 0, {}
        for name, num_bytes in sizes.items():
            at = -(-at // tars.BLOCK_BYTES) * tars.BLOCK_BYTES + tars.BLOCK_BYTES
            places[name] = at if num_bytes else 0
            at = at + num_bytes if num_bytes else at - tars.BLOCK_BYTES
        json_at = -(-at // tars.BLOCK_BYTES) * tars.BLOCK_BYTES + tars.BLOCK_BYTES
        good = (index["shard"] < len(self._entry.shards)) & (index["json_at"] == json_at)
        for name, num_bytes in sizes.items():
            good &= (index[f"{name}_bytes"] == num_bytes) & (index[f"{name}_at"] == places[name])
        good &= index["bytes"] == json_at + index["json_bytes"].astype(np.int64)
        good &= index["json_bytes"] <= tars.MAX_META_BYTES
        self._require(good)
        return Layout(
            row_bytes=_aligned(json_at + int(index["json_bytes"].max(initial=0))),
            mel_at=places["mel"] + len(self._mel_head),
            mel_shape=self._mel_shape,
            tags_at=places["tags"] + len(self._tags_head),
            num_tags=self._num_tags,
            mask_at=places["mask"] + len(self._tags_head) if has_mask else 0,
        )

    def _foreign_layout(self) -> Layout:
        self._require(self._index["shard"] < len(self._entry.shards))
        mel_bytes = 2 * self._mel_shape[0] * self._mel_shape[1]
        tags_at = _aligned(mel_bytes)
        row_bytes = _aligned(tags_at + self._num_tags)
        return Layout(row_bytes, 0, self._mel_shape, tags_at, self._num_tags)

    def _require(self, good: NDArray[np.bool_]) -> None:
        if not good.all():
            raise ValueError(
                f"shards {self._store.name}: sample {int(np.argmin(good))} of the {self._split} "
                f"index does not fit {self._mel_shape} spectrograms and {self._num_tags} tags; "
                "pack them again"
            )

    def _load_labels(self) -> None:
        if self._entry.labels is None or self._entry.ids is None:
            raise ValueError(
                f"shards {self._store.name}: the manifest names no labels of split "
                f"{self._split}; run `shard-tools index` again"
            )
        self._labels = self._store.labels(self._entry.labels)
        self._ids: list[str] = json.loads(self._store.small_file(self._entry.ids))
        if self._labels.shape != (len(self._index), self._num_tags) or len(self._ids) != len(
            self._index
        ):
            raise ValueError(
                f"shards {self._store.name}: labels {self._labels.shape} and {len(self._ids)} ids "
                f"for {len(self._index)} samples and {self._num_tags} tags of split "
                f"{self._split}; run `shard-tools index` again"
            )

    def _fill_foreign(
        self, buffer: Buffer, numbers: NDArray[np.int64], rows: NDArray[np.void], shelf: Shelf
    ) -> list[BadClip]:
        """The long way round: somebody else's bytes must be decoded and copied."""
        assert self._foreign is not None
        mel_bytes = 2 * self._mel_shape[0] * self._mel_shape[1]
        reasons: dict[int, str] = {}
        views = [memoryview(bytearray(num_bytes)) for num_bytes in rows["bytes"].tolist()]
        found = _read_all(views, rows, shelf, reasons)
        expected = rows["checksum"].tolist()
        reasons |= _mismatches(found, expected, reasons)
        for row, view in enumerate(views):
            if row in reasons:
                continue
            mel = foreign.decode_mel(bytes(view), self._foreign)
            into = buffer.slab[row, :mel_bytes].view(np.float16).reshape(self._mel_shape)
            into[:] = mel
        at = self.layout.tags_at
        buffer.slab[: len(rows), at : at + self._num_tags] = self._labels[numbers]
        buffer.ids[: len(rows)] = [self._ids[number] for number in numbers.tolist()]
        return [BadClip(row, int(numbers[row]), why) for row, why in sorted(reasons.items())]


def _read_all(
    views: list[memoryview], rows: NDArray[np.void], shelf: Shelf, reasons: dict[int, str]
) -> list[int]:
    """Reads each sample into its view; returns checksums, and notes in ``reasons`` what failed."""
    read, checksum = shelf.read, xxhash.xxh3_64_intdigest
    found: list[int] = []
    places = zip(views, rows["shard"].tolist(), rows["start"].tolist(), strict=True)
    for view, shard, start in places:
        try:
            num_bytes = read(shard, view, start)
        except OSError as error:
            reasons[len(found)] = f"it cannot be read ({error.strerror})"
        else:
            if num_bytes != len(view):
                reasons[len(found)] = f"{num_bytes} of {len(view)} bytes are there"
        found.append(checksum(view))
    return found


def _mismatches(found: list[int], expected: list[int], known: dict[int, str]) -> dict[int, str]:
    return {
        row: f"checksum {a:016x}, the index says {b:016x}"
        for row, (a, b) in enumerate(zip(found, expected, strict=True))
        if a != b and row not in known
    }


class Buffer:
    """Memory for one batch. ``copied`` marks the end of its last copy to a CUDA device."""

    def __init__(self, layout: Layout, num_rows: int, pinned: bool) -> None:
        num_bytes = num_rows * layout.row_bytes
        if pinned:
            import torch

            memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True).numpy()
        else:
            memory = np.empty(num_bytes, np.uint8)
        self._memory: NDArray[np.uint8] = memory
        self.slab: NDArray[np.uint8] = memory.reshape(num_rows, layout.row_bytes)
        whole = memory.data
        self.rows = [
            whole[at : at + layout.row_bytes] for at in range(0, num_bytes, layout.row_bytes)
        ]
        self.ids = [""] * num_rows
        self.copied: Any = None
        self._num_own_references = sys.getrefcount(memory) - 1  # less this function's name

    def is_free(self) -> bool:
        """Whether nobody holds a tensor of it: every view keeps a reference to the memory."""
        if self.copied is not None and not bool(self.copied.query()):
            return False
        return sys.getrefcount(self._memory) <= self._num_own_references

    def keep(self, rows: list[int]) -> None:
        """Moves these rows, in ascending order, to the front."""
        self.slab[: len(rows)] = self.slab[rows]
        self.ids[: len(rows)] = [self.ids[row] for row in rows]


class Ring:
    """Buffers in rotation; allocates only when all of them are still in use."""

    def __init__(self, layout: Layout, num_rows: int, pinned: bool, size: int) -> None:
        self._new = functools.partial(Buffer, layout, num_rows, pinned)
        self._size = size
        self._buffers: deque[Buffer] = deque()

    def take(self) -> Buffer:
        """A buffer that nobody holds, the one used last (it may still be in the CPU's cache)."""
        for buffer in reversed(self._buffers):
            if buffer.is_free():
                self._buffers.remove(buffer)
                return buffer
        return self._new()

    def give_back(self, buffer: Buffer) -> None:
        """Takes it into the rotation; buffers that a consumer keeps beyond that are let go."""
        self._buffers.append(buffer)
        if len(self._buffers) > self._size:
            self._buffers.popleft()


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ROW_ALIGNMENT) * _ROW_ALIGNMENT


def _npy_head(dtype: type[np.generic], shape: tuple[int, ...]) -> bytes:
    """The header that every array of this type and shape has in a .npy file."""
    empty = np.broadcast_to(np.zeros((), dtype), shape)
    whole = tars.npy_bytes(empty)
    return whole[: len(whole) - empty.size * empty.itemsize]
