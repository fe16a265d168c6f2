"""Tags -> the tags inside audio files: ID3 (mp3, wav, aiff), Vorbis comments, MP4.

Three fields are written. ``GENRE``, which players show and search, takes the tags' names where
it is empty or holds what mstag wrote before: what a person wrote stays. ``MSTAG`` takes names
and scores ("guitar=0.912; slow=0.801"), and ``MSTAG_MODEL`` the data set and the digest of the
model. Names of fields:

              ID3                 Vorbis comments     MP4
    GENRE     TCON                GENRE               (c)gen
    others    TXXX:MSTAG          MSTAG               ----:com.apple.iTunes:MSTAG

Values of GENRE stand one by one; in ID3v2.3, which has no lists, joined by "/". A file without
ID3 gets version 2.4; one that has keeps its version and its other frames as they are.

The tags are written into a copy beside the file, which is decoded and compared with the
original, sample by sample, before it takes its place. Permissions, owner and extended attributes
stay; the time of change moves, by which library programs notice. Nothing is written where
nothing changes.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mstag import files
from mstag.data.audio import open_audio
from mstag.tagging.results import Change, Tags

if TYPE_CHECKING:
    from mstag.models.bundle import Bundle

GENRE, SCORES, MODEL = "GENRE", "MSTAG", "MSTAG_MODEL"
FIELDS = (GENRE, SCORES, MODEL)


def require_mutagen() -> None:
    """Says early that a package is missing.

    Raises:
        ValueError: it is.
    """
    try:
        importlib.import_module("mutagen")
    except ImportError:
        raise ValueError(
            "--write-tags: the package mutagen is not installed; install it with "
            "`pip install -e '.[write-tags]'`"
        ) from None


def write_tags(
    path: Path, tags: Tags, *, model: str, overwrite: bool, dry_run: bool
) -> tuple[Change, ...]:
    """Writes tags into a file, and says what that changed.

    Args:
        path: an audio file; of a link, what it leads to is written.
        tags: with their scores, highest first.
        model: what made them.
        overwrite: genres go even if a person wrote them.
        dry_run: only says what would change.

    Raises:
        ValueError: this kind of file has no such tags, or cannot be written; it is as it was.
        OSError: it cannot be written; it is as it was.
    """
    path = path.resolve()
    wanted = {
        GENRE: tuple(tag for tag, _ in tags),
        SCORES: tuple(["; ".join(f"{tag}={score:.3f}" for tag, score in tags)] if tags else []),
        MODEL: (model,),
    }
    current = _open(path, path)
    before = {field: current.read(field) for field in FIELDS}
    changes = []
    for field in FIELDS:
        after = current.stored(field, wanted[field])
        if before[field] == after:
            continue
        is_a_persons = field == GENRE and before[GENRE] and not _is_ours(current, before)
        if is_a_persons and not after:
            continue
        kept = bool(is_a_persons) and not overwrite
        changes.append(Change(field, before[field], before[field] if kept else after, kept))
    if dry_run or all(change.kept for change in changes):
        return tuple(changes)
    if not os.access(path, os.W_OK):
        raise ValueError("its tags cannot be written: the file is read-only")
    mode = path.stat().st_mode & 0o7777
    with files.atomic_path(path, mode) as copy:
        shutil.copyfile(path, copy)
        _copy_owner(path, copy)
        edited = _open(path, copy)
        for change in changes:
            if not change.kept:
                edited.write(change.field, wanted[change.field])
        edited.save()
        written = _open(path, copy)
        if any(written.read(change.field) != change.after for change in changes):
            raise ValueError("its tags cannot be written: what was written reads otherwise")
        _require_same_sound(path, copy)
    return tuple(changes)


def _is_ours(current: _TagsInside, before: dict[str, tuple[str, ...]]) -> bool:
    """Whether the genres are those that the scores' field names: mstag wrote both."""
    *names, _ = re.split(r"=\d\.\d{3}(?:; |$)", "".join(before[SCORES]))
    return before[GENRE] == current.stored(GENRE, tuple(names))


class _TagsInside:
    """The tags inside a file: fields of texts."""

    def __init__(self, audio: Any) -> None:
        self.audio = audio

    def read(self, field: str) -> tuple[str, ...]:
        """The values of a field; none if it is not there."""
        raise NotImplementedError

    def write(self, field: str, values: tuple[str, ...]) -> None:
        """Sets a field, or removes it."""
        raise NotImplementedError

    def stored(self, field: str, values: tuple[str, ...]) -> tuple[str, ...]:
        """How values read when they have been written."""
        return values

    def save(self) -> None:
        """Writes the tags into the file."""
        self._save()

    def _save(self, **how: Any) -> None:
        from mutagen import MutagenError

        try:
            self.audio.save(**how)
        except MutagenError as error:
            raise ValueError(f"its tags cannot be written: {error}") from None


class _Vorbis(_TagsInside):
    def read(self, field: str) -> tuple[str, ...]:
        return tuple((self.audio.tags or {}).get(field, ()))

    def write(self, field: str, values: tuple[str, ...]) -> None:
        if self.audio.tags is None:
            self.audio.add_tags()
        self.audio.tags[field] = list(values)  # an empty list removes it


class _Mp4(_TagsInside):
    def read(self, field: str) -> tuple[str, ...]:
        values = (self.audio.tags or {}).get(self._key(field), ())
        return tuple(
            v if isinstance(v, str) else bytes(v).decode("utf-8", "replace") for v in values
        )

    def write(self, field: str, values: tuple[str, ...]) -> None:
        from mutagen.mp4 import AtomDataType, MP4FreeForm

        if self.audio.tags is None:
            self.audio.add_tags()
        key = self._key(field)
        self.audio.tags.pop(key, None)
        if values and field == GENRE:
            self.audio.tags[key] = list(values)
        elif values:
            made: Any = MP4FreeForm  # untyped
            utf8 = AtomDataType.UTF8
            self.audio.tags[key] = [made(value.encode(), dataformat=utf8) for value in values]

    def _key(self, field: str) -> str:
        return "\xa9gen" if field == GENRE else f"----:com.apple.iTunes:{field}"


class _Id3(_TagsInside):
    def read(self, field: str) -> tuple[str, ...]:
        frame = (self.audio.tags or {}).get(self._key(field))
        if frame is None:
            return ()
        return tuple(map(str, frame.genres if field == GENRE else frame.text))

    def write(self, field: str, values: tuple[str, ...]) -> None:
        from mutagen import id3

        if self.audio.tags is None:
            self.audio.add_tags()
        self.audio.tags.delall(self._key(field))
        if values:
            values = self.stored(field, values)
            kind = id3.TCON if field == GENRE else id3.TXXX
            about = {} if field == GENRE else {"desc": field}
            frame = kind(encoding=id3.Encoding.UTF8, text=list(values), **about)
            self.audio.tags.add(frame)

    def stored(self, field: str, values: tuple[str, ...]) -> tuple[str, ...]:
        # A number alone means one of ID3v1's genres.
        values = tuple(f"{v} " if v.isdecimal() else v for v in values)
        return ("/".join(values),) if self._is_old and len(values) > 1 else values

    def save(self) -> None:
        if self._is_old:
            # No separator: frames of others that hold several values stay what they are.
            self._save(v2_version=3, v23_sep=None)
        else:
            self._save(v2_version=4)

    @property
    def _is_old(self) -> bool:
        return self.audio.tags is not None and self.audio.tags.version < (2, 4, 0)

    def _key(self, field: str) -> str:
        return "TCON" if field == GENRE else f"TXXX:{field}"


def _open(path: Path, copy: Path) -> _TagsInside:
    """The tags of ``copy``, a copy of ``path``, whose name tells what kind it is."""
    import mutagen
    from mutagen import aiff, flac, mp3, mp4, oggflac, oggopus, oggspeex, oggvorbis, wave

    vorbis = (flac.FLAC, oggflac.OggFLAC, oggopus.OggOpus, oggspeex.OggSpeex, oggvorbis.OggVorbis)
    kinds: dict[type[Any], tuple[type[_TagsInside], dict[str, Any]]] = {
        **dict.fromkeys(vorbis, (_Vorbis, {})),
        mp4.MP4: (_Mp4, {}),
        # Untranslated, as a translation to 2.4 and back would change others' frames.
        **dict.fromkeys((mp3.MP3, aiff.AIFF, wave.WAVE), (_Id3, {"translate": False})),
    }
    try:
        with path.open("rb") as file:
            found = mutagen.File(file)
        kind = type(found)
        if kind not in kinds:
            raise ValueError(
                "its tags cannot be written: that is done for mp3, wav, aiff, flac, ogg, opus and "
                "m4a; --sidecar suits any kind"
            )
        ours, how = kinds[kind]
        return ours(kind(copy, **how))
    except mutagen.MutagenError as error:
        raise ValueError(f"its tags cannot be read: {error}") from None


def _copy_owner(path: Path, copy: Path) -> None:
    shutil.copystat(path, copy)
    os.chmod(copy, 0o600)
    os.utime(copy)
    status = path.stat()
    with suppress(OSError, AttributeError):
        os.chown(copy, status.st_uid, status.st_gid)


def _require_same_sound(path: Path, copy: Path) -> None:
    """Refuses a copy that does not sound the same, sample by sample."""
    with open_audio(path) as one, open_audio(copy) as other:
        for block, same in itertools.zip_longest(one.blocks(), other.blocks()):
            if block is None or same is None or not np.array_equal(block, same):
                raise ValueError(
                    "its tags cannot be written: the copy with tags sounds different, so the file "
                    "is left as it was (damaged?)"
                )


def model_name(bundle: Bundle) -> str:
    """What MSTAG_MODEL says: the data set that a model was trained on, and its digest."""
    return f"{bundle.dataset.get('name', 'unknown')} {bundle.digest[:12]}"
