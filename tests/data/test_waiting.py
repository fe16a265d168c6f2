"""How long a consumer is kept waiting, and memory that is let go of only when it is at rest."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from make_shards import make_shards

from mstag.data import buffers, pipeline, rows
from mstag.data.buffers import Layout, Ring
from mstag.data.stream import ShardLoader
from mstag.data.workers import ReadingProcesses

LAYOUT = Layout(row_bytes=512, mel_at=0, mel_shape=(8, 12), tags_at=192, num_tags=5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_is_waited_for_and_the_consumers_own_time_is_not(
    num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shards(tmp_path, {"train": [16]})
    now = 0.0
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: now)
    read_rows, wait = rows.read_rows, ReadingProcesses.wait

    def slow(do: Any) -> Any:
        def take_a_second(*args: Any) -> Any:
            nonlocal now
            now += 1.0
            return do(*args)

        return take_a_second

    monkeypatch.setattr(pipeline.rows, "read_rows", slow(read_rows))
    monkeypatch.setattr(ReadingProcesses, "wait", slow(wait))
    loader = ShardLoader(tmp_path, "train", batch_size=4, shuffle=True, num_workers=num_workers)
    for epoch in range(2):
        loader.set_epoch(epoch)
        for _ in loader:
            now += 100.0
        assert loader.waiting.so_far_s() == 4.0 * (epoch + 1)


def test_memory_that_cannot_be_pinned_is_used_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Cudart:
        def cudaHostRegister(self, *_: int) -> int:  # noqa: N802 (CUDA's name)
            return 801  # cudaErrorNotSupported

        def cudaHostUnregister(self, *_: int) -> int:  # noqa: N802
            pytest.fail("it was not registered")

    monkeypatch.setattr(torch.cuda, "cudart", Cudart)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    caplog.set_level(logging.WARNING, logger="mstag")
    ring = Ring(LAYOUT, 4, 3, pinned=True)
    assert "cannot be pinned (cudaHostRegister: error 801)" in caplog.text
    assert ring.take().slab.shape == (4, 512)
    ring.close()


def test_memory_is_let_go_of_when_the_last_copy_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    class Copy:
        def synchronize(self) -> None:
            done.append("copied")

        def query(self) -> bool:
            return True

    monkeypatch.setattr(buffers, "_let_go", lambda *_: done.append("let go"))
    ring = Ring(LAYOUT, 4, 3, pinned=False)
    ring.take().copied = Copy()
    pipeline.Kit(ring, None, 1).close()
    assert done == ["copied", "let go"]
