"""Which files make up a dataset, where they are, and how they are unpacked."""

from __future__ import annotations

import bisect
import io
import itertools
import re
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from mstag.data.remote import download
from mstag.files import atomic_path
from shard_tools.catalogs import mtt

MTT_URL = "https://mirg.city.ac.uk/datasets/magnatagatune"
MTT_TABLES = ("annotations_final.csv", "clip_info_final.csv")
MTT_PARTS = ("mp3.zip.001", "mp3.zip.002", "mp3.zip.003")

_MTT_MEMBER = re.compile(r"(?:\./)?([0-9a-f]/[^/\\]+\.mp3)")


def fetch_mtt(data_dir: Path, base_url: str = MTT_URL, *, progress: bool = True) -> int:
    """Bring MagnaTagATune's tables and audio (2.9 GB) into a folder.

    The three parts of the archive are read as one file, so the folder never holds more than
    the parts and the clips; the parts are removed once every clip is out. What is there
    already is not fetched again, and an interrupted call goes on where it was.

    Args:
        data_dir: made when it is not there; holds the tables and the folders 0..f afterwards.
        base_url: where the files are.
        progress: show bars when stderr is a terminal.

    Returns:
        How many clips of the table are still missing because the archive lacks them.

    Raises:
        ValueError: a file is not what it should be.
        OSError: a download failed, or the disk cannot be written.
    """
    for name in MTT_TABLES:
        download(f"{base_url}/{name}", data_dir / name, progress=progress)
    try:
        paths = [clip.path for clip in mtt.read(data_dir).clips]
    except ValueError:
        # An error page instead of the table would otherwise stay for good.
        (data_dir / MTT_TABLES[0]).unlink()
        raise
    if all((data_dir / path).is_file() for path in paths):
        return 0
    parts = [data_dir / name for name in MTT_PARTS]
    for part in parts:
        download(f"{base_url}/{part.name}", part, progress=progress)
    _unpack(parts, data_dir, progress)
    for part in parts:
        part.unlink()
    return sum(not (data_dir / path).is_file() for path in paths)


def _unpack(parts: Sequence[Path], data_dir: Path, progress: bool) -> None:
    """Unpack the clips of a split zip file; zipfile checks each one's CRC."""
    try:
        with JoinedFile(parts) as joined, zipfile.ZipFile(joined) as archive:
            bar = tqdm(archive.infolist(), desc="unpacking", disable=None if progress else True)
            for member in bar:
                # Only names of exactly this form: nothing can land outside the folder.
                match = _MTT_MEMBER.fullmatch(member.filename)
                if match is None:
                    continue
                target = data_dir / match[1]
                if target.is_file() and target.stat().st_size == member.file_size:
                    continue
                with (
                    atomic_path(target) as temporary,
                    archive.open(member) as source,
                    temporary.open("wb") as file,
                ):
                    shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"{parts[0].parent}: {', '.join(part.name for part in parts)} together are no whole "
            f"zip file ({error}); remove them and fetch again"
        ) from None


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
