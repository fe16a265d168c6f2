"""What is where in a split, and what the rows that were read of it mean.

A row of a buffer takes a sample as it lies in its shard, headers and all: one ``preadv``
into memory that is used again and again, one checksum over it, no copy (rows.py). This room
knows the index: which bytes to read, where the parts of a sample are in them, which clip
each one is, and what to say of one that is damaged.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from mstag.data import rows, tars
from mstag.data.buffers import Buffer, Layout
from mstag.data.shelf import Shelf
from mstag.data.store import Store
from mstag.data.workers import PLACE_DTYPE

_ROW_ALIGNMENT = 64  # bytes: a cache line, and what copies to a device like


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
        index = store.index(split)
        store.check(split)
        self._mel_shape = (manifest.features.n_mels, manifest.features.num_frames)
        self._num_tags = len(manifest.tags)
        self.foreign: dict[str, Any] | None = None
        """Arguments of foreign_rows.make_read_row; None: the samples are our own."""
        if manifest.foreign:
            self.foreign = {**dataclasses.asdict(manifest.foreign), "shape": self._mel_shape}
        self._mel_head = _npy_head(np.float16, self._mel_shape)
        self._tags_head = _npy_head(np.uint8, (self._num_tags,))
        self.json_at = 0
        """Where the json starts in a sample; 0: nowhere."""
        self.layout = self._foreign_layout(index) if manifest.foreign else self._own_layout(index)
        # Of the index only what each read needs is kept: 32 bytes a clip.
        places = np.empty(len(index), PLACE_DTYPE)
        for name in PLACE_DTYPE.names or ():
            places[name] = index[name]
        self._places = places
        self._plain_places = places.view(np.int64).reshape(-1, 4)  # quicker to draw rows from
        if manifest.foreign:
            self._load_labels()

    def places(self, numbers: NDArray[np.int64]) -> NDArray[np.void]:
        """Where samples are, PLACE_DTYPE (len(numbers),)."""
        return self._plain_places[numbers].view(PLACE_DTYPE)[:, 0]

    @functools.cached_property
    def read_row(self) -> rows.ReadRow:
        """How a sample becomes a row of a buffer, for reading in this process."""
        if not self.foreign:
            return rows.read_row
        from mstag.data.foreign_rows import make_read_row

        return make_read_row(**self.foreign)

    def finish(
        self,
        buffer: Buffer,
        numbers: NDArray[np.int64],
        failed: list[int],
        ids: bytes,
        shelf: Shelf,
    ) -> list[BadClip]:
        """Adds to a buffer whose rows have been read what the rows do not hold.

        Args:
            buffer: its first rows are samples ``numbers``; gets their ids, and the labels of
                foreign samples.
            numbers: of the samples.
            failed: rows that are not what the index vouches for.
            ids: what rows.find_ids found in the rows.
            shelf: to read those once more and find out why.

        Returns:
            The damaged samples; their rows hold no usable data.
        """
        reasons = {row: self._why(int(numbers[row]), shelf) for row in failed}
        size = len(numbers)
        if self.foreign:
            at = self.layout.tags_at
            buffer.slab[:size, at : at + self._num_tags] = self._labels[numbers]
            buffer.ids[:size] = [self._ids[number] for number in numbers.tolist()]
        elif size:
            if 0 not in reasons:
                reasons |= self._other_shape(buffer.rows[0])
            buffer.ids[:size] = (
                ids.decode().split('"') if ids else self._parse_ids(buffer, numbers, reasons)
            )
        return [BadClip(row, int(numbers[row]), why) for row, why in sorted(reasons.items())]

    def _parse_ids(
        self, buffer: Buffer, numbers: NDArray[np.int64], damaged: dict[int, str]
    ) -> list[str]:
        ends = self._places["bytes"][numbers].tolist()
        texts = [bytes(buffer.rows[row][self.json_at : end]) for row, end in enumerate(ends)]
        return [
            "" if row in damaged else str(json.loads(text)["id"]) for row, text in enumerate(texts)
        ]

    def _why(self, number: int, shelf: Shelf) -> str:
        """What is wrong with a sample, from reading it once more."""
        place = self._places[number]
        content = memoryview(bytearray(int(place["bytes"])))
        try:
            num_bytes = shelf.read(int(place["shard"]), content, int(place["start"]))
        except OSError as error:
            return f"it cannot be read ({error.strerror})"
        if num_bytes != len(content):
            return f"{num_bytes} of {len(content)} bytes are there"
        found = xxhash.xxh3_64_intdigest(content)
        return f"checksum {found:016x}, the index says {int(place['checksum']):016x}"

    def _other_shape(self, row: memoryview) -> dict[int, str]:
        """Why the first sample of a batch is of another shape than the manifest says, if so.

        One a batch: what the index vouches for is what was packed, all in one shape; a
        manifest that describes another one shows at the first.
        """
        for what, at, head in (
            (f"mel is not float16 {self._mel_shape}", self.layout.mel_at, self._mel_head),
            (f"tags are not {self._num_tags} uint8", self.layout.tags_at, self._tags_head),
        ):
            if row[at - len(head) : at] != head:
                return {0: f"its {what}"}
        return {}

    def describe(self, bad: BadClip) -> str:
        """A damaged sample in one line: where it is, what is wrong, what to do."""
        place = self._places[bad.number]
        path = self._store.path(self._entry.shards[int(place["shard"])])
        return (
            f"{path}: the clip at byte {int(place['start'])} (sample {bad.number} of "
            f"{self._split}) is damaged: {bad.reason}; `shard-tools verify` names all damage of a "
            "folder; deleting the shard and `make shards` restores it, "
            'train.on_bad_clip = "skip" trains without the clip'
        )

    def _own_layout(self, index: NDArray[np.void]) -> Layout:
        """Once, over the whole index: every row must have the parts of our samples."""
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
        self.json_at = json_at
        longest = max(int(index["json_bytes"].max(initial=0)), rows.ID_BYTES)
        return Layout(
            row_bytes=_aligned(json_at + longest),
            mel_at=places["mel"] + len(self._mel_head),
            mel_shape=self._mel_shape,
            tags_at=places["tags"] + len(self._tags_head),
            num_tags=self._num_tags,
            mask_at=places["mask"] + len(self._tags_head) if has_mask else 0,
        )

    def _foreign_layout(self, index: NDArray[np.void]) -> Layout:
        self._require(index["shard"] < len(self._entry.shards))
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
        size = self._entry.clips
        if self._labels.shape != (size, self._num_tags) or len(self._ids) != size:
            raise ValueError(
                f"shards {self._store.name}: labels {self._labels.shape} and {len(self._ids)} ids "
                f"for {size} samples and {self._num_tags} tags of split "
                f"{self._split}; run `shard-tools index` again"
            )


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ROW_ALIGNMENT) * _ROW_ALIGNMENT


def _npy_head(dtype: type[np.generic], shape: tuple[int, ...]) -> bytes:
    """The header that every array of this type and shape has in a .npy file."""
    empty = np.broadcast_to(np.zeros((), dtype), shape)
    whole = tars.npy_bytes(empty)
    return whole[: len(whole) - empty.size * empty.itemsize]
