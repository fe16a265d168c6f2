"""Addresses of remote files: which are opened, and what messages may repeat of them."""

from __future__ import annotations

import re
import urllib.parse

SCHEMES = ("http", "https", "s3")

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


def is_remote(address: str) -> bool:
    """Say whether an address is SCHEME://..., whatever the scheme; a local path is not."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", address) is not None


def check_scheme(address: str) -> None:
    """Refuse what is not a plain http, https or s3 address.

    Raises:
        ValueError: another scheme, a malformed address, or one with a user name or password
            in it; the message repeats nothing of the address that could be secret.
    """
    scheme = address.split(":", 1)[0].lower() if ":" in address else ""
    if scheme not in SCHEMES:
        raise ValueError(
            f"{scheme if scheme.isalnum() else 'address'}: only http, https and s3 addresses are "
            "opened; pipe:, file:, ftp:, gs: and all others are not, and nothing reaches a shell"
        )
    place = re.split("/" if scheme == "s3" else "[/?#]", address[len(scheme) + 3 :])[0]
    if "@" in place:
        raise ValueError(
            f"{scheme}://...: a user name or password in an address ends up in logs, so it is "
            "refused; s3 takes credentials from the environment or ~/.aws, http takes none"
        )
    if scheme == "s3":
        good = _BUCKET.fullmatch(place) is not None and address.isprintable()
        form = "s3://BUCKET/PREFIX"
    else:
        good = _HOST.fullmatch(place) is not None and re.fullmatch("[!-~]+", address) is not None
        form = f"{scheme}://HOST/PATH, blanks and what is not ASCII percent-encoded"
    if not (good and is_remote(address)):
        raise ValueError(f"{scheme}://...: this is no whole address; write {form}")


def join(address: str, name: str) -> str:
    """Put a file's name behind a folder's address; a query string (a token) stays at the end.

    Raises:
        ValueError: the name is not plain; a manifest must not lead elsewhere.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise ValueError(f"{name!r}: a plain file name without slashes is needed")
    if address.lower().startswith("s3:"):
        return f"{address.removesuffix('/')}/{name}"
    folder, mark, query = address.split("#")[0].partition("?")
    return f"{folder.removesuffix('/')}/{urllib.parse.quote(name)}{mark}{query}"


def shown(url: str) -> str:
    """An address as messages may repeat it: without the query string, where tokens stand."""
    return url if url.lower().startswith("s3:") else re.split(r"[?#]", url)[0]
