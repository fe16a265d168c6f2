"""Shards into an S3 bucket, under the same rule as into a folder: whole or not there.

A file is made on this machine, uploaded in one request that carries its checksum, and then
forgotten here. A lease, an object that a living pack renews, keeps a second pack out.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path
from typing import Any

from mstag.data.answers import s3_client
from shard_tools.output import LOCKS, Output

LEASE_S = 90.0
"""A lease that was not renewed for so long belongs to nobody."""
RENEW_S = 20.0
_MAX_TRIES = 6


class BucketOutput(Output):
    """A place in a bucket, s3://BUCKET/PREFIX."""

    def __init__(self, address: str, endpoint: str = "") -> None:
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        if not bucket:
            raise ValueError(f"{address}: names no bucket; s3://BUCKET/PREFIX is needed")
        self.name = address
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._endpoint = endpoint
        self._scratch = Path(tempfile.gettempdir()) / f"mstag-{uuid.uuid4().hex}"

    @property
    def scratch(self) -> Path:  # type: ignore[override]
        """A folder of whichever machine this runs on."""
        self._scratch.mkdir(mode=0o700, exist_ok=True)
        return self._scratch

    def publish(self, name: str) -> None:
        """Uploads a file in one request, which the server checks against its sha256."""
        path = self.scratch / name
        self._put(name, path.read_bytes())
        path.unlink()

    def write_text(self, name: str, text: str) -> None:
        """Uploads a small file."""
        self._put(name, text.encode())

    def read_text(self, name: str) -> str | None:
        """Downloads a small file."""
        answer = self._ask("get_object", name)
        if answer is None:
            return None
        with answer["Body"] as body:
            text: str = body.read().decode(errors="replace")
        return text

    def size(self, name: str) -> int | None:
        """Asks the server."""
        answer = self._ask("head_object", name)
        return None if answer is None else int(answer["ContentLength"])

    def sha256(self, name: str) -> str | None:
        """As it was when the file was uploaded; what a bucket keeps, it keeps whole."""
        answer = self._ask("head_object", name)
        return None if answer is None else answer["Metadata"].get("sha256", "")

    def open(self, name: str) -> int | None:
        """None: fetching a shard to spare its decoding would cost more than it spares."""
        return None

    def remove(self, name: str) -> None:
        """Deletes the object."""
        self._ask("delete_object", name)

    def names(self, folder: str = "") -> list[str]:
        """Lists the objects directly under a prefix."""
        prefix = self._prefix + (f"{folder}/" if folder else "")
        found: list[str] = []
        request: dict[str, Any] = {"Prefix": prefix, "Delimiter": "/"}
        while True:
            answer = self._call("list_objects_v2", **request)
            found += [row["Key"][len(prefix) :] for row in answer.get("Contents", [])]
            if not answer.get("IsTruncated"):
                return sorted(found)
            request["ContinuationToken"] = answer["NextContinuationToken"]

    def clear(self, names: Collection[str] | None = None) -> None:
        """Nothing is half-written: an object appears when its upload is whole."""

    @contextmanager
    def lock(self, part: str) -> Iterator[None]:
        """Holds a lease and renews it."""
        own = f"{LOCKS}/lock-{part}" if part else f"{LOCKS}/lock"
        ours = json.dumps(
            {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}
        )
        self._acquire(own, ours)
        done = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(own, ours, done), daemon=True)
        renewing.start()
        try:
            # A whole pack bears nobody beside it; parts bear each other.
            rivals = [f"{LOCKS}/lock"] if part else self._leases()
            if any(self._is_alive(rival) for rival in rivals if rival != own):
                raise ValueError(self._refusal())
            yield
        finally:
            done.set()
            renewing.join()
            self.remove(own)
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _leases(self) -> list[str]:
        return [f"{LOCKS}/{name}" for name in self.names(LOCKS) if name.startswith("lock")]

    def _acquire(self, name: str, text: str) -> None:
        for _ in range(2):
            # An answer may get lost, and the second try then finds what the first one put there.
            if self._put(name, text.encode(), only_new=True) or self.read_text(name) == text:
                return
            if self._is_alive(name):
                break
            self.remove(name)
        raise ValueError(self._refusal())

    def _renew(self, name: str, text: str, done: threading.Event) -> None:
        while not done.wait(RENEW_S):
            with contextlib.suppress(OSError):  # the uploads say what is wrong
                self._put(name, text.encode())

    def _is_alive(self, name: str) -> bool:
        answer = self._ask("head_object", name)
        if answer is None:
            return False
        # By the server's own clock, which wrote the date too.
        now = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        age_s = _seconds_between(answer["LastModified"], now)
        return age_s < LEASE_S

    def _refusal(self) -> str:
        return (
            f"{self.name}: another pack is at work here, or was killed less than {LEASE_S:.0f} s "
            "ago; wait for it or stop it"
        )

    def _put(self, name: str, content: bytes, *, only_new: bool = False) -> bool:
        """Uploads; False when the object must be new and is not."""
        digest = hashlib.sha256(content)
        request: dict[str, Any] = {
            "Key": self._prefix + name,
            "Body": content,
            "ChecksumSHA256": base64.b64encode(digest.digest()).decode(),
            "Metadata": {"sha256": digest.hexdigest()},
        }
        if only_new:
            request["IfNoneMatch"] = "*"
        return self._call("put_object", **request) is not None

    def _ask(self, what: str, name: str) -> Any:
        """An answer about one object; None when it is not there."""
        return self._call(what, Key=self._prefix + name)

    def _call(self, what: str, **request: Any) -> Any:
        """One request, tried again while trouble may pass; None: not there, or there already."""
        from botocore import exceptions

        for number in range(_MAX_TRIES):
            try:
                return getattr(s3_client(self._endpoint), what)(Bucket=self._bucket, **request)
            except exceptions.ClientError as error:
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                code = error.response.get("Error", {}).get("Code", "")
                if code == "PreconditionFailed" or (status == 404 and code != "NoSuchBucket"):
                    return None
                reason = f"{code or status}: {error.response.get('Error', {}).get('Message', '')}"
                passing = status >= 500 or status in (409, 429)
            except exceptions.BotoCoreError as error:
                reason = " ".join(str(error).split())
                lasting = (exceptions.NoCredentialsError, exceptions.ParamValidationError)
                passing = not isinstance(error, lasting)
            if not passing or number == _MAX_TRIES - 1:
                break
            time.sleep(0.5 * 2**number)
        raise OSError(
            f"{self.name}: the bucket refuses ({reason}); check the address and the credentials, "
            "then run the same command again: what was uploaded is kept"
        )


def _seconds_between(earlier: Any, now: str | None) -> float:
    from datetime import datetime
    from email.utils import parsedate_to_datetime

    later = parsedate_to_datetime(now) if now else datetime.now(UTC)
    return float((later - earlier).total_seconds())
