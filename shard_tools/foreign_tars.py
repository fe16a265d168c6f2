"""Somebody else's tar, read once from beginning to end, in bounded memory.

Our own walk over the headers, because the standard library's tarfile keeps a record of every
member, takes a damaged header for the end of the tar and reads extended headers of any size.
Names are only names here: nothing is extracted, no link is followed.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_MAX_EXTENDED_BYTES = 1 << 20
"""Of an extended header (long names, PAX records): no name is that long."""
_CHUNK_BYTES = 1 << 20

_PAX_RECORD = re.compile(rb"(\d{1,10}) ([^=]+)=")
_MAGIC = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}


class TarDamageError(ValueError):
    """The tar cannot be read any further; says at which byte, and why."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar: ``num_bytes`` bytes from byte ``start``."""

    name: str
    start: int
    num_bytes: int


class TarReader:
    """Walks a tar, and hashes every byte of it on the way.

    Args:
        path: the tar.
        advance: told how many bytes were read, for a progress bar.
    """

    def __init__(self, path: Path, advance: Callable[[int], object] | None = None) -> None:
        self._file = path.open("rb")
        self._advance = advance
        self._hash = hashlib.sha256()
        self.position = 0
        """Bytes read so far; after the last member, the size of the tar."""

    def __enter__(self) -> TarReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        """Of the bytes read so far (hex)."""
        return self._hash.hexdigest()

    def members(self) -> Iterator[Member]:
        """The regular files of the tar, in order; what else is in it is passed over.

        Whoever wants a member's content calls :meth:`read` before the next one.

        Raises:
            TarDamageError: the tar is cut, damaged, compressed or holds sparse files.
        """
        name, size = "", -1  # from an extended header, for the member behind it
        while (block := self._header_block()) != _ZEROS:
            at = self.position - _BLOCK
            info = _parse_header(block, at)
            content_bytes = info.size if size < 0 else size
            match info.type:
                case tarfile.GNUTYPE_LONGNAME:
                    name = _text(self._extended(info.size, at).partition(b"\0")[0])
                    continue
                case tarfile.GNUTYPE_LONGLINK:
                    self._extended(info.size, at)
                    continue
                case tarfile.XHDTYPE | tarfile.SOLARIS_XHDTYPE | tarfile.XGLTYPE:
                    records = _pax_records(self._extended(info.size, at), at)
                    if info.type != tarfile.XGLTYPE:
                        name = records.get("path", name)
                        size = _pax_size(records, at)
                    elif records.keys() & {"path", "size"}:
                        raise TarDamageError(f"the header at byte {at} names all members alike")
                    continue
                case tarfile.GNUTYPE_SPARSE:
                    raise TarDamageError(_sparse(at))
            if info.type in tarfile.REGULAR_TYPES or info.type not in tarfile.SUPPORTED_TYPES:
                end = self.position + content_bytes
                if info.type in tarfile.REGULAR_TYPES:
                    yield Member(name or info.name, self.position, content_bytes)
                self._skip_to(end + -end % _BLOCK, at)
            name, size = "", -1
        self._finish()

    def read(self, num_bytes: int) -> bytes:
        """The next bytes.

        Raises:
            TarDamageError: the tar ends before them.
        """
        at = self.position
        content = self._take(num_bytes)
        if len(content) < num_bytes:
            raise TarDamageError(
                f"cut: {num_bytes} bytes from byte {at} on, the tar ends at byte {self.position}"
            )
        return content

    def read_rest(self) -> None:
        """Everything that is left, for size and sha256 of the whole file."""
        while self._take(_CHUNK_BYTES):
            pass

    def _take(self, num_bytes: int) -> bytes:
        content = self._file.read(num_bytes)
        self._hash.update(content)
        self.position += len(content)
        if self._advance:
            self._advance(len(content))
        return content

    def _header_block(self) -> bytes:
        at = self.position
        block = self._take(_BLOCK)
        if at == 0:
            for magic, (kind, command) in _MAGIC.items():
                if block.startswith(magic):
                    raise TarDamageError(
                        f"compressed with {kind}, and samples must be readable in place; unpack "
                        f"it with {command}"
                    )
        if len(block) < _BLOCK:
            raise TarDamageError(
                f"cut at byte {self.position}: a whole tar ends with two blocks of zeros"
            )
        return block

    def _extended(self, num_bytes: int, at: int) -> bytes:
        if num_bytes > _MAX_EXTENDED_BYTES:
            raise TarDamageError(
                f"damaged at byte {at}: an extended header of {num_bytes} bytes, at most "
                f"{_MAX_EXTENDED_BYTES} are read"
            )
        return self.read(num_bytes + -num_bytes % _BLOCK)[:num_bytes]

    def _skip_to(self, end: int, at: int) -> None:
        while self.position < end:
            if not self._take(min(_CHUNK_BYTES, end - self.position)):
                raise TarDamageError(
                    f"cut at byte {self.position}, within the member at byte {at}, which ends at "
                    f"byte {end}"
                )

    def _finish(self) -> None:
        """Behind the first block of zeros: a second one, and nothing but zeros after it."""
        at = self.position
        if self._take(_BLOCK) != _ZEROS:
            raise TarDamageError(
                f"cut or damaged at byte {at}: a whole tar ends with two blocks of zeros"
            )
        while chunk := self._take(_CHUNK_BYTES):
            if chunk.strip(b"\0"):
                raise TarDamageError(
                    f"something follows the tar's end at byte {at + _BLOCK}: two tars that were "
                    "joined (`cat`)? Readers stop at the end of the first; keep them apart"
                )


def split_name(name: str) -> tuple[str, str] | None:
    """A member's name -> its sample's key and its extension in lower case, as WebDataset does.

    The extension is what follows the first dot behind the last slash. None for names that
    belong to no sample: without a dot, or beginning with one.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot:
        return None
    return f"{folder}{slash}{stem}", extension.lower()


def shown(name: str) -> str:
    """A name from a tar, safe to print on a terminal."""
    return name if name.isprintable() else ascii(name)


def _parse_header(block: bytes, at: int) -> tarfile.TarInfo:
    try:
        # Undecodable bytes of names stay apart from each other and can be printed.
        info = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except tarfile.HeaderError as error:
        raise TarDamageError(f"damaged at byte {at}: no tar header there ({error})") from None
    if info.size < 0:
        raise TarDamageError(f"damaged at byte {at}: a member of {info.size} bytes")
    return info


def _pax_records(content: bytes, at: int) -> dict[str, str]:
    """Records ``<length> <keyword>=<value>\\n`` of a PAX header (POSIX.1-2001, pax)."""
    records, start = {}, 0
    while start < len(content):
        match = _PAX_RECORD.match(content, start)
        end = start + int(match[1]) if match else 0
        if not match or not match.end() < end <= len(content) or content[end - 1] != ord("\n"):
            raise TarDamageError(f"damaged at byte {at}: no records in its extended header")
        records[_text(match[2])] = _text(content[match.end() : end - 1])
        start = end
    if any(keyword.startswith("GNU.sparse.") for keyword in records):
        raise TarDamageError(_sparse(at))
    return records


def _pax_size(records: dict[str, str], at: int) -> int:
    text = records.get("size", "-1")
    if text != "-1" and not re.fullmatch(r"[0-9]{1,20}", text):
        raise TarDamageError(f"damaged at byte {at}: size {text!r} in its extended header")
    return int(text)


def _sparse(at: int) -> str:
    return (
        f"the member at byte {at} is a sparse file, whose content is not in one piece: write the "
        "tar without --sparse"
    )


def _text(content: bytes) -> str:
    return content.decode("utf-8", "backslashreplace")
