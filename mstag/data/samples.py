"""Single samples of a split, by number: for those who look at clips instead of training on them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mstag.data.reader import BadClip, Reader
from mstag.data.store import Store


class Stored(NamedTuple):
    """A sample as it is stored; the arrays are overwritten by the next read."""

    mel: NDArray[np.float16]
    tags: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None
    meta: dict[str, Any]


class Source:
    """The samples of a split by number, verified; one shard is open at a time."""

    def __init__(self, store: Store, split: str) -> None:
        self._store, self._entry = store, store.manifest.splits[split]
        self._reader = Reader(store, split)
        self._row = memoryview(bytearray(self._reader.layout.row_bytes))
        self._shard, self._handle = -1, -1
        self._labels: NDArray[Any] | None = None
        self._ids: list[str] = []
        if store.manifest.foreign and self._entry.labels and self._entry.ids:
            self._labels = store.labels(self._entry.labels)
            self._ids = json.loads(store.small_file(self._entry.ids))

    def __len__(self) -> int:
        return self._entry.clips

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._shard = self._handle = -1

    def clip_id(self, number: int) -> str:
        """The id of a sample's clip, without reading the sample."""
        if self._labels is not None:
            return self._ids[number]
        place = self._place(number)
        at = self._reader.json_at
        text = os.pread(self._open(place["shard"]), place["bytes"] - at, place["start"] + at)
        return str(self._meta(number, text)["id"])

    def read(self, number: int) -> Stored:
        """A sample.

        Raises:
            ValueError: it is not what the index vouches for.
        """
        place, layout, row = self._place(number), self._reader.layout, self._row
        checksum = int(self._reader.places(np.array([number]))["checksum"][0])
        handle = self._open(place["shard"])
        if not self._reader.read_row(row, handle, place["start"], place["bytes"], checksum):
            self._fail(number, "it is not what was packed")
        mel_size = layout.mel_shape[0] * layout.mel_shape[1]
        mel = np.frombuffer(row, np.float16, mel_size, layout.mel_at).reshape(layout.mel_shape)
        if self._labels is not None:
            return Stored(mel, self._labels[number], None, {"id": self._ids[number]})
        tags = np.frombuffer(row, np.uint8, layout.num_tags, layout.tags_at)
        mask = None
        if layout.mask_at:
            mask = np.frombuffer(row, np.uint8, layout.num_tags, layout.mask_at)
        meta = self._meta(number, bytes(row[self._reader.json_at : place["bytes"]]))
        return Stored(mel, tags, mask, meta)

    def clips(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, list[int]]]:
        """The clips whose first sample is among ``numbers`` (ascending), with all their samples.

        So each clip is as likely to be drawn as any other, however many samples it has.

        Yields:
            (samples of ``numbers`` that have been dealt with, the clip's samples).
        """
        end = 0
        for done, number in enumerate(numbers.tolist(), 1):
            if number < end:
                continue
            clip = self.clip_id(number)
            if number > end and self.clip_id(number - 1) == clip:
                continue
            end = number + 1
            while end < len(self) and self.clip_id(end) == clip:
                end += 1
            yield done, list(range(number, end))

    def _place(self, number: int) -> dict[str, int]:
        place = self._reader.places(np.array([number]))[0]
        return {name: int(place[name]) for name in ("shard", "start", "bytes")}

    def _open(self, shard: int) -> int:
        if shard != self._shard:
            self.__exit__(None, None, None)
            self._handle, self._shard = self._store.open(self._entry.shards[shard]), shard
        return self._handle

    def _meta(self, number: int, text: bytes) -> dict[str, Any]:
        try:
            meta = json.loads(text)
        except ValueError:
            meta = None
        if not isinstance(meta, dict) or "id" not in meta:
            self._fail(number, "its json names no clip")
        return dict(meta)

    def _fail(self, number: int, reason: str) -> None:
        raise ValueError(self._reader.describe(BadClip(0, number, reason)))
