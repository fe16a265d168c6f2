"""Where shards are: a folder of this machine, or a remote address behind a cache.

Both give the same things: the manifest, the small files that it vouches for, and shards as
open files. Whoever reads does not know which of the two it is.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstag.data import remote, shards
from mstag.data.cache import ShardCache, default_folder
from mstag.data.shards import FileEntry, Manifest


class Store(ABC):
    """A finished set of shards.

    Attributes:
        name: the folder or address, as messages say it.
        manifest: read when the store is opened.
    """

    name: str
    manifest: Manifest

    @abstractmethod
    def open(self, entry: FileEntry) -> int:
        """A shard, whole, as a file descriptor that the caller closes; blocks while it comes.

        Raises:
            ValueError: it is missing, cut, or cannot be had; says why and what to do.
            OSError: the server refuses or does not answer.
        """

    @abstractmethod
    def path(self, entry: FileEntry) -> Path:
        """What messages call a file; on a folder, where it is."""

    @abstractmethod
    def small_file(self, entry: FileEntry) -> bytes:
        """A file other than a shard, checked against the manifest."""

    @abstractmethod
    def check(self, split: str) -> None:
        """Raises ValueError at once when a split cannot be whole; reads no shard."""

    def index(self, split: str) -> NDArray[np.void]:
        """A split's index, INDEX_DTYPE of shape (clips,)."""
        entry = self.manifest.splits[split]
        content = self.small_file(entry.index)
        return shards.parse_index(content, self.path(entry.index), entry.clips)

    def labels(self, entry: FileEntry) -> NDArray[Any]:
        """The labels of a split of foreign shards, uint8 (clips, n_tags)."""
        return shards.parse_npy(self.small_file(entry), self.path(entry))


class Folder(Store):
    """Shards in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name = str(folder)
        self.manifest = shards.read_manifest(folder)

    def open(self, entry: FileEntry) -> int:
        """Opens a shard after a look at its size."""
        path = self.path(entry)
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ValueError(
                f"{path}: the shard cannot be opened ({error.strerror}); {shards.RESTORE}"
            ) from None
        try:
            shards.check_size(path, os.fstat(handle).st_size, entry)
        except ValueError:
            os.close(handle)
            raise
        return handle

    def path(self, entry: FileEntry) -> Path:
        """Where a file is."""
        return self._folder / entry.name

    def small_file(self, entry: FileEntry) -> bytes:
        """Reads and checks a file."""
        return shards.read_vouched(self.path(entry), entry)

    def check(self, split: str) -> None:
        """Whether every shard of the split is there, in full size."""
        shards.check_shards(self._folder, split, self.manifest)


class Remote(Store):
    """Shards at an http(s) or s3 address; what is read is kept in a cache on this machine."""

    def __init__(self, address: str, cache: ShardCache, s3_endpoint: str = "") -> None:
        remote.check_scheme(address)
        self._address, self._cache, self._s3_endpoint = address, cache, s3_endpoint
        self.name = remote.shown(address)
        content = remote.read_bytes(self._url(shards.MANIFEST_NAME), s3_endpoint=s3_endpoint)
        self.manifest = shards.parse_manifest(content, f"{self.name}{shards.MANIFEST_NAME}")

    @property
    def max_bytes(self) -> int:
        """The bound of the cache."""
        return self._cache.max_bytes

    def open(self, entry: FileEntry) -> int:
        """Fetches a shard unless the cache has it."""
        return self._cache.fetch(
            self._url(entry.name), entry.sha256, entry.bytes, s3_endpoint=self._s3_endpoint
        )

    def path(self, entry: FileEntry) -> Path:
        """The name alone: the address has its own place in messages."""
        return Path(entry.name)

    def check(self, split: str) -> None:
        """Nothing shows before a shard is fetched; each is checked then."""

    def small_file(self, entry: FileEntry) -> bytes:
        """Fetches a file through the cache; its content was checked when it arrived."""
        handle = self.open(entry)
        with os.fdopen(handle, "rb") as file:
            return file.read()

    def _url(self, name: str) -> str:
        return remote.join(self._address, name)


def open_store(
    where: Path | str | Store,
    *,
    cache_folder: Path | str = "",
    cache_gb: float = 50.0,
    s3_endpoint: str = "",
) -> Store:
    """Opens shards, wherever they are.

    Args:
        where: a folder, or an http(s):// or s3:// address of one.
        cache_folder: for remote shards; empty: the user's cache folder.
        cache_gb: bound of that cache, in GB (10**9 bytes).
        s3_endpoint: address of an S3 service other than AWS; empty: the environment's.

    Raises:
        ValueError: no finished shards there, or an address of another kind.
        OSError: the server refuses or does not answer.
    """
    if isinstance(where, Store):
        return where
    if not remote.is_remote(str(where)):
        return Folder(Path(where))
    cache = ShardCache(Path(cache_folder or default_folder()), int(cache_gb * 1e9))
    return Remote(str(where), cache, s3_endpoint)
