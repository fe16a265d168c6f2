"""What packing a shard gave, kept beside the shards under ``.pack/``.

A pack that is run again keeps every shard whose receipt still holds; of one whose labels or
some of whose clips changed, it keeps the spectrograms of the others.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mstag.data import shards, tars
from shard_tools.output import Output

FOLDER = ".pack"

_NOTICED = ("cannot be read: no such file", "cannot be read: it is ")
"""When such a file becomes readable, its size or its date says so."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What packing one shard gave.

    Attributes:
        task: digest of what the shard depends on.
        entry: the file.
        rows: its index (INDEX_DTYPE), as bytes.
        positives: per tag.
        known: per tag, how many labels are known; None: all.
        heard: per clip id, the digest of what its spectrograms depend on.
        skipped: clips that cannot be used: id, path, reason.
        truncated: ids of clips that were used as far as they could be decoded.
    """

    task: str
    entry: shards.FileEntry
    rows: bytes
    positives: list[int]
    known: list[int] | None
    heard: dict[str, str]
    skipped: list[dict[str, str]]
    truncated: list[str]

    @property
    def index(self) -> NDArray[np.void]:
        """The rows as INDEX_DTYPE, with ``shard`` 0."""
        return np.frombuffer(self.rows, tars.INDEX_DTYPE)

    @property
    def unreadable(self) -> bool:
        """Whether a clip was skipped because its file could not be read: it may be tomorrow."""
        reasons = [row["reason"] for row in self.skipped]
        return any(r.startswith("cannot be read") and not r.startswith(_NOTICED) for r in reasons)


def write(output: Output, receipt: Receipt) -> None:
    """Keeps a receipt."""
    content = dataclasses.asdict(receipt)
    content["rows"] = base64.b85encode(receipt.rows).decode()
    text = json.dumps(content, ensure_ascii=False)
    output.write_text(place(receipt.entry.name), text)


def read(output: Output, name: str) -> Receipt | None:
    """The receipt of a shard; None when there is none that makes sense."""
    text = output.read_text(place(name))
    if text is None:
        return None
    try:
        content = json.loads(text)
        content["rows"] = base64.b85decode(content["rows"])
        receipt = Receipt(**{**content, "entry": shards.FileEntry(**content["entry"])})
        whole = receipt.entry.name == name and len(receipt.index) == receipt.entry.clips
    except (ValueError, KeyError, TypeError):
        return None
    return receipt if whole else None


def place(name: str) -> str:
    """Where the receipt of a shard lies in the output."""
    return f"{FOLDER}/{name}.json"
