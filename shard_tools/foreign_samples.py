"""Somebody else's samples: which member is what, and whether it is what training needs.

A sample is the members of a tar that stand side by side and share the name up to the first
dot. Two of them matter, the spectrogram and the labels; a ``json`` may name the clip.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from mstag.data import foreign, tars
from mstag.data.shards import FileEntry, Foreign
from shard_tools.foreign_tars import TarDamageError, TarReader, shown, split_name

MEL_KINDS = ("npy", "npz")
LABEL_KINDS = ("cls", "json", "npy", "npz")
PICKLES = ("pyd", "pkl", "pickle", "pth", "pt")
"""Extensions of files that run code when they are loaded as their writers meant it."""
MAX_MEMBER_BYTES = foreign.MAX_ARRAY_BYTES
_SURROGATES = re.compile("[\ud800-\udfff]")
FLOAT16_MAX = 65504.0
FLOAT16_NOTHING = 2.0**-25
"""Up to here, values become 0 in float16 (half of its smallest number)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which members are the spectrogram and the labels: extensions, and keys in an .npz."""

    mel: str
    mel_key: str
    labels: str
    labels_key: str

    @property
    def foreign(self) -> Foreign:
        """What the loader needs to know of it."""
        return Foreign(self.mel, self.mel_key)


@dataclass(slots=True)
class Group:
    """The members of one sample, by extension.

    Content is there of those that were asked for, unless they are larger than
    MAX_MEMBER_BYTES.
    """

    key: str
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Where each begins in the tar, and its size in bytes."""
    content: dict[str, bytes] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def is_sample(self) -> bool:
        """Whether any member could be data, rather than a README that found its way in."""
        return any(kind(extension) in LABEL_KINDS + PICKLES for extension in self.places)


@dataclass(slots=True)
class Scan:
    """What a tar holds: index rows (``shard`` 0), labels, ids, and every fault."""

    entry: FileEntry
    rows: NDArray[np.void]
    labels: NDArray[np.uint8]
    ids: list[str]
    faults: list[str]
    others: list[str]
    """Groups of members that are no samples, passed over."""


def kind(extension: str) -> str:
    """What an extension ends in: it may have dots inside, as in ``mel.npy``."""
    return extension.rpartition(".")[2]


def read_tags(path: Path) -> list[str]:
    """Reads a list of tags, one a line, in vector order.

    Raises:
        ValueError: not such a file; an empty line; a tag twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"tags {path}: cannot be read ({error}); write one tag a line, in the order of the "
            "label vectors, as UTF-8"
        ) from None
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ValueError(f"tags {path}: no tags in it; write one a line")
    first: dict[str, int] = {}
    for number, tag in enumerate(lines, 1):
        if not tag:
            raise ValueError(
                f"tags {path}: line {number} is empty; the number of a line is the tag's place in "
                "the label vectors, so none may be missing"
            )
        if tag in first:
            raise ValueError(f"tags {path}: {tag!r} stands in line {first[tag]} and in {number}")
        first[tag] = number
    return lines


def groups(tar: TarReader, wanted: Callable[[str], bool]) -> Iterator[Group]:
    """The samples of a tar, one at a time, with the content of ``wanted`` extensions.

    Raises:
        TarDamageError: see :meth:`TarReader.members`.
    """
    group = Group("")
    for member in tar.members():
        parts = split_name(member.name)
        if parts is None:
            continue
        key, extension = parts
        if key != group.key:
            if group.places:
                yield group
            group = Group(key)
        if extension in group.places:
            group.faults.append(f"member {shown(extension)} is there twice")
            continue
        group.places[extension] = (member.start, member.num_bytes)
        if wanted(extension) and member.num_bytes <= MAX_MEMBER_BYTES:
            group.content[extension] = tar.read(member.num_bytes)
    if group.places:
        yield group


def read_labels(
    content: bytes, extension: str, key: str, tags: dict[str, int]
) -> NDArray[np.uint8]:
    """A sample's labels as a 0/1 vector.

    Args:
        content: the member: .cls (the number of one tag), .json (tag names, or an object whose
            "tags", else "labels", are names; or 0/1 vectors in their place), .npy or .npz (0/1).
        extension: its extension.
        key: name of the array in an .npz.
        tags: the place of every tag in the vector.

    Returns:
        uint8, (n_tags,).

    Raises:
        ValueError: no labels, or labels of other tags.
    """
    match kind(extension):
        case "cls":
            return _from_class(content, len(tags))
        case "json":
            return _from_names(_parse_json(content), tags)
        case _:
            return _from_vector(foreign.read_array(content, extension, key), len(tags))


def _from_class(content: bytes, num_tags: int) -> NDArray[np.uint8]:
    text = content.strip()
    if not re.fullmatch(rb"[0-9]{1,9}", text):
        raise ValueError(f"{text[:40]!r} is no whole number")
    if int(text) >= num_tags:
        raise ValueError(f"class {int(text)}, but there are {num_tags} tags, counted from 0")
    labels = np.zeros(num_tags, np.uint8)
    labels[int(text)] = 1
    return labels


def _from_names(value: Any, tags: dict[str, int]) -> NDArray[np.uint8]:
    if isinstance(value, dict):
        name = "tags" if "tags" in value else "labels"
        if name not in value:
            raise ValueError('an object without "tags" or "labels"')
        value = value[name]
    if not isinstance(value, list):
        raise ValueError(f"{type(value).__name__} instead of a list of tags")
    if value and all(isinstance(item, int | float) for item in value):
        return _from_vector(np.array([float(item) for item in value]), len(tags))
    labels = np.zeros(len(tags), np.uint8)
    for item in value:
        if not isinstance(item, str):
            raise ValueError(f"{str(item)[:40]!r} in the list of tags is no name")
        if item.strip() not in tags:
            raise ValueError(f"tag {item[:80]!r} is not in the list of tags")
        labels[tags[item.strip()]] = 1
    return labels


def _from_vector(array: NDArray[Any], num_tags: int) -> NDArray[np.uint8]:
    if array.shape != (num_tags,):
        raise ValueError(f"{array.dtype} of shape {array.shape} is no vector of {num_tags} labels")
    bad = np.flatnonzero((array != 0) & (array != 1))
    if len(bad):
        raise ValueError(f"label {bad[0]} is {array[bad[0]]}, neither 0 nor 1")
    return array.astype(np.uint8)


def _parse_json(content: bytes) -> Any:
    try:
        return json.loads(content, parse_int=float)  # a huge int would overflow later
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None


class SampleReader:
    """Turns groups of members into samples, or says what is wrong with them.

    Attributes:
        shape: (n_mels, num_frames) of every spectrogram; the first sound one says it.
        num_values, num_lost: of all spectrograms so far, and those that float16 makes 0.
    """

    def __init__(
        self, layout: Layout, tag_names: list[str], shape: tuple[int, ...] | None = None
    ) -> None:
        self.shape = shape
        self.num_values = self.num_lost = 0
        self._layout = layout
        self._tags = {tag: number for number, tag in enumerate(tag_names)}
        self._json = layout.labels if kind(layout.labels) == "json" else "json"

    def scan(self, path: Path, advance: Callable[[int], object] | None = None) -> Scan:
        """Reads a whole tar once.

        Args:
            path: the tar.
            advance: told how many bytes were read.

        Raises:
            OSError: it cannot be read at all.
        """
        rows: list[tars.Row] = []
        labels, keys = bytearray(), set[str]()
        ids, faults, others = list[str](), list[str](), list[str]()
        wanted = {self._layout.mel, self._layout.labels, self._json}.__contains__
        stem = path.name.removesuffix(".tar")
        with TarReader(path, advance) as tar:
            try:
                for group in groups(tar, wanted):
                    if not group.is_sample:
                        others.append(group.key)
                        continue
                    if group.key in keys:
                        group.faults.append(
                            "it was there before: the members of a sample must stand side by side, "
                            "and no two samples may share a name (`tar --sort=name` sees to it)"
                        )
                    keys.add(group.key)
                    row, label, clip_id = self._read(group)
                    where = f"{shown(path.name)}: sample {shown(group.key)}"
                    faults += [f"{where}: {fault}" for fault in group.faults]
                    if not group.faults:
                        rows.append(row)
                        labels += label.tobytes()
                        ids.append(clip_id or f"{stem}/{group.key}")
            except TarDamageError as error:
                faults.append(f"{shown(path.name)}: {error}")
                tar.read_rest()
            else:
                if not keys:
                    faults.append(f"{shown(path.name)}: holds no samples; move it elsewhere")
            entry = FileEntry(path.name, tar.position, tar.sha256, len(rows))
        flat = np.frombuffer(bytes(labels), np.uint8).reshape(len(rows), len(self._tags))
        return Scan(entry, np.array(rows, tars.INDEX_DTYPE), flat, ids, faults, others)

    def _read(self, group: Group) -> tuple[Any, Any, Any]:
        """Row, labels and id; what cannot be had adds to the group's faults."""
        found: list[Any] = [None, None, None]
        for number, read in enumerate((self._row, self._labels, self._id)):
            try:
                found[number] = read(group)
            except ValueError as error:
                group.faults.append(str(error))
        return found[0], found[1], found[2]

    def _row(self, group: Group) -> tars.Row:
        extension = self._layout.mel
        content = _content(group, extension, "spectrogram")
        try:
            mel = foreign.decode_mel(content, self._layout.foreign)
            if self.shape is not None and mel.shape != self.shape:
                raise ValueError(f"shape {mel.shape}, the others have {self.shape}")
            check_values(mel)
        except ValueError as error:
            raise ValueError(f"{place(extension, self._layout.mel_key)}: {error}") from None
        self.shape = mel.shape
        self.num_values += mel.size
        self.num_lost += int(np.sum((mel != 0) & (np.abs(mel) <= FLOAT16_NOTHING)))
        start, num_bytes = group.places[extension]
        checksum = xxhash.xxh3_64_intdigest(content)
        return (0, start, num_bytes, 0, num_bytes, 0, 0, 0, 0, 0, 0, checksum)

    def _labels(self, group: Group) -> NDArray[np.uint8]:
        extension, key = self._layout.labels, self._layout.labels_key
        content = _content(group, extension, "labels")
        try:
            return read_labels(content, extension, key, self._tags)
        except ValueError as error:
            raise ValueError(f"{place(extension, key)}: {error}") from None

    def _id(self, group: Group) -> str:
        """The id that a json gives, else an empty string."""
        if self._json not in group.places:
            return ""
        is_labels = self._json == self._layout.labels
        if is_labels and self._json not in group.content:
            return ""  # said once, as labels that are too large
        content = _content(group, self._json, "id")
        try:
            value = _parse_json(content)
        except ValueError as error:
            if is_labels:
                return ""  # said once, as labels that cannot be read
            raise ValueError(f"{self._json}: {error}") from None
        clip_id = value.get("id") if isinstance(value, dict) else None
        if not isinstance(clip_id, str):
            return ""
        if not clip_id.isascii() and _SURROGATES.search(clip_id):
            raise ValueError(f"{self._json}: its id {clip_id!a} is no text (half a surrogate pair)")
        return clip_id


def check_values(mel: NDArray[Any]) -> None:
    """Refuses values that the loader, which keeps spectrograms as float16, would change.

    Raises:
        ValueError: one is not finite or beyond +-65504; names it.
    """
    with np.errstate(invalid="ignore"):
        if mel.min() >= -FLOAT16_MAX and mel.max() <= FLOAT16_MAX:
            return
        bad = np.argwhere(~(np.abs(mel) <= FLOAT16_MAX))
    band, frame = bad[0].tolist()
    raise ValueError(
        f"{mel[band, frame]} at band {band}, frame {frame} ({len(bad)} such values): the loader "
        "keeps float16, finite and within +-65504; store logarithms, or scale it"
    )


def _content(group: Group, extension: str, what: str) -> bytes:
    if extension not in group.places:
        there = ", ".join(map(shown, group.places))
        raise ValueError(f"no {what}: it has no member {extension} (but {there})")
    if extension not in group.content:
        num_bytes = group.places[extension][1]
        raise ValueError(f"{extension}: {num_bytes} bytes, at most {MAX_MEMBER_BYTES} are read")
    return group.content[extension]


def place(extension: str, key: str) -> str:
    """How messages and options write where an array is."""
    return f"{shown(extension)}:{shown(key)}" if key else shown(extension)
