"""What a user names -> the files to tag: files, folders, patterns, a list on standard input."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mstag.data.suffixes import AUDIO_SUFFIXES
from mstag.tagging.results import Result

FOREIGN_SUFFIXES = frozenset([".ape", ".mpc", ".wv"])
"""Audio that nothing here decodes: said, rather than passed over in silence."""

# os.path and os.walk, not pathlib, which rewrites what the user gave ("./music"), and of which
# some functions raise where access is denied.
# ruff: noqa: PTH110, PTH112, PTH114, PTH118, PTH119, PTH207, PTH208


def find_files(paths: Iterable[str]) -> list[Result]:
    """What there is to tag: results without scores, those that cannot be with their error.

    Args:
        paths: files, which are taken whatever their names end in; folders, of which the audio
            files are taken, also from folders within (but not through links to folders, nor
            names with a leading dot); patterns such as ``music/**/*.mp3``, where there is no
            file of that very name.
    """
    found: list[Result] = []
    for path in paths:
        matches = [path]
        if glob.has_magic(path) and not os.path.lexists(path):
            matches = sorted(glob.glob(path, recursive=True))
            if not matches:
                found.append(Result(path, error="no file of this name, and none fits the pattern"))
        for match in matches:
            found += find_named([match])
    return found


def find_named(paths: Iterable[str]) -> list[Result]:
    """The same without patterns: names that come from a program are what they are."""
    found: list[Result] = []
    for path in paths:
        if os.path.isdir(path):
            inside = list(_in_folder(path))
            found += [dataclasses.replace(item, inner=_inner(item.path, path)) for item in inside]
            if not inside:
                endings = " ".join(sorted(AUDIO_SUFFIXES))
                found.append(Result(path, error=f"no audio file in this folder ({endings})"))
        elif os.path.lexists(path) and not os.path.exists(path):
            found.append(Result(path, error="a link to what is not there, or must not be seen"))
        elif os.path.exists(path):
            found.append(Result(path, inner=os.path.basename(path)))
        else:
            found.append(Result(path, error="no such file or folder"))
    return found


def listed(content: bytes) -> list[str]:
    """Paths of a list: one a line, or ended by NULs where there are any (``find -print0``)."""
    ends = b"\0" if b"\0" in content else b"\n"
    names = content.split(ends)
    if ends == b"\n":
        names = [name.removesuffix(b"\r") for name in names]
    return [os.fsdecode(name) for name in names if name]


def _in_folder(folder: str) -> Iterator[Result]:
    """Audio files below a folder, and what stands in the way of finding them, by name."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        yield Result(folder, error=f"cannot be read: {(error.strerror or str(error)).lower()}")
        return
    for name in names:
        path = os.path.join(folder, name)
        suffix = Path(name).suffix.lower()
        looks_like_audio = suffix in AUDIO_SUFFIXES | FOREIGN_SUFFIXES
        if name.startswith("."):
            continue
        if os.path.isdir(path):
            if os.path.islink(path):
                continue
            inside = list(_in_folder(path))
            yield from inside
            if looks_like_audio and not inside:
                yield Result(path, error="cannot be read: it is a folder, not a file")
        elif looks_like_audio:
            yield Result(path)


def _inner(path: str, folder: str) -> str:
    return os.path.relpath(path, folder)
