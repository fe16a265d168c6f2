"""Batches on their way: started, waited for, taken in the order in which they were started."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mstag.data import rows
from mstag.data.buffers import Buffer, Layout, Ring
from mstag.data.reader import BadClip, Reader
from mstag.data.shelf import Shelf
from mstag.data.workers import ReadingProcesses

if TYPE_CHECKING:
    import torch


class Waiting:
    """Counts the time in its ``with`` blocks: a consumer is kept waiting by data."""

    def __init__(self) -> None:
        self._seconds = self._since = 0.0

    def so_far_s(self) -> float:
        """The sum of it."""
        return self._seconds

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds += time.perf_counter() - self._since


@dataclass(slots=True)
class Kit:
    """What reading takes; outlives an epoch."""

    ring: Ring
    readers: ReadingProcesses | None
    num_ahead: int
    """Batches on their way at most."""

    def close(self) -> None:
        """Ends the processes and lets go of the memory, once nothing is copied out of it."""
        if self.readers:
            self.readers.close()
        self.ring.wait_for_copies()
        self.ring.close()


def make_kit(
    reader: Reader, num_rows: int, num_workers: int, device: torch.device | str | None
) -> Kit:
    """Memory and processes for batches of ``num_rows`` samples."""
    # For each process a batch to read and one to take up next.
    num_ahead = 2 * num_workers or 1
    # One more is handed out, and one the consumer still holds.
    ring = Ring(reader.layout, num_rows, num_ahead + 2, pinned=_is_cuda(device))
    if not num_workers:
        return Kit(ring, None, num_ahead)
    readers = ReadingProcesses(
        num_workers,
        ring.handle,
        ring.num_bytes,
        reader.layout.row_bytes,
        reader.json_at,
        reader.foreign,
    )
    return Kit(ring, readers, num_ahead)


@dataclass(slots=True)
class _OnItsWay:
    buffer: Buffer
    numbers: NDArray[np.int64]
    process: int | None
    """Which one reads it; None: it has been read."""
    failed: list[int] = field(default_factory=list)
    ids: bytes = b""
    bad: list[BadClip] = field(default_factory=list)
    slab: NDArray[np.uint8] | torch.Tensor | None = None
    """Once it is finished: its good rows, here, or on a device or on their way to it."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A batch that has been read, less its damaged samples."""

    numbers: NDArray[np.int64]
    ids: list[str]
    bad: list[BadClip]
    slab: NDArray[np.uint8] | torch.Tensor

    def parts(self, layout: Layout) -> dict[str, Any]:
        """mel, tags and mask, as views of the samples.

        Returns:
            ``mel`` float16 (B, 1, n_mels, num_frames), ``tags`` uint8 (B, n_tags), and
            ``mask`` alike where labels are partial; tensors.
        """
        import torch

        slab = self.slab
        n_mels, num_frames = layout.mel_shape
        if isinstance(slab, np.ndarray):
            # NumPy makes views in a tenth of the time that torch takes.
            mel = slab[:, layout.mel_at : layout.mel_at + 2 * n_mels * num_frames]
            shaped = mel.view(np.float16).reshape(len(slab), 1, n_mels, num_frames)
            parts = {"mel": torch.from_numpy(shaped)}
        else:
            stride = layout.row_bytes // 2
            strides = (stride, stride, num_frames, 1)
            shape = (len(slab), 1, n_mels, num_frames)
            halves = slab.view(torch.float16)
            parts = {"mel": halves.as_strided(shape, strides, layout.mel_at // 2)}
        for name, at in (("tags", layout.tags_at), ("mask", layout.mask_at)):
            if at:
                part = slab[:, at : at + layout.num_tags]
                parts[name] = torch.from_numpy(part) if isinstance(part, np.ndarray) else part
        return parts


class Pipeline:
    """The batches of one epoch that have been started and not been taken."""

    def __init__(
        self,
        reader: Reader,
        shelf: Shelf,
        kit: Kit,
        device: torch.device | str | None,
        *,
        skip: bool,
        waiting: Waiting,
    ) -> None:
        """With ``skip``, damaged samples are left out; else they raise."""
        self._reader, self._shelf, self._kit = reader, shelf, kit
        self._device, self._skip, self._waiting = device, skip, waiting
        self._coming: deque[_OnItsWay] = deque()

    def __len__(self) -> int:
        return len(self._coming)

    def is_full(self) -> bool:
        """Whether one must be taken before another is started."""
        return len(self._coming) >= self._kit.num_ahead

    def start(self, numbers: NDArray[np.int64]) -> None:
        """Starts on samples ``numbers``, whose shards are open."""
        buffer = self._kit.ring.take()
        places = self._reader.places(numbers)
        if self._kit.readers:
            process = self._kit.readers.read(buffer.first_row, places)
            self._coming.append(_OnItsWay(buffer, numbers, process))
            return
        read_row = self._reader.read_row
        with self._waiting:
            failed = rows.read_rows(buffer.rows, places.tolist(), self._shelf.files, read_row)
        at = self._reader.json_at
        ids = rows.find_ids(buffer.rows[: len(numbers)], at) if at and not failed else b""
        self._coming.append(_OnItsWay(buffer, numbers, None, failed, ids))

    def take(self) -> Taken:
        """Waits for the oldest batch.

        Raises:
            ValueError: it has a damaged sample (unless ``skip``).
            ChildProcessError: a reading process has died.
        """
        item = self._coming.popleft()
        slab = item.slab if item.slab is not None else self._finish(item)
        if item.buffer.copied is not None:
            self._hand_over(item.buffer, slab)
        taken = Taken(item.numbers, item.buffer.ids[: len(item.numbers)], item.bad, slab)
        self._kit.ring.give_back(item.buffer)
        if _is_cuda(self._device) and self._coming and self._is_read(self._coming[0]):
            self._finish(self._coming[0])  # it travels while this one is used
        return taken

    def drain(self) -> bool:
        """Waits for what is on its way, and drops it; whether the kit is still good."""
        with contextlib.suppress(ChildProcessError):
            while self._coming:
                item = self._coming.popleft()
                self._wait(item)
                self._kit.ring.give_back(item.buffer)
        return self._kit.readers is None or not self._kit.readers.is_broken

    def _is_read(self, item: _OnItsWay) -> bool:
        readers = self._kit.readers
        return item.process is None or (readers is not None and readers.is_done(item.process))

    def _wait(self, item: _OnItsWay) -> None:
        if item.process is not None:
            assert self._kit.readers is not None
            with self._waiting:
                item.failed, item.ids = self._kit.readers.wait(item.process)
            item.process = None

    def _finish(self, item: _OnItsWay) -> NDArray[np.uint8] | torch.Tensor:
        """Waits until a batch is read and, where it goes to a device, sends it on its way."""
        self._wait(item)
        item.bad = self._reader.finish(
            item.buffer, item.numbers, item.failed, item.ids, self._shelf
        )
        if item.bad:
            if not self._skip:
                self._kit.ring.give_back(item.buffer)
                raise ValueError(self._reader.describe(item.bad[0]))
            good = sorted(set(range(len(item.numbers))) - {clip.row for clip in item.bad})
            item.buffer.keep(good)
            item.numbers = item.numbers[good]
        slab = item.buffer.slab[: len(item.numbers)]
        if _is_cuda(self._device):
            item.slab = self._send(item.buffer, slab)
        elif self._device is not None and str(self._device) != "cpu":
            import torch

            item.slab = torch.from_numpy(slab).to(self._device)
        elif self._kit.ring.num_free() < self._kit.num_ahead - len(self._coming):
            item.slab = slab.copy()  # the consumer keeps batches: it gets memory of its own
        else:
            item.slab = slab
        return item.slab

    def _send(self, buffer: Buffer, slab: NDArray[np.uint8]) -> torch.Tensor:
        """One asynchronous copy, on a stream of its own, beside whatever the device does."""
        import torch

        with torch.cuda.stream(_copies(str(self._device))):
            sent = torch.from_numpy(slab).to(self._device, non_blocking=True)
            buffer.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            buffer.copied.record()
        return sent

    def _hand_over(self, buffer: Buffer, slab: Any) -> None:
        """Makes the consumer's stream wait for the copy."""
        import torch

        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_event(buffer.copied)
        slab.record_stream(consumer)


@functools.cache
def _copies(device: str) -> torch.cuda.Stream:
    """The stream for copies to a device, one for all loaders: torch keeps memory by streams."""
    import torch

    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _is_cuda(device: torch.device | str | None) -> bool:
    return device is not None and str(device).startswith("cuda")
