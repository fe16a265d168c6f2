"""Several files at once, from several mirrors, into one folder that may be left at any moment."""

from __future__ import annotations

import collections
import errno
import fcntl
import functools
import queue
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mstag.data.remote import (
    BusyError,
    check_scheme,
    download,
    join,
    num_bytes_arrived,
    num_bytes_at,
)
from mstag.data.together import Together

# Enough to fill a line that one connection does not; few enough for a university's server.
NUM_AT_ONCE = 4
BACKOFF_S = 1.0  # pause after a first failed try; doubled after each

_LAST_WORDS_S = 1.0  # for downloads that are told to stop; they are left to die after that


@dataclass(frozen=True)
class RemoteFile:
    """A file of a dataset."""

    name: str  # below a mirror's address, its folders divided by /
    path: Path
    sha256: str | None = None


class Mirrors:
    """Addresses that hold the same files: each file is tried at one after the other."""

    def __init__(self, addresses: Sequence[str]) -> None:
        """Check the addresses; nothing is asked yet.

        Args:
            addresses: http(s) or s3 addresses of folders, in the order to try them.

        Raises:
            ValueError: none, or one that is not opened.
        """
        assert addresses
        for address in addresses:
            check_scheme(address)
        self._addresses = list(addresses)
        self._lock = threading.Lock()

    def download(self, file: RemoteFile, together: Together) -> None:
        """Download a file from the first mirror that has it whole.

        Bytes of two mirrors are only joined where the checksum is known (see
        :func:`mstag.data.remote.download`).

        Raises:
            ValueError: every mirror holds something else.
            OSError: no mirror gives it, and why not; or the disk cannot be written.
        """
        faults: list[OSError | ValueError] = []
        addresses = self._in_order()
        for address in addresses:
            is_last = len(faults) == len(addresses) - 1
            try:
                download(
                    _below(address, file.name),
                    file.path,
                    sha256=file.sha256,
                    num_tries=5 if is_last else 3,
                    backoff_s=BACKOFF_S,
                    together=together,
                )
                return
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # the disk's
                faults.append(error)
                self._try_last(address)
        if len(faults) == 1:
            raise faults[0]
        kinds = [type(fault) for fault in faults]
        kind = next((kind for kind in (BusyError, OSError) if kind in kinds), ValueError)
        raise kind(f"{file.name}: no mirror gives it: {'; '.join(map(str, faults))}")

    def num_bytes(self, file: RemoteFile) -> int | None:
        """How long a file is, from the first mirror that says so."""
        for address in self._in_order():
            try:
                num_bytes = num_bytes_at(_below(address, file.name))
            except OSError:
                self._try_last(address)
            else:
                if num_bytes is not None:
                    return num_bytes
        return None

    def _in_order(self) -> list[str]:
        with self._lock:
            return list(self._addresses)

    def _try_last(self, address: str) -> None:
        """Spare the files that follow the wait for a mirror that failed."""
        with self._lock:
            self._addresses.remove(address)
            self._addresses.append(address)


def download_all(
    files: Sequence[RemoteFile],
    mirrors: Mirrors,
    *,
    what: str,
    num_bytes: int | None = None,
    progress: bool = True,
) -> None:
    """Download files, a few at once.

    Args:
        files: those that are there already are left alone.
        mirrors: where they are.
        what: said before the bar.
        num_bytes: of all files, when known.
        progress: show a bar when stderr is a terminal.

    Raises:
        ValueError, OSError: as :meth:`Mirrors.download`; the others are stopped then.
    """
    if all(file.path.is_file() and file.sha256 is None for file in files):
        return
    have = sum(num_bytes_arrived(file.path) for file in files)
    with closing(Together(what, num_bytes=num_bytes, have=have, progress=progress)) as together:
        run_all([functools.partial(mirrors.download, file, together) for file in files], together)


def sizes_of(files: Sequence[RemoteFile], mirrors: Mirrors) -> list[int] | None:
    """Ask how long the files are; None when the servers do not say.

    A file whose length alone is not told counts as the longest.
    """
    sizes: list[int | None] = [None] * len(files)
    silent = threading.Event()

    def ask(number: int) -> None:
        path = files[number].path
        if path.is_file():
            sizes[number] = path.stat().st_size
            return
        # One silent server must not cost its time-out for each of a hundred files.
        if not silent.is_set():
            sizes[number] = mirrors.num_bytes(files[number])
            if sizes[number] is None:
                silent.set()

    together = Together("sizes", progress=False)
    with closing(together):
        jobs = [functools.partial(ask, number) for number in range(len(files))]
        run_all(jobs, together)
    longest = max((size for size in sizes if size is not None), default=None)
    if longest is None:
        return None
    return [longest if size is None else size for size in sizes]


def run_all(jobs: Sequence[Callable[[], None]], together: Together) -> None:
    """Run jobs in a few threads; the first failure stops all.

    A job that fails because the server has too much to do is put back, and one thread fewer
    goes on: a server that serves fewer connections than there are threads is no failure.

    Raises:
        Exception: the first failure. KeyboardInterrupt too comes out at once, whatever the
            threads wait for.
    """
    waiting = collections.deque(jobs)
    lock = threading.Lock()
    ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    num_active = min(NUM_AT_ONCE, len(jobs))
    num_done = 0

    def take() -> tuple[Callable[[], None], bool] | None:
        nonlocal num_active
        with lock:
            together.say(f"{num_done} of {len(jobs)} files")
            if waiting:
                return waiting.popleft(), num_active > 1
            num_active -= 1
            return None

    def put_back(job: Callable[[], None]) -> bool:
        """Put a job back; say whether this thread is one too many."""
        nonlocal num_active
        with lock:
            waiting.appendleft(job)
            is_one_too_many = num_active > 1
            num_active -= is_one_too_many
            return is_one_too_many

    def work() -> None:
        nonlocal num_done
        try:
            while taken := take():
                job, has_company = taken
                together.check()
                try:
                    job()
                except BusyError:
                    if not has_company:
                        raise
                    if put_back(job):
                        break
                else:
                    with lock:
                        num_done += 1
        except BaseException as error:
            ends.put(error)
        else:
            ends.put(None)

    # Daemons: one that waits for a silent server must not keep an interrupted command alive.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(num_active)]
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            if error := ends.get():
                raise error
    except BaseException:
        together.stop()
        last_words = time.monotonic() + _LAST_WORDS_S
        for thread in filter(threading.Thread.is_alive, threads):
            thread.join(max(0.0, last_words - time.monotonic()))
        raise


@contextmanager
def at_work_in(data_dir: Path) -> Iterator[None]:
    """Make a folder, and fetch into it alone; SIGTERM ends the work as Ctrl-C does.

    Raises:
        ValueError: another fetch is at work in it.
        OSError: the disk is full, or cannot be written.
        KeyboardInterrupt: SIGTERM came (where this is the main thread).
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    with (data_dir / ".fetch.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"{data_dir}: another fetch is at work in this folder; wait for it or stop it"
            ) from None
        try:
            if is_main:
                signal.signal(signal.SIGTERM, signal.default_int_handler)
            yield
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(
                f"{data_dir}: the disk is full; what has arrived is kept: make room and run the "
                "command again"
            ) from None
        finally:
            if is_main:
                signal.signal(signal.SIGTERM, before)


def check_space(data_dir: Path, num_bytes: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        ValueError: fewer bytes than these are free.
    """
    num_free = shutil.disk_usage(data_dir).free
    if num_bytes > num_free:
        raise ValueError(
            f"{data_dir}: {num_bytes / 1e9:,.1f} GB are needed on its disk for what is still to "
            f"come and {num_free / 1e9:,.1f} GB are free, so nothing was begun; make room, or "
            "name a folder on another disk with --to (move what is there: it is not fetched again)"
        )


def _below(address: str, name: str) -> str:
    """The address of a file in a folder, or in a folder below it."""
    return functools.reduce(join, name.split("/"), address)
