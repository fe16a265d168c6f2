"""Shards -> batches: ordered, exact, resumable.

The order of an epoch is a pure function of (seed, epoch, manifest, window). Global batch g is
slice g of that order, and each rank takes its part of the slice: so every rank has the same
number of steps whatever the sizes of the shards, and the global batches are the same for
every number of ranks and reading processes.

Ownership: a batch belongs to whoever holds it. Its memory goes back into use only when no
tensor made from it is alive any more, and a consumer that keeps many batches gets copies of
its own: keeping costs memory, not truth. ``mel`` and ``tags`` are views of the samples as
they lie in the shards, so rows of ``mel`` are contiguous and the batch as a whole is not.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mstag.data import order, rows
from mstag.data.buffers import Buffer, Layout, Ring
from mstag.data.reader import BadClip, Reader
from mstag.data.shelf import Shelf
from mstag.data.store import Store, open_store
from mstag.data.workers import ReadingProcesses

if TYPE_CHECKING:
    import torch

log = logging.getLogger("mstag")

Batch = dict[str, Any]
"""{"mel": float16 (B, 1, n_mels, num_frames), "tags": uint8 (B, n_tags), "id": list[str]},
and "mask": uint8 (B, n_tags) where labels are partial; tensors. "number" is a NumPy int64
array (B,): which samples of the split they are, in the order of the shards."""

STATE_VERSION = 2
MAX_NAMED = 10
"""Refused clips that are named in full, each epoch."""


@dataclass(slots=True)
class _OnItsWay:
    """A batch that is being read, or that waits to be handed out."""

    buffer: Buffer
    numbers: NDArray[np.int64]
    process: int | None
    """Which one reads it; None: it has been read in this process."""
    failed: list[int] = field(default_factory=list)
    ids: bytes = b""
    bad: list[BadClip] = field(default_factory=list)
    slab: torch.Tensor | None = None
    """Once it is read: the rows as uint8, (size, row_bytes), on the device or on their way."""


@dataclass(frozen=True, slots=True)
class _Kit:
    """What reading takes; kept from one epoch to the next."""

    ring: Ring
    readers: ReadingProcesses | None

    def close(self) -> None:
        if self.readers:
            self.readers.close()
        self.ring.close()


class ShardLoader:
    """Batches of one split, for one rank; behaves as people expect of a DataLoader.

    Args:
        shards: a folder of shards, the address of one, or an open store.
        split: "train", "valid" or "test".
        batch_size: clips per step over all ranks together.
        shuffle: True: the epoch's order, and an incomplete last global batch is dropped.
            False: the order of the shards, and every clip exactly once; the last batch of a
            rank may be smaller or empty.
        seed: seed of the epoch order.
        window: shards that are shuffled together; 0: all.
        rank, world_size: which part of each global batch to read.
        num_workers: reading processes; 0 reads when a batch is asked for.
        device: where batches go; on a CUDA device each is one asynchronous copy out of
            pinned memory, on a stream of its own.
        on_bad_clip: "fail", or "skip": batches go without damaged clips and are smaller.
        max_bad_clips: the share of the split that may be skipped before it fails after all.

    Raises:
        ValueError: shards that are missing, cut, stale or foreign (named, with the remedy),
            here or when a damaged clip is met.
    """

    def __init__(
        self,
        shards: Path | str | Store,
        split: str,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        window: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 2,
        device: torch.device | str | None = None,
        on_bad_clip: str = "fail",
        max_bad_clips: float = 0.01,
    ) -> None:
        self.store = open_store(shards)
        self.manifest = self.store.manifest
        if split not in self.manifest.splits:
            raise ValueError(
                f"shards {self.store.name}: no split {split!r}; "
                f"there are {', '.join(self.manifest.splits)}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: must be at least 1")
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        assert on_bad_clip in ("fail", "skip"), on_bad_clip
        self.split = split
        self.batch_size, self.shuffle, self.seed, self.window = batch_size, shuffle, seed, window
        self.rank, self.world_size = rank, world_size
        self.num_workers = num_workers
        self.device = device
        self.on_bad_clip, self.max_bad_clips = on_bad_clip, max_bad_clips
        self.epoch = 0
        self.num_refused = 0
        """Damaged clips of this epoch that this rank left out."""
        self._reader = Reader(self.store, split)
        self._position = 0
        self._resume_at = 0
        self._kit: _Kit | None = None
        self._stream: torch.cuda.Stream | None = None

    def close(self) -> None:
        """Ends the reading processes; they start again when the loader is used again."""
        if self._kit:
            self._kit.close()
        self._kit = None

    @property
    def num_clips(self) -> int:
        """Samples in the split."""
        return self.manifest.splits[self.split].clips

    @property
    def num_dropped(self) -> int:
        """Samples that an epoch leaves out: less than one global batch, never in evaluation."""
        return self.num_clips - len(self) * self.batch_size if self.shuffle else 0

    def __len__(self) -> int:
        """Steps of an epoch, the same on every rank."""
        return order.num_steps(self.num_clips, self.batch_size, drop_last=self.shuffle)

    def plan(self) -> order.Plan:
        """The order of the current epoch."""
        sizes = [entry.clips for entry in self.manifest.splits[self.split].shards]
        if self.shuffle:
            return order.shuffled(sizes, self.seed, self.epoch, self.window)
        return order.sequential(sizes)

    def ledger(self, num_refused: int) -> dict[str, int]:
        """What became of the clips of an epoch that is done, for metrics.

        Args:
            num_refused: ``num_refused`` of all ranks together.

        Raises:
            ValueError: the ranks together have refused more than ``max_bad_clips``.
        """
        if num_refused > self.max_bad_clips * self.num_clips:
            raise ValueError(f"{self._too_many(num_refused)} (all ranks together)")
        num_read = self.num_clips - self.num_dropped
        return {
            "data/seen": num_read - num_refused,
            "data/dropped": self.num_dropped,
            "data/refused": num_refused,
        }

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next iteration follows."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._position = self._resume_at = 0
            self.num_refused = 0

    def state_dict(self) -> dict[str, Any]:
        """How far the consumer is: every batch handed out so far counts as consumed.

        Call it after the optimiser step on the batch; read-ahead does not show in it. It is
        the same on every rank but for ``refused``, which counts this rank's.
        """
        return {
            "version": STATE_VERSION,
            "dataset": self.manifest.digest,
            "split": self.split,
            "seed": self.seed,
            "window": self.window,
            "batch_size": self.batch_size,
            "epoch": self.epoch,
            "clips": self._position * self.batch_size,
            "refused": self.num_refused,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where ``state`` stopped, at any number of ranks, without replaying.

        Raises:
            ValueError: the state is of another format, dataset, split, seed, window or
                batch size.
        """
        own = self.state_dict()
        for name in ("version", "dataset", "split", "seed", "window", "batch_size"):
            if state.get(name) != own[name]:
                raise ValueError(
                    f"loader state: {name} is {state.get(name)!r}, this loader has {own[name]!r}: "
                    "it belongs to another run; start a new one or restore what changed"
                )
        self.epoch = int(state["epoch"])
        self._position = self._resume_at = int(state["clips"]) // self.batch_size
        self.num_refused = int(state["refused"]) if self.rank == 0 else 0

    def __iter__(self) -> Iterator[Batch]:
        start, self._resume_at = self._resume_at, 0
        if not start:
            self.num_refused = 0
        self._position = start
        for batch in self._batches(start):
            self._position += 1
            yield batch

    def _batches(self, start: int) -> Iterator[Batch]:
        if start >= len(self):
            return
        plan = self.plan()
        num_clips, batch_size, ends = self.num_clips, self.batch_size, np.array(plan.ends)

        def window_at(position: int) -> int:
            return int(np.searchsorted(ends, position, side="right"))

        kit = self._take_kit()
        first_window = window_at(start * batch_size)
        shelf = Shelf(self.store, self.split, plan, first_window, kit.readers)
        coming: deque[_OnItsWay] = deque()
        num_done = start

        def hand_out() -> Batch:
            nonlocal num_done
            item = coming.popleft()
            batch = self._to_batch(item, kit, shelf, self._num_ahead - len(coming))
            num_done += 1
            shelf.leave(window_at(num_done * batch_size))
            if self._is_cuda() and coming and self._is_read(coming[0], kit):
                self._finish(coming[0], kit, shelf, 1)  # it travels while this batch is used
            return batch

        try:
            for step in range(start, len(self)):
                window = window_at(min((step + 1) * batch_size, num_clips) - 1)
                while len(coming) >= self._num_ahead or (coming and not shelf.is_at_hand(window)):
                    yield hand_out()
                shelf.reach(window)
                part = order.rank_part(plan.order, step, batch_size, self.rank, self.world_size)
                coming.append(self._start(part, kit, shelf))
            while coming:
                yield hand_out()
        finally:
            # Whoever stops early leaves batches on their way.
            is_sound = False
            try:
                with contextlib.suppress(ChildProcessError):
                    for item in coming:
                        self._wait(item, kit)
                        kit.ring.give_back(item.buffer)
                    is_sound = True
                shelf.close()
            finally:
                self.close()  # what another iteration over this loader has left
                if is_sound:
                    self._kit = kit
                else:
                    kit.close()

    @property
    def _num_ahead(self) -> int:
        """Batches on their way: for each process one to read and one to take up next."""
        return 2 * self.num_workers or 1

    def _take_kit(self) -> _Kit:
        """The kit of the last epoch, unless its consumer still holds most of the memory."""
        kit, self._kit = self._kit, None
        if kit and kit.ring.num_free() > self._num_ahead:
            return kit
        if kit:
            kit.close()
        num_rows = -(-self.batch_size // self.world_size)
        # One is handed out, and one the consumer still holds.
        num_buffers = self._num_ahead + 2
        ring = Ring(self._reader.layout, num_rows, num_buffers, pinned=self._is_cuda())
        if not self.num_workers:
            return _Kit(ring, None)
        readers = ReadingProcesses(
            self.num_workers,
            ring.handle,
            ring.num_bytes,
            self._reader.layout.row_bytes,
            self._reader.json_at,
            self._reader.foreign,
        )
        return _Kit(ring, readers)

    def _start(self, numbers: NDArray[np.int64], kit: _Kit, shelf: Shelf) -> _OnItsWay:
        buffer = kit.ring.take()
        places = self._reader.places(numbers)
        if kit.readers:
            return _OnItsWay(buffer, numbers, kit.readers.read(buffer.first_row, places))
        read_row = self._reader.read_row
        failed = rows.read_rows(buffer.rows, places.tolist(), shelf.files, read_row)
        at = self._reader.json_at
        ids = rows.find_ids(buffer.rows[: len(numbers)], at) if at and not failed else b""
        return _OnItsWay(buffer, numbers, None, failed, ids)

    def _is_read(self, item: _OnItsWay, kit: _Kit) -> bool:
        return item.process is None or (
            kit.readers is not None and kit.readers.is_done(item.process)
        )

    def _wait(self, item: _OnItsWay, kit: _Kit) -> None:
        if item.process is not None:
            assert kit.readers is not None
            item.failed, item.ids = kit.readers.wait(item.process)
            item.process = None

    def _finish(self, item: _OnItsWay, kit: _Kit, shelf: Shelf, num_needed: int) -> torch.Tensor:
        """Waits until a batch is read and, where it goes to a device, sends it on its way.

        ``num_needed`` buffers must be free afterwards, for the batches that follow.
        """
        import torch

        self._wait(item, kit)
        item.bad = self._reader.finish(item.buffer, item.numbers, item.failed, item.ids, shelf)
        if item.bad:
            if self.on_bad_clip == "fail":
                raise ValueError(self._reader.describe(item.bad[0]))
            good = sorted(set(range(len(item.numbers))) - {clip.row for clip in item.bad})
            item.buffer.keep(good)
            item.numbers = item.numbers[good]
        rows_read = item.buffer.slab[: len(item.numbers)]
        if self._is_cuda():
            if self._stream is None:
                self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(self._stream):
                item.slab = torch.from_numpy(rows_read).to(self.device, non_blocking=True)
                item.buffer.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                item.buffer.copied.record()
        else:
            if kit.ring.num_free() < num_needed:  # the consumer keeps batches: give it its own
                rows_read = rows_read.copy()
            item.slab = torch.from_numpy(rows_read)
            if self.device is not None:
                item.slab = item.slab.to(self.device)
        return item.slab

    def _to_batch(self, item: _OnItsWay, kit: _Kit, shelf: Shelf, num_needed: int) -> Batch:
        slab = item.slab if item.slab is not None else self._finish(item, kit, shelf, num_needed)
        if item.buffer.copied is not None:
            import torch

            consumer = torch.cuda.current_stream(self.device)
            consumer.wait_event(item.buffer.copied)
            slab.record_stream(consumer)
        self._count(item.bad)
        size = len(item.numbers)
        batch = parts(slab, self._reader.layout)
        batch |= {"id": item.buffer.ids[:size], "number": item.numbers}
        kit.ring.give_back(item.buffer)
        return batch

    def _count(self, bad: list[BadClip]) -> None:
        for clip in bad:
            self.num_refused += 1
            if self.num_refused <= MAX_NAMED:
                log.warning(f"refused: {self._reader.describe(clip)}")
            if self.num_refused > self.max_bad_clips * self.num_clips:
                raise ValueError(
                    f"{self._too_many(self.num_refused)}; the last: {self._reader.describe(clip)}"
                )

    def _too_many(self, num_refused: int) -> str:
        return (
            f"{num_refused} damaged clips in epoch {self.epoch} of split {self.split}, more than "
            f"train.max_bad_clips = {self.max_bad_clips:g} of {self.num_clips} allows"
        )

    def _is_cuda(self) -> bool:
        return self.device is not None and str(self.device).startswith("cuda")


def parts(slab: torch.Tensor, layout: Layout) -> Batch:
    """Rows of samples -> mel, tags and mask, as views.

    Args:
        slab: uint8, (B, row_bytes), on any device.
        layout: where the parts lie in a row.

    Returns:
        ``mel`` float16 (B, 1, n_mels, num_frames), ``tags`` uint8 (B, n_tags), and ``mask``
        alike where labels are partial.
    """
    import torch

    n_mels, num_frames = layout.mel_shape
    stride = layout.row_bytes // 2
    batch: Batch = {
        "mel": slab.view(torch.float16).as_strided(
            (len(slab), 1, n_mels, num_frames),
            (stride, stride, num_frames, 1),
            layout.mel_at // 2,
        )
    }
    for name, at in (("tags", layout.tags_at), ("mask", layout.mask_at)):
        if at:
            batch[name] = slab[:, at : at + layout.num_tags]
    return batch
