"""Where shards go: a folder of this machine, or a bucket.

A file is made whole in ``scratch`` and then published under its name, at once. On a folder
the two are the same place and a rename publishes; on a bucket an upload does.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from mstag import files
from mstag.data import remote

LOCKS = ".pack"


class Output(ABC):
    """A place for shards.

    Attributes:
        name: what messages call it.
        scratch: a folder of this machine in which files are made.
    """

    name: str
    scratch: Path

    @abstractmethod
    def publish(self, name: str) -> None:
        """Makes a file of ``scratch`` visible to others."""

    @abstractmethod
    def write_text(self, name: str, text: str) -> None:
        """Writes a small file at once."""

    @abstractmethod
    def read_text(self, name: str) -> str | None:
        """A small file's text; None when there is none."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """A file's size in bytes; None when there is none."""

    @abstractmethod
    def sha256(self, name: str) -> str | None:
        """A file's sha256; None when there is none."""

    @abstractmethod
    def open(self, name: str) -> int | None:
        """A file as a descriptor that the caller closes; None when it cannot be had cheaply."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""

    @abstractmethod
    def names(self, folder: str = "") -> list[str]:
        """Files directly in a folder of it, by name."""

    @abstractmethod
    def lock(self, part: str) -> AbstractContextManager[None]:
        """Keeps others out while a part (or, "": all) is packed."""

    @abstractmethod
    def clear(self, names: Collection[str] | None = None) -> None:
        """Removes what a killed pack left half-written: of these files, or (None) of all."""


class FolderOutput(Output):
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.scratch = folder.absolute()  # of a worker that stands elsewhere, too

    def publish(self, name: str) -> None:
        """Nothing is left to do: the file was renamed to its name when it was whole."""

    def write_text(self, name: str, text: str) -> None:
        """Writes beside, flushes, renames."""
        files.write_text(self.scratch / name, text)

    def read_text(self, name: str) -> str | None:
        """Reads a file."""
        try:
            return (self.scratch / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def size(self, name: str) -> int | None:
        """Asks the file system."""
        try:
            return (self.scratch / name).stat().st_size
        except OSError:
            return None

    def sha256(self, name: str) -> str | None:
        """Reads the file."""
        try:
            with (self.scratch / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None

    def open(self, name: str) -> int | None:
        """Opens the file."""
        try:
            return os.open(self.scratch / name, os.O_RDONLY)
        except OSError:
            return None

    def remove(self, name: str) -> None:
        """Unlinks the file."""
        (self.scratch / name).unlink(missing_ok=True)

    def names(self, folder: str = "") -> list[str]:
        """Lists the folder, sorted."""
        try:
            return sorted(path.name for path in (self.scratch / folder).iterdir())
        except FileNotFoundError:
            return []

    @contextmanager
    def lock(self, part: str) -> Iterator[None]:
        """Locks files under ``.pack/``; the system frees them when the process ends."""
        folder = self.scratch / LOCKS
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{self.name}: no folder that can be written ({error.strerror}); name another one "
                "with --out"
            ) from None
        with ExitStack() as held:
            whole = held.enter_context((folder / "lock").open("w"))
            self._hold(whole.fileno(), fcntl.LOCK_SH if part else fcntl.LOCK_EX)
            if part:
                own = held.enter_context((folder / f"lock-{part}").open("w"))
                self._hold(own.fileno(), fcntl.LOCK_EX)
            yield

    def clear(self, names: Collection[str] | None = None) -> None:
        """Removes temporary files."""
        files.remove_leftovers(self.scratch, names)
        receipts = None if names is None else {f"{name}.json" for name in names}
        files.remove_leftovers(self.scratch / LOCKS, receipts)

    def _hold(self, handle: int, how: int) -> None:
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{self.name}: another pack is at work in this folder; wait for it or stop it"
            ) from None
        except OSError as error:
            raise ValueError(
                f"{self.name}: its file system gives no locks ({error.strerror}), so nothing would "
                "keep two packs apart; mount it with them (Lustre: -o flock) or pack elsewhere"
            ) from None


def open_output(out: str, s3_endpoint: str = "") -> Output:
    """The output that a user names: a folder, or s3://BUCKET/PREFIX.

    Raises:
        ValueError: an address of another kind.
    """
    if not remote.is_remote(out):
        return FolderOutput(Path(out))
    if not out.startswith("s3://"):
        raise ValueError(
            f"--out {remote.shown(out)}: shards are written to a folder or to s3://BUCKET/PREFIX"
        )
    from shard_tools.bucket import BucketOutput

    return BucketOutput(out, s3_endpoint)
