"""Samples -> rows of shared memory, read and verified; also the program that does only this.

The loader's reading processes run this file. They share the batches' memory with the
training process, so nothing is copied between the two, and no interpreter's lock stands
between reading, hashing and training: threads of one process would wait for each other
between any two clips (this loop alone on 2 cores: some 43,000 clips/s with two threads, 60,000
with two processes). It imports next to nothing, so that a process starts in some 50 ms.

On its socket it takes messages, each a header and what belongs to it:

    OPEN, shard, 0       with a file descriptor, or
    OPEN, shard, n       n bytes: the path, opened anew for each read
    CLOSE, shard, 0
    READ, row, n         n bytes of PLACEs: where the samples of this row and the next ones are

and answers each READ with the number of rows that failed, the length of the ids, the numbers
of the failed rows, and the ids (see find_ids). It ends when the other side closes the socket.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import xxhash

HEADER = struct.Struct("<iqq")
PLACE = struct.Struct("<qqqQ")  # shard, start, number of bytes, checksum
ANSWER = struct.Struct("<qq")
OPEN, CLOSE, READ = range(3)

ID_START = b'{"id": "'
ID_BYTES = 64
"""Of the start of a sample's json: room for the ids of most datasets."""

Place = tuple[int, int, int, int]
ReadRow = Callable[[memoryview, int, int, int, int], bool]
"""(row, file descriptor, start, number of bytes, checksum) -> whether the row is whole."""


def read_row(row: memoryview, handle: int, start: int, num_bytes: int, checksum: int) -> bool:
    """Reads a sample into the front of a row; False: it is not all there, or not as packed."""
    view = row[:num_bytes]
    whole: bool = (
        os.preadv(handle, (view,), start) == num_bytes
        and xxhash.xxh3_64_intdigest(view) == checksum
    )
    return whole


def read_rows(
    rows: Sequence[memoryview],
    places: Sequence[Place],
    files: Mapping[int, int | bytes],
    read: ReadRow = read_row,
) -> list[int]:
    """Reads samples into rows; returns the numbers of the rows that failed.

    Args:
        rows: as many as there are places, or more.
        places: of the samples, one a row.
        files: each shard's file descriptor, or its path.
        read: how a sample becomes a row.
    """
    if read is read_row:
        # The same as below for the usual case, in a third of the interpreter's time.
        preadv, checksum = os.preadv, xxhash.xxh3_64_intdigest
        with contextlib.suppress(OSError, TypeError):  # TypeError: a path
            return [
                number
                for number, (row, (shard, start, num_bytes, expected)) in enumerate(
                    zip(rows, places, strict=False)
                )
                if preadv(files[shard], (view := row[:num_bytes],), start) != num_bytes  # type: ignore[arg-type]
                or checksum(view) != expected
            ]
    failed = []
    for number, (row, (shard, *place)) in enumerate(zip(rows, places, strict=False)):
        file = files[shard]
        try:
            handle = file if isinstance(file, int) else os.open(file, os.O_RDONLY)
            try:
                if not read(row, handle, *place):
                    failed.append(number)
            finally:
                if handle != file:
                    os.close(handle)
        except OSError:
            failed.append(number)
    return failed


def find_ids(rows: Iterable[memoryview], json_at: int) -> bytes:
    """Clip ids, joined by quotes, some ten times as fast as parsing the json of each.

    A sample's json starts with its id, and a JSON string ends at the first quote unless
    there is a backslash in it. Empty where such a look does not suffice for every sample.

    Args:
        rows: whole samples.
        json_at: where their json starts.
    """
    skip, found = len(ID_START), []
    for row in rows:
        text = bytes(row[json_at : json_at + ID_BYTES])
        end = text.find(b'"', skip)
        if end < 0 or not text.startswith(ID_START):
            return b""
        found.append(text[skip:end])
    joined = b'"'.join(found)
    return b"" if b"\\" in joined else joined


def serve(
    connection: socket.socket, memory: memoryview, row_bytes: int, json_at: int, read: ReadRow
) -> None:
    """Answers messages until the other side is gone; ``json_at`` 0: no ids are looked for."""
    files: dict[int, int | bytes] = {}
    rows = [memory[at : at + row_bytes] for at in range(0, len(memory), row_bytes)]
    while header := _receive_header(connection):
        (kind, number, num_bytes), descriptors = header
        content = _receive(connection, num_bytes)
        if kind == OPEN:
            files[number] = descriptors[0] if descriptors else content
        elif kind == CLOSE:
            file = files.pop(number)
            if isinstance(file, int):
                os.close(file)
        else:
            places = list(PLACE.iter_unpack(content))
            own = rows[number : number + len(places)]
            failed = read_rows(own, places, files, read)
            ids = find_ids(own, json_at) if json_at and not failed else b""
            head = ANSWER.pack(len(failed), len(ids))
            connection.sendall(head + struct.pack(f"<{len(failed)}q", *failed) + ids)


def _receive_header(
    connection: socket.socket,
) -> tuple[tuple[int, int, int], list[int]] | None:
    content, descriptors, _, _ = socket.recv_fds(connection, HEADER.size, 1)
    if not content:
        return None
    content += _receive(connection, HEADER.size - len(content))
    return HEADER.unpack(content), descriptors


def _receive(connection: socket.socket, num_bytes: int) -> bytes:
    content = bytearray()
    while len(content) < num_bytes:
        part = connection.recv(num_bytes - len(content))
        if not part:
            raise EOFError
        content += part
    return bytes(content)


def main(settings: dict[str, int | dict[str, object] | None]) -> None:
    """Serves on the socket and memory that the training process has handed down."""
    connection = socket.socket(fileno=settings["socket"])  # type: ignore[arg-type]
    memory = mmap.mmap(settings["memory"], settings["num_bytes"])  # type: ignore[arg-type]
    read: ReadRow = read_row
    if settings["foreign"]:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
        from mstag.data.foreign_rows import make_read_row

        read = make_read_row(**settings["foreign"])  # type: ignore[arg-type]
    try:
        whole = memoryview(memory)
        serve(connection, whole, settings["row_bytes"], settings["json_at"], read)  # type: ignore[arg-type]
    except (EOFError, ConnectionError):
        os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
