"""Samples of a split -> rows of reused batch buffers, each one verified.

``os.preadv`` reads each payload straight into its row and releases the GIL, so threads
suffice where worker processes would copy every batch once more.
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from mstag.data import shards

MAX_OPEN_SHARDS = 512
"""Above this many shards each read opens its file: ulimit -n is 1024 on most machines."""


class Reader:
    """Reads samples by their number in the split, verified, into buffers; thread-safe."""

    def __init__(self, folder: Path, split: str, manifest: shards.Manifest) -> None:
        self._paths = [folder / entry.name for entry in manifest.splits[split].shards]
        self._index = shards.read_index(folder, split, manifest)
        shards.check_shards(folder, split, manifest)
        self.mel_shape = (manifest.features.n_mels, manifest.features.num_frames)
        self.num_tags = len(manifest.tags)
        self.has_mask = bool(len(self._index)) and bool(self._index["mask_bytes"][0])
        self._mel_head = _npy_head(np.float16, self.mel_shape)
        self._tags_head = _npy_head(np.uint8, (self.num_tags,))
        self._check_layout(folder, split)
        self._files: list[int] = []
        if len(self._paths) <= MAX_OPEN_SHARDS:
            self._files = [os.open(path, os.O_RDONLY) for path in self._paths]

    def __del__(self) -> None:
        for handle in getattr(self, "_files", []):
            os.close(handle)

    def _check_layout(self, folder: Path, split: str) -> None:
        """Once, over the whole index: sizes that fit the features and tags, parts in order."""
        index = self._index
        mel_bytes = len(self._mel_head) + 2 * self.mel_shape[0] * self.mel_shape[1]
        tags_bytes = len(self._tags_head) + self.num_tags
        mask_bytes = tags_bytes if self.has_mask else 0
        good = (
            (index["mel_bytes"] == mel_bytes)
            & (index["tags_bytes"] == tags_bytes)
            & (index["mask_bytes"] == mask_bytes)
            & (index["shard"] < len(self._paths))
            & (index["tags_at"] >= index["mel_at"] + mel_bytes)
            & (index["json_at"] >= index["tags_at"] + tags_bytes)
            & (index["json_at"] - index["mel_at"] < mel_bytes + (1 << 20))
        )
        if not good.all():
            raise ValueError(
                f"shards {folder}: sample {int(np.argmin(good))} of the {split} index does not "
                f"fit {self.mel_shape} spectrograms and {self.num_tags} tags; pack them again"
            )

    def fill(self, buffer: Buffer, part: NDArray[np.int64], low: int, high: int) -> None:
        """Reads samples ``part[low:high]`` into rows ``low:high`` of the buffer."""
        head = bytearray(len(self._mel_head))
        for row in range(low, high):
            self._read(buffer, row, int(part[row]), head)

    def _read(self, buffer: Buffer, row: int, number: int, head: bytearray) -> None:
        place = self._index[number]
        start, end = int(place["mel_at"]), int(place["json_at"]) + int(place["json_bytes"])
        mel = buffer.arrays["mel"][row].view(np.uint8).reshape(-1)
        tail = bytearray(end - start - len(head) - len(mel))
        shard = int(place["shard"])
        handle = self._files[shard] if self._files else os.open(self._paths[shard], os.O_RDONLY)
        try:
            num_bytes = os.preadv(handle, [head, mel, tail], start)
        except OSError as error:
            raise ValueError(f"{self._paths[shard]}: cannot be read ({error.strerror})") from None
        finally:
            if not self._files:
                os.close(handle)
        if num_bytes != end - start:
            raise self._damaged(number, f"{num_bytes} of {end - start} bytes are there")
        base = start + len(head) + len(mel)
        payloads = {
            name: memoryview(tail)[int(place[f"{name}_at"]) - base :][: int(place[f"{name}_bytes"])]
            for name in ("tags", "mask", "json")
            if place[f"{name}_bytes"]
        }
        checksum = xxhash.xxh3_64(head)
        checksum.update(mel)
        for payload in payloads.values():
            checksum.update(payload)
        if checksum.intdigest() != int(place["checksum"]):
            raise self._damaged(
                number,
                f"checksum {checksum.hexdigest()}, the index says {int(place['checksum']):016x}",
            )
        if bytes(head) != self._mel_head:
            raise self._damaged(number, f"its mel is not float16 {self.mel_shape}")
        skip = len(self._tags_head)
        for name in ("tags", "mask"):
            if name in payloads:
                buffer.arrays[name][row] = np.frombuffer(payloads[name], np.uint8)[skip:]
        buffer.ids[row] = json.loads(bytes(payloads["json"]))["id"]

    def _damaged(self, number: int, why: str) -> ValueError:
        place = self._index[number]
        path = self._paths[int(place["shard"])]
        return ValueError(
            f"{path}: the clip at byte {int(place['mel_at'])} (sample {number} of its split) is "
            f"damaged: {why}; `shard-tools verify {path.parent}` names all damage, deleting the "
            "shard and `make shards` restores it"
        )


class Buffer:
    """Memory for one batch. ``copied`` marks the end of its last copy to a CUDA device."""

    def __init__(self, reader: Reader, num_rows: int, pinned: bool) -> None:
        shape = (num_rows, *reader.mel_shape)
        labels = (num_rows, reader.num_tags)
        self.arrays: dict[str, NDArray[Any]] = {"tags": np.empty(labels, np.uint8)}
        if reader.has_mask:
            self.arrays["mask"] = np.empty(labels, np.uint8)
        if pinned:
            import torch

            self.arrays["mel"] = torch.empty(shape, dtype=torch.float16, pin_memory=True).numpy()
        else:
            self.arrays["mel"] = np.empty(shape, np.float16)
        self.ids = [""] * num_rows
        self.copied: Any = None

    def is_free(self) -> bool:
        """Whether nobody holds a tensor of it; a tensor keeps its array referenced."""
        if self.copied is not None and not bool(self.copied.query()):
            return False
        # 2: the dict's own and getrefcount's argument. A slice of the array, and so every
        # tensor made from one, holds one more.
        return all(sys.getrefcount(self.arrays[name]) <= 2 for name in self.arrays)


class Ring:
    """Buffers in rotation; allocates only when all of them are still in use."""

    def __init__(self, reader: Reader, num_rows: int, pinned: bool, size: int) -> None:
        self._reader, self._num_rows, self._pinned = reader, num_rows, pinned
        self._size = size
        self._buffers: deque[Buffer] = deque()

    def take(self) -> Buffer:
        """A buffer that nobody holds; a new one when all are held."""
        for _ in range(len(self._buffers)):
            buffer = self._buffers.popleft()
            if buffer.is_free():
                return buffer
            self._buffers.append(buffer)
        return Buffer(self._reader, self._num_rows, self._pinned)

    def give_back(self, buffer: Buffer) -> None:
        """Takes it into the rotation; buffers that a consumer keeps beyond that are let go."""
        self._buffers.append(buffer)
        if len(self._buffers) > self._size:
            self._buffers.popleft()


def _npy_head(dtype: type[np.generic], shape: tuple[int, ...]) -> bytes:
    """The header that every array of this type and shape has in a .npy file."""
    empty = np.broadcast_to(np.zeros((), dtype), shape)
    whole = shards.npy_bytes(empty)
    return whole[: len(whole) - empty.size * empty.itemsize]
