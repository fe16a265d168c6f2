"""What a folder holds, found out quickly: tables that could be catalogues, sizes, some headers."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import os
import random
import re
import statistics
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mstag.data.suffixes import FFMPEG_SUFFIXES
from shard_tools.catalogs import table as tables_of_ones_own
from shard_tools.catalogs.rows import Rows, path_fault
from shard_tools.catalogs.walk import Found

NUM_SAMPLED = 40
MAX_TABLES = 10
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
# Other names for the two columns that a table must have.
_PATH = (
    "file filename filepath audio audiofile audiopath trackpath mp3 mp3path wav wavpath location"
)
_TAGS = "tagname genre style label mood class classes category categories annotation instrument"
ALMOST = {"path": tuple(_PATH.split()), "tags": tuple(_TAGS.split())}


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the folder; ``rows`` is None when it is none of path and tags."""

    name: str
    note: str
    num_there: int = 0
    rows: Rows | None = None


@dataclass(slots=True)
class Heads:
    """What the headers of a few files say."""

    durations_s: list[float] = field(default_factory=list)
    rates_hz: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    unread: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    """Files of formats that libsndfile does not read: not looked into."""

    @property
    def num_tried(self) -> int:
        """How many files were opened."""
        return len(self.durations_s) + len(self.unread)

    @property
    def share_unread(self) -> float:
        """Share of them that are no audio, 0 to 1."""
        return len(self.unread) / self.num_tried if self.num_tried else 0.0

    def words(self) -> str:
        """For a reader."""
        if not self.num_tried:
            return "No header was looked into." + self._others()
        parts = [f"Headers of {self.num_tried} drawn files:"]
        if self.durations_s:
            low, high = min(self.durations_s), max(self.durations_s)
            median = statistics.median(self.durations_s)
            parts.append(f"{low:.1f} to {high:.1f} s (median {median:.1f} s),")
            parts.append("/".join(str(rate) for rate, _ in self.rates_hz.most_common()) + " Hz,")
            parts.append(
                "channels " + "/".join(str(n) for n, _ in self.channels.most_common()) + ";"
            )
        parts.append(f"{len(self.unread)} cannot be read")
        example = f", e.g. {self.unread[0]}." if self.unread else "."
        return " ".join(parts) + example + self._others()

    def _others(self) -> str:
        if not self.other:
            return ""
        return f" {len(self.other)} more need a decoder for {Path(self.other[0]).suffix}."


def tables(folder: Path, found: Found) -> list[Table]:
    """Find the tables in a folder and its sub-folders, the best first.

    Args:
        folder: where.
        found: what is in it.

    Returns:
        Tables of path and tags, those with most paths that exist first; then those whose
        columns are named almost so. Other files are left out.
    """
    names = [
        name
        for name in found.others
        if name.removesuffix(".gz").lower().endswith(TABLE_SUFFIXES) and not path_fault(name)
    ]
    names.sort(key=lambda name: (name.count("/"), name))
    there = set(found.audio) | set(found.others)
    looked = [_table(folder, name, there) for name in names[:MAX_TABLES]]
    good = [table for table in looked if table is not None]
    return sorted(good, key=lambda table: (table.rows is None, -table.num_there))


def _table(folder: Path, name: str, there: set[str]) -> Table | None:
    """What one table is good for; None: for nothing."""
    columns = _columns(folder / name)
    if not set(ALMOST).issubset(columns):
        hint = _almost(columns)
        return Table(name, f"{name} could be a table of clips: {hint}.") if hint else None
    try:
        rows = tables_of_ones_own.read(folder / name)
    except (ValueError, OSError) as error:
        return Table(name, f"{name} cannot be used ({error}).")
    num_there = sum(clip.path in there or (folder / clip.path).is_file() for clip in rows.clips)
    note = f"{name}: {len(rows.row_tags):,} rows, {num_there:,} of their paths are there."
    return Table(name, note, num_there, rows if num_there else None)


def _almost(columns: list[str]) -> str:
    """Which of a table's columns should be called otherwise; "" when none comes near."""
    changes = []
    for wanted, others in ALMOST.items():
        if wanted in columns:
            continue
        plain = {column: re.sub(r"[^a-z0-9]", "", column.lower()) for column in columns}
        near = [c for c, name in plain.items() if {name, name.removesuffix("s")} & set(others)]
        near += difflib.get_close_matches(wanted, columns, n=1, cutoff=0.75)
        if not near:
            return ""
        changes.append(f"{near[0]!r} to {wanted!r}")
    return f"rename its column {' and '.join(changes)}" if changes else ""


def _columns(table: Path) -> list[str]:
    """The names in a table's first line, in lower case; [] when it cannot be read."""
    opened = gzip.open if table.suffix == ".gz" else open
    try:
        with opened(table, "rb") as file:
            head = file.read(1 << 16)
        utf16 = head.startswith((b"\xff\xfe", b"\xfe\xff"))
        first = head.decode("utf-16" if utf16 else "utf-8-sig", "replace").split("\n")[0].strip()
        if Path(table.name.removesuffix(".gz")).suffix.lower() in (".jsonl", ".ndjson"):
            row = json.loads(first)
            return list(row) if isinstance(row, dict) else []
        delimiter = max("\t;,", key=first.count)
        names = next(csv.reader(io.StringIO(first), delimiter=delimiter), [])
        return [name.strip().lower() for name in names]
    except (OSError, ValueError, EOFError, RecursionError, zlib.error, csv.Error):
        return []


def describe_files(folder: Path, found: Found) -> str:
    """Number, formats and size of the audio files."""
    if not found.audio:
        return "No audio is there yet."
    formats = Counter(os.path.splitext(path)[1].lower()[1:] for path in found.audio)  # noqa: PTH122
    named = ", ".join(f"{num:,} {suffix}" for suffix, num in formats.most_common())
    size = sum(_size(folder / path) for path in found.audio)
    shown = f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
    return f"{len(found.audio):,} audio files ({named}), {shown}."


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (twice as fast for 100,000 files)
    except OSError:
        return 0


def sample(paths: list[str]) -> list[str]:
    """Draw some files, always the same ones."""
    ordered = sorted(set(paths))
    return random.Random(0).sample(ordered, min(NUM_SAMPLED, len(ordered)))  # noqa: S311


def heads(folder: Path, paths: list[str]) -> Heads:
    """Read the headers of some files; whatever is wrong with one is counted, not raised."""
    import soundfile

    found = Heads()
    for path in paths:
        if Path(path).suffix.lower() in FFMPEG_SUFFIXES:
            found.other.append(path)
            continue
        try:
            info = soundfile.info(str(folder / path))
        except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError):
            found.unread.append(path)
            continue
        if not (info.frames > 0 and info.samplerate > 0):
            found.unread.append(path)
            continue
        found.durations_s.append(info.frames / info.samplerate)
        found.rates_hz[info.samplerate] += 1
        found.channels[info.channels] += 1
    return found
