"""http(s) -> a local file that is whole: resumed, retried, checked, then renamed into place."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path

from tqdm import tqdm

_BLOCK_BYTES = 1 << 20
_TIMEOUT_S = 30.0
_PASSING_HTTP_ERRORS = frozenset([408, 425, 429, 500, 502, 503, 504])


def download(
    url: str,
    path: Path,
    *,
    num_bytes: int | None = None,
    sha256: str | None = None,
    progress: bool = True,
    num_tries: int = 5,
    backoff_s: float = 1.0,
) -> None:
    """Download a file; afterwards it is there and whole, or an error says why not.

    What has arrived is kept in ``<path>.part``, also over Ctrl-C, and the next call goes on
    from there unless the file has changed on the server (If-Range). A ``path`` that exists
    and has the right size and checksum, as far as given, is left alone.

    Args:
        url: http or https.
        path: where the file shall be.
        num_bytes: its size, when known.
        sha256: its checksum in hex, when known.
        progress: show a bar when stderr is a terminal.
        num_tries: tries in a row that bring nothing before giving up.
        backoff_s: pause after the first of them, in seconds; doubled after each.

    Raises:
        ValueError: another scheme than http(s), or the content is not what was expected.
        OSError: the server refuses, or nothing arrives, or the disk cannot be written.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{url}: only http and https addresses can be downloaded")
    if path.is_file() and _fault(path, num_bytes, sha256) is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    failures = 0
    while True:
        size_before = _size(part)
        try:
            _receive(url, part, progress)
            break
        except urllib.error.HTTPError as error:
            if error.code == 416 and size_before:
                # Nothing lies behind what we have: whole, or of another file. Start over.
                part.unlink()
                size_before = 0
            elif error.code not in _PASSING_HTTP_ERRORS:
                raise OSError(f"{url}: the server answers {error.code} {error.reason}") from None
            reason = f"{error.code} {error.reason}"
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
            ssl.SSLError,
        ) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 1 if _size(part) > size_before else failures + 1
        if failures >= num_tries:
            raise OSError(
                f"{url}: {reason}, {failures} times in a row; what has arrived is kept, "
                "run the command again to go on"
            )
        time.sleep(backoff_s * 2 ** (failures - 1))
    fault = _fault(part, num_bytes, sha256)
    if fault:
        part.unlink()
        raise ValueError(f"{url}: {fault}, so the download was thrown away; try again later")
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def _receive(url: str, part: Path, progress: bool) -> None:
    """Append what is missing to ``part``; ConnectionError when the answer is cut short."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "mstag"})  # noqa: S310 (checked)
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", formatdate(part.stat().st_mtime, usegmt=True))
    with _opener().open(request, timeout=_TIMEOUT_S) as response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise ConnectionError("the server sent another part than the one asked for")
        start = start if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        label = urllib.parse.unquote(url.rsplit("/", 1)[-1])
        bar = tqdm(
            total=total,
            initial=start,
            desc=label,
            unit="B",
            unit_scale=True,
            disable=None if progress else True,
        )
        try:
            with bar, part.open("ab" if resumed else "wb") as file:
                while block := response.read(_BLOCK_BYTES):
                    file.write(block)
                    bar.update(len(block))
        finally:
            # The server's date on the file is what If-Range sends back when resuming.
            modified = response.headers.get("Last-Modified")
            if modified and part.exists():
                stamp = parsedate_to_datetime(modified).timestamp()
                os.utime(part, (stamp, stamp))
    if total is not None and _size(part) != total:
        raise ConnectionError(f"the connection ended after {_size(part)} of {total} bytes")


def _opener() -> urllib.request.OpenerDirector:
    """Build an opener that a redirect cannot lead to file: or ftp: addresses."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _fault(path: Path, num_bytes: int | None, sha256: str | None) -> str | None:
    """Say how a file differs from what is known about it."""
    if num_bytes is not None and _size(path) != num_bytes:
        return f"it has {_size(path)} bytes instead of {num_bytes}"
    if sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256.lower():
            return f"its sha256 is {found} instead of {sha256}"
    return None


def _size(path: Path) -> int:
    """Bytes of a file; 0 when it is not there."""
    return path.stat().st_size if path.exists() else 0
