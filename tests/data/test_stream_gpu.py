"""The loader's way to a CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from make_shards import make_shards

from mstag.data.stream import ShardLoader

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_arrive_on_the_device_whole(tmp_path: Path, num_workers: int) -> None:
    make_shards(tmp_path, {"train": [40, 30]}, partial=True)
    how = {"batch_size": 8, "shuffle": True, "num_workers": num_workers}
    expected = [
        {key: batch[key].clone() for key in ("mel", "tags", "mask")}
        for batch in ShardLoader(tmp_path, "train", **how)  # type: ignore[arg-type]
    ]
    loader = ShardLoader(tmp_path, "train", device="cuda", **how)  # type: ignore[arg-type]
    busy = torch.randn(2048, 2048, device="cuda")
    kept = []
    for _ in range(3):
        for batch in loader:
            busy = torch.tanh(busy @ busy)  # the device is behind the loader
            kept.append({key: batch[key] for key in ("mel", "tags", "mask")})
    assert len(kept) == 3 * len(expected)
    for number, batch in enumerate(kept):
        for key, value in batch.items():
            assert value.is_cuda
            assert torch.equal(value.cpu(), expected[number % len(expected)][key])


def test_its_memory_is_pinned(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [8]})
    loader = ShardLoader(tmp_path, "train", batch_size=4, shuffle=True, device="cuda")
    list(loader)
    assert loader._kit is not None
    buffer = loader._kit.ring.take()
    assert torch.from_numpy(buffer.slab).is_pinned()
