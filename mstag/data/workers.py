"""Reading processes: started, fed, waited for, ended (rows.py is what they run)."""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstag.data import rows

PLACE_DTYPE = np.dtype([("shard", "<i8"), ("start", "<i8"), ("bytes", "<i8"), ("checksum", "<u8")])
"""rows.PLACE as NumPy has it: where a sample is, and the xxh3-64 of its bytes."""
assert PLACE_DTYPE.itemsize == rows.PLACE.size


def shared_memory(num_bytes: int) -> tuple[int, mmap.mmap]:
    """Memory that can be handed to another process: its file descriptor, and the memory.

    Not /dev/shm, which containers often limit to 64 MB. It starts on a page: where malloc puts
    large arrays, 16 bytes behind one, Zen 3 processors copy into it at a quarter of the speed.
    """
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("mstag-batches")
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, num_bytes)
    return handle, mmap.mmap(handle, num_bytes)


class ReadingProcesses:
    """Some processes that read samples into rows of shared memory.

    Batches go to them in turn, and each answers in the order in which it was asked.
    """

    def __init__(
        self,
        num_processes: int,
        memory_handle: int,
        num_bytes: int,
        row_bytes: int,
        json_at: int,
        foreign: dict[str, Any] | None = None,
    ) -> None:
        """Starts the processes; they inherit the memory."""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._next = 0
        self.is_broken = False
        """Whether one of them has died."""
        for _ in range(num_processes):
            ours, theirs = socket.socketpair()
            settings = {
                "socket": theirs.fileno(),
                "memory": memory_handle,
                "num_bytes": num_bytes,
                "row_bytes": row_bytes,
                "json_at": json_at,
                "foreign": foreign,
            }
            with theirs, _deaf():
                process = subprocess.Popen(  # noqa: S603 (our own file, no shell)
                    # -P: the folder of rows.py holds modules, not a program's parts.
                    [sys.executable, "-P", str(Path(rows.__file__)), json.dumps(settings)],
                    pass_fds=(theirs.fileno(), memory_handle),
                    stdin=subprocess.DEVNULL,
                )
            self._processes.append(process)
            self._sockets.append(ours)
        self.close = weakref.finalize(self, _end, self._processes, self._sockets)
        """Ends the processes; else they end with this object, or with the program."""

    def open(self, shard: int, file: int | bytes) -> None:
        """Tells every process a shard's file descriptor, or its path. Thread-safe."""
        content = file if isinstance(file, bytes) else b""
        header = rows.HEADER.pack(rows.OPEN, shard, len(content))
        for number, connection in enumerate(self._sockets):
            with self._lock, self._alive(number):
                if isinstance(file, int):
                    socket.send_fds(connection, [header], [file])
                else:
                    connection.sendall(header + content)

    def close_shard(self, shard: int) -> None:
        """Tells every process that a shard is done with. Thread-safe."""
        for number, connection in enumerate(self._sockets):
            with self._lock, self._alive(number):
                connection.sendall(rows.HEADER.pack(rows.CLOSE, shard, 0))

    def read(self, row: int, places: NDArray[np.void]) -> int:
        """Has the next process read samples into rows of the memory.

        Args:
            row: number of the first one.
            places: PLACE_DTYPE.

        Returns:
            The number of the process, for :meth:`wait`.
        """
        number, self._next = self._next, (self._next + 1) % len(self._sockets)
        content = places.tobytes()
        header = rows.HEADER.pack(rows.READ, row, len(content))
        with self._lock, self._alive(number):
            self._sockets[number].sendall(header + content)
        return number

    def is_done(self, number: int) -> bool:
        """Whether :meth:`wait` would return at once."""
        poll = select.poll()  # select() knows no descriptors above 1023
        poll.register(self._sockets[number], select.POLLIN)
        return bool(poll.poll(0))

    def wait(self, number: int) -> tuple[list[int], bytes]:
        """The rows that failed of the oldest batch that a process has not answered yet.

        And its clip ids, as rows.find_ids gives them.
        """
        with self._alive(number):
            count, num_bytes = rows.ANSWER.unpack(self._receive(number, rows.ANSWER.size))
            rest = self._receive(number, 8 * count + num_bytes)
            return list(struct.unpack_from(f"<{count}q", rest)), rest[8 * count :]

    def _receive(self, number: int, num_bytes: int) -> bytes:
        content = bytearray()
        while len(content) < num_bytes:
            part = self._sockets[number].recv(num_bytes - len(content))
            if not part:
                raise ConnectionError
            content += part
        return bytes(content)

    @contextmanager
    def _alive(self, number: int) -> Iterator[None]:
        """Turns a broken connection into what broke it."""
        try:
            yield
        except ConnectionError:
            self.is_broken = True
            code = self._processes[number].wait(timeout=5)
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            raise ChildProcessError(
                f"a reading process {how}: is the machine out of memory? "
                "train.loader_workers = 0 reads in the training process"
            ) from None


@contextmanager
def _deaf() -> Iterator[None]:
    """What starts in here never hears SIGINT and SIGTERM, not even before its first line.

    Keyboards, `timeout` and job managers send them to all processes of a program. The training
    process still needs its readers then, and ends them when it is ready to.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(processes: list[subprocess.Popen[bytes]], sockets: list[socket.socket]) -> None:
    for connection in sockets:
        connection.close()
    for process in processes:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
