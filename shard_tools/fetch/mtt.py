"""MagnaTagATune: two tables and a zip file in three parts."""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from mstag.data.remote import num_bytes_arrived
from mstag.files import atomic_path, remove_leftovers
from shard_tools.catalogs import mtt
from shard_tools.fetch.downloads import (
    Mirrors,
    RemoteFile,
    at_work_in,
    check_space,
    download_all,
    sizes_of,
)
from shard_tools.fetch.joined import JoinedFile

# No sizes and no checksums are published for any of these files, so the servers are asked for
# the sizes, and the CRC of every clip in the zip file is what speaks for the content.
MIRRORS = ("https://mirg.city.ac.uk/datasets/magnatagatune",)
TABLES = ("annotations_final.csv", "clip_info_final.csv")
PARTS = ("mp3.zip.001", "mp3.zip.002", "mp3.zip.003")

_MEMBER = re.compile(r"(?:\./)?([0-9a-f]/[^/\\]+\.mp3)")


def fetch_mtt(data_dir: Path, mirrors: Sequence[str] = (), *, progress: bool = True) -> int:
    """Bring MagnaTagATune's tables and audio (3.0 GB) into a folder.

    The three parts of the archive are read as one file, so the folder never holds more than
    the parts and the clips; the parts are removed once every clip is out. What is there
    already is not fetched again, and an interrupted call goes on where it was.

    Args:
        data_dir: made when it is not there; holds the tables and the folders 0..f afterwards.
        mirrors: addresses of folders with the files, tried in order; empty: the publisher's.
        progress: show bars when stderr is a terminal.

    Returns:
        How many clips of the table are still missing because the archive lacks them.

    Raises:
        ValueError: a file is not what it should be, or the disk has no room for all.
        OSError: a download failed, or the disk cannot be written.
    """
    servers = Mirrors(mirrors or MIRRORS)
    with at_work_in(data_dir):
        tables = [RemoteFile(name, data_dir / name) for name in TABLES]
        download_all(tables, servers, what="tables", progress=progress)
        try:
            paths = [clip.path for clip in mtt.read(data_dir).clips]
        except ValueError:
            # An error page instead of the table would otherwise stay for good.
            (data_dir / TABLES[0]).unlink()
            raise
        num_missing = _num_missing(data_dir, paths)
        parts = [RemoteFile(name, data_dir / name) for name in PARTS]
        if num_missing:
            sizes = sizes_of(parts, servers)
            if sizes:
                # mp3 hardly shrinks in a zip file: the clips take what the archive takes.
                clip_bytes = sum(sizes) * num_missing // len(paths)
                here = sum(num_bytes_arrived(part.path) for part in parts)
                check_space(data_dir, sum(sizes) - here + clip_bytes)
            num_bytes = sum(sizes) if sizes else None
            download_all(parts, servers, what="audio", num_bytes=num_bytes, progress=progress)
            _unpack([part.path for part in parts], data_dir, progress)
        for part in parts:
            part.path.unlink(missing_ok=True)
        return _num_missing(data_dir, paths)


def _num_missing(data_dir: Path, paths: Sequence[str]) -> int:
    return sum(not (data_dir / path).is_file() for path in paths)


def _unpack(parts: Sequence[Path], data_dir: Path, progress: bool) -> None:
    """Unpack the clips of a split zip file; zipfile checks each one's CRC."""
    for folder in "0123456789abcdef":
        remove_leftovers(data_dir / folder)
    try:
        with JoinedFile(parts) as joined, zipfile.ZipFile(joined) as archive:
            bar = tqdm(archive.infolist(), desc="unpacking", disable=None if progress else True)
            for member in bar:
                # Only names of exactly this form: nothing can land outside the folder.
                match = _MEMBER.fullmatch(member.filename)
                if match is None:
                    continue
                target = data_dir / match[1]
                if target.is_file() and target.stat().st_size == member.file_size:
                    continue
                with (
                    atomic_path(target) as temporary,
                    archive.open(member) as source,
                    temporary.open("wb") as file,
                ):
                    shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"{parts[0].parent}: {', '.join(part.name for part in parts)} together are no whole "
            f"zip file ({error}); remove them and fetch again"
        ) from None
