"""http(s) and s3 -> a local file that is whole: resumed, retried, checked, then renamed."""

from __future__ import annotations

import hashlib
import io
import os
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from mstag.data.address import check_scheme, is_remote, join, shown
from mstag.data.answers import Asker, PassingError, ReplacedError, asker
from mstag.data.together import Together

__all__ = [
    "BusyError",
    "check_scheme",
    "download",
    "is_remote",
    "join",
    "num_bytes_arrived",
    "num_bytes_at",
    "read_bytes",
    "shown",
]

# Small: what has arrived of a block when the line breaks is lost, and asked for again.
_BLOCK_BYTES = 1 << 16


class BusyError(OSError):
    """The server had too much to do (429, 503) at every try; fewer downloads at once may help."""


def download(
    url: str,
    path: Path,
    *,
    num_bytes: int | None = None,
    sha256: str | None = None,
    progress: bool = True,
    num_tries: int = 5,
    backoff_s: float = 1.0,
    s3_endpoint: str = "",
    together: Together | None = None,
) -> None:
    """Download a file; afterwards it is there and whole, or an error says why not.

    What has arrived is kept in ``<path>.part``, also when the process is killed, and the next
    call goes on from there unless the file has changed on the server: which version the bytes
    are of (its ETag, else its date) stands in ``<path>.part.version``. Where the server names
    no version, or bytes came from another address (a mirror), only a known ``sha256`` lets
    bytes of two answers be joined. A ``path`` that
    exists and has the right size and checksum, as far as given, is left alone. Content that
    turns out wrong is thrown away and fetched once more from the start.

    Args:
        url: http, https, or s3://BUCKET/KEY (needs boto3; credentials come from its usual
            places, and without any the bucket is asked as the public may).
        path: where the file shall be; one call at a time may work on it.
        num_bytes: its size, when known; never are more than these written.
        sha256: its checksum in hex, when known.
        progress: show a bar when stderr is a terminal.
        num_tries: tries in a row that bring nothing new before giving up.
        backoff_s: pause after the first of them, in seconds; doubled after each.
        s3_endpoint: http(s) address of an S3 server; empty: boto3's own choice.
        together: of several downloads at once: takes the place of the bar, and may stop this.

    Raises:
        ValueError: an address that is not opened, or the content is not what was expected.
        OSError: the server refuses, or nothing arrives, or the disk cannot be written;
            BusyError when the server says it has too much to do.
        StoppedError: ``together`` was stopped; what has arrived is kept.
    """
    ask = asker(url, s3_endpoint)
    if path.is_file() and _fault(path, num_bytes, sha256) is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    note = path.with_name(f"{path.name}.part.version")
    limits = _Limits(num_bytes, num_bytes, num_tries, backoff_s)
    for is_last in (False, True):
        try:
            with part.open("a+b") as file:
                arrived = _Arrived(
                    file, shown(url), note, checked=sha256 is not None, together=together
                )
                _gather(ask, arrived, limits, progress=progress and together is None)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            if isinstance(error, ValueError) or not part.stat().st_size:
                part.unlink()
                note.unlink(missing_ok=True)
            raise
        fault = _fault(part, num_bytes, sha256)
        note.unlink(missing_ok=True)
        if fault is None:
            os.replace(part, path)
            return
        if together:
            together.moved(-part.stat().st_size)
        part.unlink()
        if is_last:
            raise ValueError(
                f"{shown(url)}: {fault}, twice, so the download was thrown away; the server "
                "holds another file than the one that is wanted, or damages it"
            )


def read_bytes(
    url: str,
    *,
    max_bytes: int = 64 << 20,
    num_tries: int = 5,
    backoff_s: float = 1.0,
    s3_endpoint: str = "",
) -> bytes:
    """Read a small file (a manifest) into memory, with the patience of :func:`download`.

    Raises:
        ValueError: an address that is not opened, or the file has more than ``max_bytes``.
        OSError: the server refuses, or nothing arrives.
    """
    content = io.BytesIO()
    limits = _Limits(None, max_bytes, num_tries, backoff_s)
    _gather(asker(url, s3_endpoint), _Arrived(content, shown(url)), limits, progress=False)
    return content.getvalue()


def num_bytes_at(url: str, *, s3_endpoint: str = "") -> int | None:
    """Ask how long a file is, once; its bytes are not read.

    Raises:
        ValueError: an address that is not opened.
        OSError: the server refuses, or does not answer.
    """
    try:
        with asker(url, s3_endpoint)(0, "") as answer:
            return answer.total_bytes
    except (PassingError, ReplacedError, OSError) as error:
        raise OSError(f"{shown(url)}: {error}") from None


def num_bytes_arrived(path: Path) -> int:
    """How much of a download is on the disk: all of it, or what was kept of it."""
    return next((place.stat().st_size for place in (path, _part(path)) if place.is_file()), 0)


def _part(path: Path) -> Path:
    """Where a file grows."""
    return path.with_name(f"{path.name}.part")


@dataclass(frozen=True)
class _Limits:
    """What is expected of a file and of its server."""

    num_bytes: int | None
    max_bytes: int | None
    num_tries: int
    backoff_s: float

    def check(self, found: str, num_bytes: int | None) -> None:
        """Refuse a file that is too long, as soon as that is known."""
        if num_bytes is None or self.max_bytes is None or num_bytes <= self.max_bytes:
            return
        if self.num_bytes is None:
            raise ValueError(f"{found} {num_bytes} bytes; no more than {self.max_bytes} are read")
        raise ValueError(
            f"{found} {num_bytes} bytes instead of {self.num_bytes}, so the download was "
            "thrown away; the server holds another file than the one that is wanted"
        )


class _Arrived:
    """What has arrived of a file, and which version of it that is."""

    def __init__(
        self,
        file: BinaryIO,
        url: str,
        note: Path | None = None,
        *,
        checked: bool = False,
        together: Together | None = None,
    ) -> None:
        self.url = url
        self.together = together
        self.num_bytes = file.seek(0, io.SEEK_END)
        self._file = file
        self._note = note
        known = _lines(note)
        self.version = known[1] if len(known) == 3 and known[0] == url else ""
        self._checked = checked

    def usable(self) -> int:
        """How many bytes an answer may be joined to."""
        return self.num_bytes if self.version or self._checked else 0

    def start_over(self, version: str) -> None:
        """Forget the bytes first, then note the version: a kill in between mixes nothing."""
        if self.num_bytes:
            self._file.seek(0)
            self._file.truncate()
            if self.together:
                self.together.moved(-self.num_bytes)
        self.num_bytes, self.version = 0, version
        if self._note:
            self._note.write_text(f"{self.url}\n{version}\n", encoding="utf-8")

    def mix(self) -> None:
        """Forget which version it is before bytes of unknown kinship follow: checked only."""
        assert self._checked
        if self._note:
            self._note.unlink(missing_ok=True)

    def append(self, block: bytes) -> None:
        if self.together:
            self.together.check()
        self._file.write(block)
        self._file.flush()  # so that a kill loses nothing of a slow download either
        self.num_bytes += len(block)
        if self.together:
            self.together.moved(len(block))


def _gather(ask: Asker, arrived: _Arrived, limits: _Limits, *, progress: bool) -> None:
    """Ask until everything has arrived, or until it is hopeless."""
    if limits.num_bytes is not None and arrived.num_bytes > limits.num_bytes:
        arrived.start_over("")
    # Progress is what was never reached before: a server that always starts anew and always
    # breaks off must not keep us for ever.
    failures, furthest = 0, arrived.num_bytes
    pause = arrived.together.wait if arrived.together else time.sleep
    while limits.num_bytes is None or arrived.num_bytes != limits.num_bytes:
        try:
            _try_once(ask, arrived, limits, progress)
            return
        except ReplacedError as error:
            reason, wait_s, failure = str(error), 0, OSError
            arrived.start_over("")
        except PassingError as error:
            reason, wait_s = str(error), error.wait_s
            failure = BusyError if error.is_busy else OSError
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's, not the server's
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(f"{arrived.url}: {error}") from None
        failures = 1 if arrived.num_bytes > furthest else failures + 1
        furthest = max(furthest, arrived.num_bytes)
        if failures >= limits.num_tries:
            raise failure(
                f"{arrived.url}: {reason}, {failures} times in a row; what has arrived of a "
                "download is kept, run the command again to go on"
            )
        pause(max(wait_s, limits.backoff_s * 2 ** (failures - 1)))


def _try_once(ask: Asker, arrived: _Arrived, limits: _Limits, progress: bool) -> None:
    """Append what is missing."""
    start = arrived.usable()
    with ask(start, arrived.version) as answer:
        if arrived.together:
            arrived.together.check()
        if answer.start == 0:
            arrived.start_over(answer.version)
        elif answer.start != start:
            raise ReplacedError("the server sent another part than the one asked for")
        elif arrived.version and answer.version and arrived.version != answer.version:
            raise ReplacedError("the file on the server was replaced")
        elif not arrived.version:
            arrived.mix()
        total = answer.total_bytes
        limits.check("it has", total)
        bar = tqdm(
            total=total,
            initial=arrived.num_bytes,
            desc=urllib.parse.unquote(arrived.url.rsplit("/", 1)[-1]),
            unit="B",
            unit_scale=True,
            disable=None if progress else True,
        )
        with bar:
            while block := answer.read(_BLOCK_BYTES):
                limits.check("it has at least", arrived.num_bytes + len(block))
                arrived.append(block)
                bar.update(len(block))
    wanted = total if limits.num_bytes is None else limits.num_bytes
    if wanted is not None and arrived.num_bytes != wanted:
        raise PassingError(f"the connection ended after {arrived.num_bytes} of {wanted} bytes")


def _lines(path: Path | None) -> list[str]:
    """The lines of a small file that may be missing or torn."""
    if path is None or not path.is_file():
        return []
    return path.read_text(encoding="utf-8", errors="replace").split("\n")


def _fault(path: Path, num_bytes: int | None, sha256: str | None) -> str | None:
    """Say how a file differs from what is known about it."""
    found_bytes = path.stat().st_size
    if num_bytes is not None and found_bytes != num_bytes:
        return f"it has {found_bytes} bytes instead of {num_bytes}"
    if sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256.lower():
            return f"its sha256 is {found} instead of {sha256}"
    return None
