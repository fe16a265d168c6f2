"""What an adapter reads from a dataset, before tags are chosen and clips are split."""

from __future__ import annotations

import gzip
import posixpath
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from mstag.data.clips import Clip, Exclusion

# Lone surrogates: how Python holds bytes that are not UTF-8.
_STRAY = re.compile("[\ud800-\udfff]")
_UNUSABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")
_UPWARDS = re.compile(r"(?:^|[/\\])\.\.(?:[/\\]|$)")


@dataclass(slots=True)
class Rows:
    """A dataset as it stands.

    Attributes:
        tag_order: every tag once, in the order of the table.
        row_tags: the tags of every row, also of excluded ones: tags are counted over these.
        clips: the good rows, with the table's own tag names.
        excluded: the other rows.
        names_splits: the dataset itself says which split its clips belong to.
        given_by: what says so, in words.
        remark: what a reader must know of how these rows were chosen; "" when nothing.
    """

    tag_order: list[str] = field(default_factory=list)
    row_tags: list[frozenset[str]] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    excluded: list[Exclusion] = field(default_factory=list)
    names_splits: bool = False
    given_by: str = "as the dataset says"
    remark: str = ""


def read_bytes(path: Path) -> bytes:
    """Read a table, unpacked when it ends in .gz.

    Raises:
        ValueError: it is no whole gzip file.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: not a whole gzip file ({error}); fetch or write it again"
        ) from None


def path_fault(path: str) -> str | None:
    """Say why a table's path cannot name a file inside the data folder.

    Args:
        path: as it stands in the table.

    Returns:
        The reason, or None when it is fine. Whether the file exists is found when packing.
    """
    if not path:
        return "no path"
    if _UNUSABLE.search(path):
        return "path has control characters or is not UTF-8"
    if _ABSOLUTE.match(path):
        return "absolute path: paths are relative to the data folder"
    if _UPWARDS.search(path):
        return 'path leaves the data folder ("..")'
    if path.startswith(".") and posixpath.normpath(path) == ".":
        return "path names a folder"
    return None


def is_text(text: str) -> bool:
    """Say whether text can be written as UTF-8: bytes of other encodings cannot."""
    return _STRAY.search(text) is None


def printable(text: str) -> str:
    """Make text of any encoding fit for a report: stray bytes become U+FFFD."""
    return _STRAY.sub("\ufffd", text)
