"""Memory for batches: a few slots, used in turn, shared with the reading processes."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstag.data.workers import shared_memory

log = logging.getLogger("mstag")


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


class Buffer:
    """Memory for one batch; ``first_row`` counts from the start of all memory."""

    def __init__(self, memory: NDArray[np.uint8], first_row: int, row_bytes: int) -> None:
        self.first_row = first_row
        self._memory = memory
        self.slab: NDArray[np.uint8] = memory.reshape(-1, row_bytes)
        whole = memory.data
        self.rows = [whole[i : i + row_bytes] for i in range(0, len(memory), row_bytes)]
        self.ids = [""] * len(self.rows)
        self.is_taken = False
        self.copied: Any = None
        """CUDA event at the end of its last copy to a device."""
        self._num_own_references = 0

    def settle(self) -> None:
        """Notes how many references the buffer itself holds, before anybody else has one."""
        self._num_own_references = sys.getrefcount(self._memory)

    def is_free(self) -> bool:
        """Whether nobody uses it: no reader, no copy, no tensor.

        Every view of an array keeps a reference to it, and every tensor to its view.
        """
        if self.is_taken or (self.copied is not None and not bool(self.copied.query())):
            return False
        return sys.getrefcount(self._memory) <= self._num_own_references

    def keep(self, rows: list[int]) -> None:
        """Moves these rows, in ascending order, to the front."""
        self.slab[: len(rows)] = self.slab[rows]
        self.ids[: len(rows)] = [self.ids[row] for row in rows]


class Ring:
    """A fixed number of buffers in one stretch of shared memory."""

    def __init__(self, layout: Layout, num_rows: int, num_buffers: int, *, pinned: bool) -> None:
        """With ``pinned``, the memory is made known to CUDA, for asynchronous copies."""
        size = num_rows * layout.row_bytes
        self.num_bytes = num_buffers * size
        self.handle, memory = shared_memory(self.num_bytes)
        pages = np.frombuffer(memory, np.uint8) if pinned else None
        if pages is not None and not _pin(pages):
            pages = None
        self.close = weakref.finalize(self, _let_go, self.handle, pages)
        """Lets go of the memory; what a consumer holds of it stays."""
        self._buffers = [
            Buffer(np.frombuffer(memory, np.uint8, size, i * size), i * num_rows, layout.row_bytes)
            for i in range(num_buffers)
        ]
        for buffer in self._buffers:
            buffer.settle()

    def take(self) -> Buffer:
        """A free buffer, the one used last: it may still be in the CPU's cache.

        Waits for a copy to the device where only copies keep buffers from being free.
        """
        for buffer in reversed(self._buffers):
            if buffer.is_free():
                buffer.is_taken = True
                return buffer
        for buffer in self._buffers:
            if not buffer.is_taken and buffer.copied is not None:
                buffer.copied.synchronize()
                buffer.is_taken = True
                return buffer
        raise AssertionError("more batches on their way than buffers")

    def wait_for_copies(self) -> None:
        """Returns when no copy to a device is under way any more."""
        for buffer in self._buffers:
            if buffer.copied is not None:
                buffer.copied.synchronize()

    def give_back(self, buffer: Buffer) -> None:
        """Ends the reader's use of a buffer; a consumer may go on using it."""
        buffer.is_taken = False
        self._buffers.remove(buffer)
        self._buffers.append(buffer)

    def num_free(self) -> int:
        """How many buffers nobody uses."""
        return sum(buffer.is_free() for buffer in self._buffers)


def _pin(memory: NDArray[np.uint8]) -> bool:
    """Makes memory known to CUDA; False where this machine does not let it: copies then wait."""
    import torch

    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    error = int(runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
    if not error:
        return True
    log.warning(
        f"memory for batches cannot be pinned (cudaHostRegister: error {error}): copies to the GPU "
        "are slower than they could be"
    )
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")  # CUDA keeps the error, and would blame the next kernel
    return False


def _let_go(handle: int, pinned: NDArray[np.uint8] | None) -> None:
    os.close(handle)
    if pinned is not None:
        import torch

        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        runtime.cudaHostUnregister(pinned.ctypes.data)
