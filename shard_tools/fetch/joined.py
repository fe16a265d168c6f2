"""A file that was cut into parts, read as one."""

from __future__ import annotations

import bisect
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO


class JoinedFile(io.RawIOBase):
    """Several files, read as one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open the files, in the order of their bytes."""
        self._files: list[BinaryIO] = [path.open("rb") for path in paths]
        sizes = [path.stat().st_size for path in paths]
        self._ends = list(itertools.accumulate(sizes))
        self._position = 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be sought in."""
        return True

    def tell(self) -> int:
        """Tell the position from the start of the first file."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move as io.RawIOBase describes it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._ends[-1]}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Read up to ``size`` bytes across the seams; fewer only at the end."""
        left = max(0, self._ends[-1] - self._position)
        left = left if size < 0 else min(size, left)
        blocks = []
        while left:
            number = bisect.bisect_right(self._ends, self._position)
            start = self._ends[number - 1] if number else 0
            self._files[number].seek(self._position - start)
            block = self._files[number].read(min(left, self._ends[number] - self._position))
            assert block, "a file shrank while it was read"
            blocks.append(block)
            self._position += len(block)
            left -= len(block)
        return b"".join(blocks)

    def close(self) -> None:
        """Close every file."""
        for file in self._files:
            file.close()
        super().close()
