"""Tars as other people write them, and what our loader makes of them, for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mstag.data.stream import ShardLoader
from shard_tools import index as indexing
from shard_tools.index import index

TAGS = ["rock", "jazz", "very slow"]
Sample = dict[str, Any]
"""Members by extension, and "__key__"."""


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def mel(number: int = 0, dtype: str = "f4") -> np.ndarray:
    return np.random.default_rng(number).normal(-5, 3, (4, 6)).astype(dtype)


def samples(num: int = 5, start: int = 0) -> list[Sample]:
    """Samples whose spectrogram and class follow from their number."""
    return [
        {"__key__": f"s{n:03d}", "npy": npy(mel(n)), "cls": str(n % 3).encode()}
        for n in range(start, start + num)
    ]


def write_tar(path: Path, content: Iterable[Sample], form: int = tarfile.GNU_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for sample in content:
            for extension, payload in sample.items():
                if extension != "__key__":
                    info = tarfile.TarInfo(f"{sample['__key__']}.{extension}")
                    info.size = len(payload)
                    tar.addfile(info, io.BytesIO(payload))


def tags_file(folder: Path, tags: list[str] = TAGS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tags.txt"
    path.write_text("\n".join(tags) + "\n", encoding="utf-8")
    return path


def run(folder: Path, tags: list[str] = TAGS, **how: Any) -> indexing.Report:
    return index(folder, tags_file(folder, tags), progress=False, **how)


def only_fault(folder: Path, **how: Any) -> str:
    before = {path.name for path in folder.iterdir()} | {"tags.txt"}
    report = run(folder, **how)
    assert report.manifest is None
    assert {path.name for path in folder.iterdir()} == before, "a fault, and nothing is written"
    assert len(report.faults) == 1, report.faults
    return report.faults[0]


def loaded(folder: Path, split: str = "train") -> tuple[np.ndarray, np.ndarray, list[str]]:
    """All that the loader gives of a split: spectrograms, labels, ids."""
    batches = list(ShardLoader(folder, split, batch_size=4, shuffle=False))
    return (
        np.concatenate([batch["mel"][:, 0].numpy() for batch in batches]),
        np.concatenate([batch["tags"].numpy() for batch in batches]),
        [clip for batch in batches for clip in batch["id"]],
    )


def assert_loads(folder: Path, split: str, mels: list[np.ndarray], labels: Any, ids: Any) -> None:
    found = loaded(folder, split)
    assert np.array_equal(found[0], np.stack(mels).astype(np.float16))
    assert np.array_equal(found[1], labels)
    assert found[2] == list(ids)


def one_hot(numbers: Iterable[int]) -> np.ndarray:
    return np.eye(3, dtype=np.uint8)[[n % 3 for n in numbers]]
