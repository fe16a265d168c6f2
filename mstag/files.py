"""Files that are whole or not there: write beside, flush to disk, rename."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What atomic_path calls its temporary files; mkstemp draws the eight characters.
_LEFTOVER = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp")


@contextmanager
def atomic_path(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Yields a temporary path in the same folder; on success it becomes ``path``, durably.

    Its permissions are ``mode``, or what the user's umask says. An exception inside removes the
    temporary file and leaves ``path`` as it was. An OSError that does not say which file it is
    about, as a full disk's, is given the name of this one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp's files are private; what a user finds should obey their umask.
        os.chmod(temporary, 0o666 & ~_umask() if mode is None else mode)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def remove_leftovers(folder: Path, names: Collection[str] | None = None) -> None:
    """Removes the temporary files that a killed :func:`atomic_path` left in a folder.

    Only for files that nobody else is writing: all of the folder, or those to be called
    ``names``. One that a dying process still holds open loses its name and does no harm.
    """
    for path in folder.glob(".*.tmp"):
        match = _LEFTOVER.fullmatch(path.name)
        if match and (names is None or match[1] in names):
            path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a whole UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's content, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    # The system only tells what it was when it is set, for the whole process: two threads that
    # asked at once would leave it at 0.
    with _UMASK_LOCK:
        mask = os.umask(0)
        os.umask(mask)
    return mask


_UMASK_LOCK = threading.Lock()


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; not every platform lets a folder be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
