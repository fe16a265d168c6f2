"""A split's shards as open files: those of the windows at hand, opened ahead of need."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from mstag.data.order import Plan
from mstag.data.shards import FileEntry
from mstag.data.store import Remote, Store
from mstag.data.workers import ReadingProcesses

MAX_OPEN_SHARDS = 512
"""A window of more shards than this stays closed and each read opens its file: ulimit -n is
1024 on most machines."""
NUM_FETCHES = 4
"""Shards that are fetched at once."""
_BLOCK_BYTES = 1 << 18


class Shelf:
    """Opens the shards of a window before it is read and closes them after.

    While one window is read, the next one is fetched (remote shards) or read into the page
    cache (a folder), so that reading at random within a window finds everything at hand.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        plan: Plan,
        first_window: int = 0,
        readers: ReadingProcesses | None = None,
    ) -> None:
        """``first_window`` is the one that reading starts in; ``readers`` are kept informed."""
        self._store = store
        self._readers = readers
        self._entries = store.manifest.splits[split].shards
        self._windows = plan.windows
        self._check_room()
        self._reached = self._left = first_window  # windows in [left, reached) are open
        self._coming: dict[int, list[Future[None]]] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._pool = ThreadPoolExecutor(NUM_FETCHES, thread_name_prefix="mstag-fetch")
        self.files: dict[int, int | bytes] = {}
        """Each shard at hand: its file descriptor, or its path."""

    def reach(self, window: int) -> None:
        """Waits until every window up to this one is open, and starts on the one after."""
        while self._reached <= window:
            for future in self._start(self._reached):
                future.result()
            del self._coming[self._reached]
            self._reached += 1
        if self._reached < len(self._windows):
            self._start(self._reached)

    def is_at_hand(self, window: int) -> bool:
        """Whether :meth:`reach` would not have to wait."""
        return window < self._reached or (
            window == self._reached and all(future.done() for future in self._start(window))
        )

    def leave(self, window: int) -> None:
        """Closes every window before this one."""
        for number in range(self._left, window):
            for shard in self._windows[number]:
                self._close(shard)
        self._left = max(self._left, window)

    def read(self, shard: int, row: memoryview, start: int) -> int:
        """Reads into ``row`` from byte ``start`` of a shard; returns how many bytes there were.

        Thread-safe; releases the interpreter's lock while it reads.
        """
        file = self.files[shard]
        if isinstance(file, int):
            return os.preadv(file, (row,), start)
        handle = self._store.open(self._entries[shard])
        try:
            return os.preadv(handle, (row,), start)
        finally:
            os.close(handle)

    def close(self) -> None:
        """Closes everything; what is on its way is closed when it arrives."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for shard in list(self.files):
            self._close(shard)

    def _check_room(self) -> None:
        if not isinstance(self._store, Remote):
            return
        in_use = min(2 * max(map(len, self._windows), default=0), len(self._entries))
        sizes = sorted((entry.bytes for entry in self._entries), reverse=True)
        needed = sum(sizes[:in_use])
        what = "all shards" if len(self._windows) == 1 else "the shards of two windows"
        remedy = "set train.shuffle_window to a smaller number of shards (0 shuffles over all)"
        if needed > self._store.max_bytes:
            raise ValueError(
                f"{self._store.name}: {what} ({needed / 1e9:.1f} GB) must be at hand at once, the "
                f"cache holds train.cache_gb = {self._store.max_bytes / 1e9:g}: raise it, or "
                f"{remedy}"
            )
        if in_use > MAX_OPEN_SHARDS:
            raise ValueError(
                f"{self._store.name}: {what} ({in_use}) would be open at once, at most "
                f"{MAX_OPEN_SHARDS} may be: {remedy}"
            )

    def _start(self, window: int) -> list[Future[None]]:
        if window not in self._coming:
            shards = self._windows[window]
            if len(shards) > MAX_OPEN_SHARDS:
                for shard in shards:
                    path = self._store.path(self._entries[shard])
                    self._put(shard, os.fsencode(path.absolute()))
                shards = []
            self._coming[window] = [self._pool.submit(self._open, shard) for shard in shards]
        return self._coming[window]

    def _open(self, shard: int) -> None:
        entry = self._entries[shard]
        handle = self._store.open(entry)
        if len(self._windows) > 1 and not self._closed:
            _read_ahead(handle, entry)
        with self._lock:
            if self._closed:
                os.close(handle)
                return
            self._put(shard, handle)

    def _put(self, shard: int, file: int | bytes) -> None:
        self.files[shard] = file
        if self._readers:
            self._readers.open(shard, file)

    def _close(self, shard: int) -> None:
        with self._lock:
            file = self.files.pop(shard, None)
        if file is not None and self._readers:
            with contextlib.suppress(ChildProcessError):  # who has died needs no telling
                self._readers.close_shard(shard)
        if isinstance(file, int):
            os.close(file)


def _read_ahead(handle: int, entry: FileEntry) -> None:
    """Reads a shard from end to end, so that the page cache has it when clips are drawn from it.

    Advice to the kernel (fadvise) would cost less, but returns before the data is there, and
    reading at random then competes with it: measured at a third of the disk's speed.
    """
    block = mmap.mmap(-1, _BLOCK_BYTES)  # on a page: see workers.shared_memory
    for start in range(0, entry.bytes, _BLOCK_BYTES):
        os.preadv(handle, (block,), start)
