"""A table of one's own (CSV, TSV or JSON Lines) -> rows.

Columns ``path`` (relative to the data folder) and ``tags`` (joined by ``|``; in JSON Lines
also a list) are required, ``id track artist album split start_s duration_s`` optional,
others ignored. A bad row is excluded with its reason and its line, never the whole table.
"""

from __future__ import annotations

import csv
import io
import json
import math
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

from mstag.data.clips import Clip, Exclusion
from shard_tools.catalogs.rows import Rows, is_text, path_fault, printable, read_bytes

REQUIRED = ("path", "tags")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}

# One row of a table: its line, its fields by column, what is wrong with its form ("": nothing).
Record = tuple[int, dict[str, str], str]


def read(table: Path, *, takes_splits: bool = True) -> Rows:
    """Read a table of clips.

    Args:
        table: .csv, .tsv or .jsonl, each also with .gz behind it. A CSV whose first line has
            semicolons and no comma is split at semicolons.
        takes_splits: a table with a column "split" must name a good one in every row.

    Returns:
        Its rows in table order. A row without an id is known by its path. Tags are ordered by
        their first appearance.

    Raises:
        ValueError: no such file, an unknown format, no rows, or a required column is missing.
    """
    if not table.is_file():
        raise ValueError(
            f"{table}: there is no such table; dataset.table is relative to the data folder, "
            "correct one of the two"
        )
    rows = Rows()
    tag_order: dict[str, None] = {}
    lines_of: dict[tuple[str, ...], int] = {}
    records = list(read_records(table))
    rows.names_splits = takes_splits and any(fields.get("split") for _, fields, _ in records)
    for line, fields, fault in records:
        if not all(map(is_text, fields.values())):
            # Its tags are no names that a vocabulary could hold: they are not counted.
            fault, fields = "not UTF-8", fields | {"tags": ""}
        tags = split_tags(fields.get("tags", ""))
        tag_order |= dict.fromkeys(tags)
        rows.row_tags.append(frozenset(tags))
        clip: Clip | None = None
        if not fault:
            try:
                clip = _clip(fields, frozenset(tags), rows.names_splits)
                _refuse_duplicate(clip, line, lines_of)
            except ValueError as error:
                fault, clip = str(error), None
        if clip is not None:
            rows.clips.append(clip)
        else:
            path = printable(fields.get("path", ""))
            name = printable(fields.get("id", "")) or path
            rows.excluded.append(Exclusion(name, path, f"line {line}: {fault}"))
    rows.tag_order = list(tag_order)
    if not records:
        raise ValueError(f"{table}: it has no rows, so there is nothing to pack")
    return rows


def _clip(fields: dict[str, str], tags: frozenset[str], split_required: bool) -> Clip:
    """One good row as a clip; ValueError says what is wrong with a bad one."""
    fault = path_fault(fields["path"])
    if fault:
        raise ValueError(fault)
    if not tags:
        raise ValueError("no tags")
    split = SPLIT_NAMES.get(fields.get("split", "").lower())
    if split_required and split is None:
        raise ValueError(f"split is {fields.get('split', '')!r}, not train, valid or test")
    path = posixpath.normpath(fields["path"])
    start_s = _seconds(fields, "start_s") or 0.0
    duration_s = _seconds(fields, "duration_s")
    if duration_s == 0:
        raise ValueError("duration_s is 0")
    return Clip(
        id=fields.get("id") or (f"{path}@{start_s:g}" if start_s else path),
        path=path,
        tags=tags,
        track=fields.get("track", ""),
        artist=fields.get("artist", ""),
        album=fields.get("album", ""),
        split=split,
        start_s=start_s,
        duration_s=duration_s,
    )


def _refuse_duplicate(clip: Clip, line: int, lines_of: dict[tuple[str, ...], int]) -> None:
    """Refuse a second row of the same id, or of the same stretch of the same file."""
    names = {"path": ("path", clip.path, str(clip.start_s)), "id": ("id", clip.id)}
    for column, name in names.items():
        if name in lines_of:
            raise ValueError(f"duplicate: same {column} as line {lines_of[name]}")
    lines_of |= dict.fromkeys(names.values(), line)


def _seconds(fields: dict[str, str], column: str) -> float | None:
    """A time in seconds; None when the field is empty."""
    text = fields.get(column, "")
    try:
        seconds = float(text) if text else None
    except ValueError:
        seconds = math.nan
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{column} is {text!r}, not a number of seconds")
    return seconds


def split_tags(text: str) -> list[str]:
    """Split a tags field; empty names fall away, white space counts as one space."""
    return [" ".join(tag.split()) for tag in text.split("|") if tag.strip()]


def read_records(table: Path, required: Sequence[str] = REQUIRED) -> Iterator[Record]:
    """Read a table's rows as text fields; bytes that are not UTF-8 survive as surrogates.

    Args:
        table: see :func:`read`.
        required: columns that it must have.

    Returns:
        (line, fields by column, what is wrong with the row's form).

    Raises:
        ValueError: an unknown format, or a required column is missing.
    """
    suffix = Path(table.stem if table.suffix == ".gz" else table.name).suffix.lower()
    content = read_bytes(table)
    # A spreadsheet's "Unicode text" is UTF-16 with a byte order mark.
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = content.decode(
        "utf-16" if utf16 else "utf-8-sig", "replace" if utf16 else "surrogateescape"
    )
    if suffix in (".jsonl", ".ndjson"):
        return _json_records(table, text, required)
    if suffix in (".csv", ".tsv"):
        header = text.partition("\n")[0]
        semicolons = ";" in header and "," not in header
        delimiter = "\t" if suffix == ".tsv" else ";" if semicolons else ","
        return _csv_records(table, text, delimiter, required)
    raise ValueError(f"{table}: dataset.table must end in .csv, .tsv or .jsonl (or that with .gz)")


def _csv_records(
    table: Path, text: str, delimiter: str, required: Sequence[str]
) -> Iterator[Record]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        _require(table, set(header), required)
        for values in reader:
            if any(value.strip() for value in values):
                fields = dict(zip(header, map(str.strip, values), strict=False))
                many = f"has {len(values)} fields, the first line has {len(header)}"
                whole = len(values) == len(header)
                yield reader.line_num, dict.fromkeys(header, "") | fields, "" if whole else many
    except csv.Error as error:
        raise ValueError(f"{table}: line {reader.line_num} cannot be read ({error})") from None


def _json_records(table: Path, text: str, required: Sequence[str]) -> Iterator[Record]:
    columns: set[str] = set()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            yield number, {}, "not a JSON object"
            continue
        columns |= row.keys()
        fields = {name: _text(value) for name, value in row.items()}
        yield number, dict.fromkeys(required, "") | fields, ""
    if columns:
        _require(table, columns, required)


def _text(value: object) -> str:
    """A JSON value as the text that a CSV would hold."""
    if isinstance(value, list):
        return "|".join(map(str, value))
    return "" if value is None else str(value).strip()


def _require(table: Path, columns: set[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in columns]
    if missing:
        raise ValueError(
            f"{table}: no column {' and no column '.join(map(repr, missing))} (it has: "
            f"{', '.join(sorted(columns)) or 'none'}); name the columns in its first line: "
            f"{' and '.join(required)} are required"
        )
