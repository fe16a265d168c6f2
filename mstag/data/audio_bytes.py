"""The bytes of what may be audio: opened without trusting the name or what is behind it."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

IN_MEMORY_BYTES = 32 * 2**20
"""Smaller files are read in one go, which a file server likes; larger ones as they are decoded."""
EMPTY = "the file is empty (0 bytes)"


class _Stream:
    """A stream that can claim to be longer than it is.

    Attributes:
        stretch: by how much; see :func:`mstag.data.mp3.states_its_length`.
        failure: why reading failed, if it did; from there on the stream gives nothing.
    """

    stretch = 1
    failure: OSError | None = None
    _at_end = False

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at_end = whence == os.SEEK_END and offset == 0
        try:
            position: int = super().seek(offset, whence)  # type: ignore[misc]
        except (ValueError, OverflowError, OSError):
            # Damaged files send decoders to impossible places. They notice that they did not
            # get there; an exception would not reach them through C.
            return self.tell()
        return position

    def tell(self) -> int:
        position: int = super().tell()  # type: ignore[misc]
        return position * self.stretch if self._at_end else position


class BytesStream(_Stream, io.BytesIO):
    """A small file, in memory."""

    def patched(self, offset: int, new: bytes) -> BytesStream:
        """The same with some bytes replaced."""
        content = self.getvalue()
        return BytesStream(content[:offset] + new + content[offset + len(new) :])


class FileStream(_Stream, io.BufferedReader):
    """A large file, read as it is needed."""

    _patch = (0, b"")

    def patched(self, offset: int, new: bytes) -> FileStream:
        """The same with some bytes replaced, in what is read."""
        self._patch = (offset, new)
        return self

    def read(self, size: int | None = -1) -> bytes:
        """See :class:`io.BufferedReader`."""
        try:
            return super().read(size)
        except OSError as error:
            self.failure = error
            raise

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """See :class:`io.BufferedReader`."""
        start = super().tell()
        try:
            length: int = super().readinto(buffer)
        except OSError as error:
            # No exception gets through C, where it would look like the end of the file.
            self.failure = error
            return 0
        offset, new = self._patch
        low, high = max(start, offset), min(start + length, offset + len(new))
        if low < high:
            buffer[low - start : high - start] = new[low - offset : high - offset]
        return length


Stream = BytesStream | FileStream


def open_regular(path: Path) -> tuple[int, int]:
    """Opens a file: its descriptor, which the caller closes, and its size in bytes.

    Raises:
        ValueError: missing, no permission, empty, or not a regular file (a folder, a pipe, a
            device), which is found out without waiting for it or reading from it.
    """
    try:
        _require_regular(path.stat().st_mode)
        # Not blocking: a pipe that takes the file's place here and now must not hang us.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            status = os.fstat(descriptor)
            _require_regular(status.st_mode)
            if not status.st_size:
                raise ValueError(EMPTY)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise unreadable(error) from None
    return descriptor, status.st_size


def stream_of(descriptor: int, num_bytes: int) -> Stream:
    """The stream of an open file, whose descriptor it takes over.

    Raises:
        ValueError: it cannot be read.
    """
    file = io.FileIO(descriptor)  # owns the descriptor from here on
    if num_bytes > IN_MEMORY_BYTES:
        return FileStream(file)
    with file:
        try:
            file.seek(0)
            return stream_of_bytes(file.readall())
        except OSError as error:
            raise unreadable(error) from None


def stream_of_bytes(content: bytes) -> Stream:
    """The stream of a file's content.

    Raises:
        ValueError: there is none.
    """
    if not content:
        raise ValueError(EMPTY)
    return BytesStream(content)


def unreadable(error: OSError) -> ValueError:
    """What to raise for a file that the system does not give us."""
    return ValueError(f"cannot be read: {(error.strerror or str(error)).lower()}")


def _require_regular(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    kind = kinds.get(stat.S_IFMT(mode), "something else")
    raise ValueError(f"cannot be read: it is {kind}, not a file")
