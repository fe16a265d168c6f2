"""Shards of remote datasets on this machine: whole, checked, bounded, shared by processes.

``<folder>/<first 2 hex>/<sha256>`` is a whole file, whose name alone says what is in it. Beside
it stand, while it is fetched or after a kill, ``<sha256>.part`` and ``<sha256>.part.version``
(see remote.py) and ``<sha256>.lock``, which the one process that fetches it holds (flock) and
where it writes how many bytes it may fill. ``<folder>/cache.lock`` guards the accounts. The
kernel lets go of every lock of a process that dies. Nothing else in the folder is touched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mstag.data.remote import download

_OWN_FILE = re.compile(r"([0-9a-f]{64})(\.part|\.part\.version|\.lock)?")
_POLL_S = 0.2


def default_folder() -> Path:
    """Where shards are cached: $MSTAG_CACHE, $XDG_CACHE_HOME/mstag or ~/.cache/mstag, + shards."""
    if own := os.environ.get("MSTAG_CACHE"):
        return Path(own) / "shards"
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "mstag" / "shards"


@dataclass(frozen=True)
class _Entry:
    """What the cache holds of one object."""

    path: Path
    num_bytes: int  # on the disk; while it is fetched: what it may grow to
    is_fetched: bool  # somebody is fetching it now
    used_ns: int


class ShardCache:
    """A folder of shards under their sha256 that never holds more than so many bytes.

    Threads and processes of one machine may use one folder at once, through objects of their
    own or a shared one. The bound counts shards, whole and in part; the small files beside
    them (locks, versions) come on top.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Name the folder (made when it is needed) and the bound in bytes."""
        self.folder = folder
        self.max_bytes = max_bytes

    def fetch(
        self,
        url: str,
        sha256: str,
        num_bytes: int,
        *,
        s3_endpoint: str = "",
        wait_s: float = 60.0,
        num_tries: int = 5,
        backoff_s: float = 1.0,
    ) -> int:
        """Open a shard, from this machine when it is here, else from the network.

        The sha256 is checked once, when a shard arrives; later only its size is, since reading
        a shard again before each use would cost as much as using it, and every clip's own
        checksum is verified when it is read.

        Args:
            url: where the shard is (http, https, s3); asked only when it is not here.
            sha256: its checksum in hex, from the manifest: its name in the cache.
            num_bytes: its size, from the manifest.
            s3_endpoint: as in :func:`mstag.data.remote.download`, like the tries and the pause.
            wait_s: how long to wait for others to let go of shards when there is no room. For
                another process that is fetching the same shard it waits as long as that takes.
            num_tries: see :func:`mstag.data.remote.download`.
            backoff_s: see :func:`mstag.data.remote.download`.

        Returns:
            A descriptor of the whole file, for reading; close it with os.close. While it is
            open (also in forked children) the shard stays: a shared flock hangs on it.

        Raises:
            ValueError: no room, another content than the manifest says, or a cache folder that
                cannot be used.
            OSError: the server refuses, or nothing arrives.
        """
        sha256 = sha256.lower()
        if re.fullmatch(r"[0-9a-f]{64}", sha256) is None:
            raise ValueError(f"{sha256!r}: the manifest gives no sha256 of 64 hex digits")
        if num_bytes > self.max_bytes:
            raise ValueError(
                f"{self.folder}: train.cache_gb = {self.max_bytes / 1e9:g} is less than the one "
                f"shard of {num_bytes} bytes that is needed; raise train.cache_gb"
            )
        path = self.folder / sha256[:2] / sha256
        with _plain_errors(self.folder, num_bytes):
            handle = _open_whole(path, num_bytes)
            if handle is not None:
                return handle
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._fetching(path) as lock:
                handle = _open_whole(path, num_bytes)  # another was faster
                if handle is not None:
                    return handle
                path.unlink(missing_ok=True)  # cut, by a crash of the machine or by somebody
                self._reserve(path, lock, num_bytes, wait_s)
                try:
                    download(
                        url,
                        path,
                        num_bytes=num_bytes,
                        sha256=sha256,
                        progress=False,
                        num_tries=num_tries,
                        backoff_s=backoff_s,
                        s3_endpoint=s3_endpoint,
                    )
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT):
                        _remove(path)  # half a shard must not keep a disk full
                    raise
                handle = _open_whole(path, num_bytes)
                assert handle is not None, "nobody removes what is being fetched"
                return handle

    @contextmanager
    def _fetching(self, path: Path) -> Iterator[int]:
        """Be the only one on this machine that fetches an object; yields the lock's handle."""
        lock = path.with_name(f"{path.name}.lock")
        handle = _lock(lock)
        try:
            os.ftruncate(handle, 0)  # what a killed process had reserved
            yield handle
        finally:
            # Under the cache's lock, so that no account sees the end of a reservation without
            # the file that took its place.
            try:
                with self._accounts():
                    lock.unlink(missing_ok=True)
            finally:
                _unlock(handle)

    @contextmanager
    def _accounts(self) -> Iterator[None]:
        """Be the only one that counts, reserves and removes."""
        handle = _lock(self.folder / "cache.lock")
        try:
            yield
        finally:
            _unlock(handle)

    def _reserve(self, path: Path, lock: int, num_bytes: int, wait_s: float) -> None:
        """Make room for an object that is being fetched, and write down that it is taken."""
        deadline_s = time.monotonic() + wait_s
        while True:
            with self._accounts():
                entries = [entry for entry in self._entries() if entry.path != path]
                held_bytes = self._make_room(entries, self.max_bytes - num_bytes)
                if held_bytes <= self.max_bytes - num_bytes:
                    os.pwrite(lock, str(num_bytes).encode(), 0)
                    return
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise ValueError(
                    f"{self.folder}: no room for a shard of {num_bytes} bytes: train.cache_gb = "
                    f"{self.max_bytes / 1e9:g}, and {held_bytes} bytes are in use or being "
                    f"fetched (waited {wait_s:g} s); raise train.cache_gb or lower "
                    "train.shuffle_window"
                )
            time.sleep(min(_POLL_S, left_s))

    def _make_room(self, entries: list[_Entry], limit_bytes: int) -> int:
        """Remove what was used longest ago and nobody holds; returns the bytes that remain."""
        total_bytes = sum(entry.num_bytes for entry in entries)
        for entry in sorted(entries, key=lambda entry: entry.used_ns):
            if total_bytes <= limit_bytes:
                break
            if not entry.is_fetched and _evict(entry.path):
                total_bytes -= entry.num_bytes
        return total_bytes

    def _entries(self) -> list[_Entry]:
        """Everything of ours in the folder; call it under the cache's lock."""
        found = set()
        for folder in self.folder.iterdir():
            if re.fullmatch("[0-9a-f]{2}", folder.name) and folder.is_dir():
                for path in folder.iterdir():
                    match = _OWN_FILE.fullmatch(path.name)
                    if match and match[1].startswith(folder.name) and _is_plain(path):
                        found.add(folder / match[1])
        return [_entry(path) for path in found]


def _entry(path: Path) -> _Entry:
    """Look at an object's lock first, at its files then: without a fetcher they stand still."""
    lock = path.with_name(f"{path.name}.lock")
    reserved_bytes, is_fetched = 0, False
    with suppress(FileNotFoundError):
        handle = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.unlink()  # of a process that was killed
        except BlockingIOError:
            is_fetched = True
            reserved_bytes = int(os.pread(handle, 32, 0) or b"0")
        finally:
            _unlock(handle)
    num_bytes, used_ns = 0, 0
    for file in (path, path.with_name(f"{path.name}.part")):
        with suppress(FileNotFoundError):
            status = file.lstat()
            num_bytes += status.st_size
            used_ns = max(used_ns, status.st_mtime_ns)
    return _Entry(path, max(num_bytes, reserved_bytes), is_fetched, used_ns)


def _open_whole(path: Path, num_bytes: int) -> int | None:
    """Open a cached file and hold it; None when it is not there or not whole."""
    while True:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            # Between the two calls it may have been evicted: hold what the name stands for now.
            if _is_same(handle, path):
                if os.fstat(handle).st_size != num_bytes:
                    os.close(handle)
                    return None
                with suppress(OSError):  # a cache that can only be read has no order
                    now_ns = time.time_ns()  # finer than the kernel's own clock for files
                    os.utime(handle, ns=(now_ns, now_ns))
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _evict(path: Path) -> bool:
    """Remove an object that nobody holds; says whether it is gone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        _remove(path)
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
        return True
    except BlockingIOError:
        return False
    finally:
        _unlock(handle)


def _remove(path: Path) -> None:
    """Unlink an object and what stands beside it, but for its lock."""
    for suffix in ("", ".part", ".part.version"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _lock(path: Path) -> int:
    """Take a lock file for this one; waits. Threads too exclude each other: own open files."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_same(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last holder unlinked it meanwhile


def _unlock(handle: int) -> None:
    """Let go at once, also where a forked child has inherited the descriptor."""
    fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _is_plain(path: Path) -> bool:
    """Say whether this can be a file of ours: neither a folder nor a link."""
    return path.is_file() and not path.is_symlink()


def _is_same(handle: int, path: Path) -> bool:
    """Say whether a path still stands for an open file."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


@contextmanager
def _plain_errors(folder: Path, num_bytes: int) -> Iterator[None]:
    """Turn what the disk says into a line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise  # the network's; it has said all
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(
                f"{folder}: the disk is full, a shard of {num_bytes} bytes does not fit; free "
                "some space, lower train.cache_gb, or set MSTAG_CACHE to a folder elsewhere"
            ) from None
        raise ValueError(
            f"{folder}: the shard cache cannot be used ({error.strerror}: "
            f"{error.filename or folder}); set "
            "MSTAG_CACHE to a folder on a local disk that you may write to"
        ) from None
