"""One request to an http(s) or s3 server: a file from some byte on, or why it is not sent."""

from __future__ import annotations

import errno
import http.client
import os
import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from mstag.data.address import check_scheme

TIMEOUT_S = 30.0  # a server that sends nothing for this long is cut off

_PASSING_CODES = frozenset([408, 425, 429, 500, 502, 503, 504])
_BUSY_CODES = frozenset([429, 503])
_MAX_WAIT_S = 60  # a server that names a longer pause is asked after this one
_PASSING_S3_CODES = frozenset(["SlowDown", "RequestTimeout", "InternalError", "Throttling"])
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
# Those that Python has no class of their own for.
_NETWORK_ERRNOS = frozenset([errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN])
_clients: dict[tuple[str, float, int], Any] = {}
_clients_lock = threading.Lock()


class PassingError(Exception):
    """A try failed; another one may not. Message: why, without the address."""

    def __init__(self, reason: str, *, is_busy: bool = False, wait_s: int = 0) -> None:
        """Say why; whether it is the server's load; and the pause the server asks for."""
        super().__init__(reason)
        self.is_busy = is_busy
        self.wait_s = wait_s


class ReplacedError(Exception):
    """The server has another version by now, or none of this length: start over."""


@dataclass(frozen=True)
class Answer:
    """What a server sends from byte ``start`` of a file on."""

    start: int  # the byte that was asked for; 0: the whole file; -1: something else
    total_bytes: int | None  # of the whole file
    version: str
    read: Callable[[int], bytes]


# From which byte on, and of which version -> the answer.
Asker = Callable[[int, str], AbstractContextManager[Answer]]


def asker(url: str, s3_endpoint: str) -> Asker:
    """Choose how a file is asked for: the one place where http and s3 part ways.

    The function that is returned raises PassingError, ReplacedError, or an OSError without an
    errno when there is no use in asking again.

    Raises:
        ValueError: an address that is not opened, or boto3 is missing.
    """
    check_scheme(url)
    if not url.lower().startswith("s3:"):
        return lambda start, version: _ask_http(url, start, version)
    if s3_endpoint and not s3_endpoint.lower().startswith(("http://", "https://")):
        raise ValueError("s3_endpoint: an http or https address is needed")
    if s3_endpoint:
        check_scheme(s3_endpoint)
    client = s3_client(s3_endpoint)
    return lambda start, version: _ask_s3(client, url, start, version)


@contextmanager
def _ask_http(url: str, start: int, version: str) -> Iterator[Answer]:
    request = urllib.request.Request(url, headers={"User-Agent": "mstag"})  # noqa: S310 (checked)
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version:
            request.add_header("If-Range", version)
    try:
        with _opener().open(request, timeout=TIMEOUT_S) as response:
            length = response.headers.get("Content-Length", "")
            first, total = 0, int(length) if length.isdecimal() else None
            if response.status == 206:
                match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
                first = start if match and int(match[1]) == start else -1
                total = None if total is None else start + total
                total = int(match[2]) if match and match[2].isdecimal() else total
            elif response.status != 200:
                raise PassingError(f"the server answers {response.status} without a file")
            # A weak ETag (W/) promises too little to join bytes by.
            tag = response.headers.get("ETag", "")
            named = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
            yield Answer(first, total, named, response.read1)
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"{error.code} {_hide(error.reason)}"
        if error.code in (412, 416):
            raise ReplacedError(f"{reason} (asked from byte {start} on)") from None
        if error.code in _PASSING_CODES:
            pause = error.headers.get("Retry-After", "")
            wait_s = min(int(pause), _MAX_WAIT_S) if re.fullmatch("[0-9]{1,9}", pause) else 0
            is_busy = error.code in _BUSY_CODES
            raise PassingError(reason, is_busy=is_busy, wait_s=wait_s) from None
        hint = "; does it need a (newer) token in its address?" if error.code in (401, 403) else ""
        raise OSError(f"the server answers {reason}{hint}") from None
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
        ssl.SSLError,
    ) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, ssl.SSLCertVerificationError) or (
            isinstance(error, urllib.error.URLError) and isinstance(cause, str)
        ):
            raise OSError(_hide(cause)) from None  # not the network's, so for good
        raise PassingError(_hide(cause)) from None
    except OSError as error:
        if error.errno in _NETWORK_ERRNOS:
            raise PassingError(_hide(error)) from None
        raise  # the disk's: what is read here is written in here too


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


@contextmanager
def _ask_s3(client: Any, url: str, start: int, version: str) -> Iterator[Answer]:
    from botocore import UNSIGNED, exceptions

    bucket, _, key = url[len("s3://") :].partition("/")
    request = {"Bucket": bucket, "Key": key}
    if start:
        request["Range"] = f"bytes={start}-"
        if version:
            request["IfMatch"] = version
    try:
        answer = client.get_object(**request)
        with closing(answer["Body"]) as body:
            first, total = 0, answer["ContentLength"]
            if match := _CONTENT_RANGE.match(answer.get("ContentRange", "")):
                first = start if int(match[1]) == start else -1
                total = int(match[2]) if match[2].isdecimal() else start + total
            yield Answer(first, total, answer.get("ETag", ""), body.read)
    except exceptions.ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = error.response.get("Error", {}).get("Code", "")
        if status in (412, 416):
            raise ReplacedError(f"{status} {code} (asked from byte {start} on)") from None
        if status in _PASSING_CODES or code in _PASSING_S3_CODES:
            is_busy = status in _BUSY_CODES or code == "SlowDown"
            raise PassingError(f"{status} {code}", is_busy=is_busy) from None
        if code == "NoSuchBucket":
            raise OSError(f"{_hide(client.meta.endpoint_url)} holds no bucket {bucket}") from None
        if status == 404:
            raise OSError("the bucket holds no object of this name") from None
        if status in (401, 403) or code == "ExpiredToken":
            unsigned = client.meta.config.signature_version is UNSIGNED
            asked = (
                "asked without credentials, as none are set"
                if unsigned
                else "the credentials that are set do not fit"
            )
            raise OSError(
                f"access denied ({code}; {asked}); set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or AWS_PROFILE"
            ) from None
        raise OSError(_hide(error)) from None
    except exceptions.EndpointConnectionError:
        raise PassingError(f"{_hide(client.meta.endpoint_url)} is not reachable") from None
    except (
        exceptions.HTTPClientError,
        exceptions.ConnectionError,
        exceptions.IncompleteReadError,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise PassingError(_hide(error)) from None
    except exceptions.BotoCoreError as error:
        raise OSError(_hide(error)) from None


def s3_client(endpoint: str) -> Any:
    """One client per endpoint and process: slow to make, safe to share between threads."""
    key = (endpoint, TIMEOUT_S, os.getpid())
    with _clients_lock:
        if key not in _clients:
            _clients[key] = _new_s3_client(endpoint)
        return _clients[key]


def _new_s3_client(endpoint: str) -> Any:
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise ValueError("s3:// needs boto3; pip install 'mstag[s3]'") from None
    try:
        session = boto3.Session()
        config = Config(
            connect_timeout=TIMEOUT_S,
            read_timeout=TIMEOUT_S,
            retries={"total_max_attempts": 1, "mode": "standard"},
            # Ours is the sha256 of the manifest; older servers do not know theirs.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            signature_version=None if session.get_credentials() else UNSIGNED,
        )
        return session.client("s3", endpoint_url=endpoint or None, config=config)
    except (BotoCoreError, ValueError) as error:
        raise ValueError(f"s3: {_hide(error)}") from None


def _hide(reason: object) -> str:
    """A foreign message in one line; queries and passwords of addresses in it are left out."""
    text = re.sub(r"\?[^\s'\"]*", "?...", " ".join(str(reason).split()))
    text = re.sub(r"//[^/@\s]*@", "//", text)
    return text or type(reason).__name__
