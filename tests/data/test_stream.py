from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_shards import make_shards

from mstag.data import shelf, tars
from mstag.data.stream import ShardLoader

SHARDINGS = ((1,), (2, 1), (5, 1, 7, 3), (40,), (1,) * 12, (16, 16, 5), (3, 0, 1200, 1))


@functools.cache
def folder(sizes: tuple[int, ...], partial: bool = False) -> tuple[Path, list[tars.Sample]]:
    path = Path(tempfile.mkdtemp(prefix="mstag-stream-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path, make_shards(path, {"train": list(sizes)}, partial=partial)["train"]


def global_batches(path: Path, world_size: int, epoch: int = 3, **how: object) -> list[list[str]]:
    """The ids of every global batch, put together from what each rank got."""
    parts = []
    for rank in range(world_size):
        loader = ShardLoader(path, "train", rank=rank, world_size=world_size, **how)  # type: ignore[arg-type]
        loader.set_epoch(epoch)
        parts.append([batch["id"] for batch in loader])
        assert len(parts[-1]) == len(loader)
    assert len({len(part) for part in parts}) == 1, "every rank has the same number of steps"
    return [sum(step, []) for step in zip(*parts, strict=True)]


@settings(max_examples=40)
@given(
    sizes=st.sampled_from(SHARDINGS),
    world_size=st.sampled_from([1, 2, 3, 4, 8]),
    threads=st.integers(0, 2),
    batch_size=st.integers(1, 11) | st.just(500),
    shuffle=st.booleans(),
    window=st.integers(0, 5),
    epoch=st.integers(0, 2),
)
def test_global_batches_do_not_depend_on_ranks_and_threads(
    sizes: tuple[int, ...],
    world_size: int,
    threads: int,
    batch_size: int,
    shuffle: bool,
    window: int,
    epoch: int,
) -> None:
    if sum(sizes) > 100:
        batch_size = max(batch_size, 50)
    path, samples = folder(sizes)
    how = {"batch_size": batch_size, "shuffle": shuffle, "seed": 5, "window": window}
    batches = global_batches(path, world_size, epoch, num_workers=threads, **how)
    assert batches == global_batches(path, 1, epoch, num_workers=0, **how)
    seen = [clip for batch in batches for clip in batch]
    every = [str(s.meta["id"]) for s in samples]
    if shuffle:
        assert len(set(seen)) == len(seen) and set(seen) <= set(every)
        assert len(every) - len(seen) < batch_size
        assert all(len(batch) == batch_size for batch in batches)
    else:
        assert seen == every


@pytest.mark.parametrize("threads", [0, 1, 2])
@pytest.mark.parametrize("partial", [False, True])
def test_batches_hold_what_the_shards_hold(threads: int, partial: bool) -> None:
    path, samples = folder((5, 1, 7, 3), partial)
    known = {s.meta["id"]: s for s in samples}
    loader = ShardLoader(path, "train", batch_size=4, shuffle=True, num_workers=threads)
    for batch in loader:
        assert batch["mel"].shape == (4, 1, 8, 12) and batch["mel"].dtype == torch.float16
        assert batch["tags"].dtype == torch.uint8
        assert ("mask" in batch) == partial
        for row, clip in enumerate(batch["id"]):
            assert np.array_equal(batch["mel"][row, 0].numpy(), known[clip].mel)
            assert np.array_equal(batch["tags"][row].numpy(), known[clip].tags)
            if partial:
                assert np.array_equal(batch["mask"][row].numpy(), known[clip].mask)


@settings(max_examples=20)
@given(
    stop=st.integers(0, 8),
    worlds=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])),
    threads=st.integers(0, 2),
    window=st.integers(0, 2),
)
def test_a_resumed_loader_goes_on_at_the_next_batch_at_any_world_size(
    stop: int, worlds: tuple[int, int], threads: int, window: int
) -> None:
    path, _ = folder((16, 16, 5))
    how = {"batch_size": 4, "shuffle": True, "seed": 1, "num_workers": threads, "window": window}
    whole = global_batches(path, 1, **how)
    first = ShardLoader(path, "train", rank=0, world_size=worlds[0], **how)  # type: ignore[arg-type]
    first.set_epoch(3)
    state = first.state_dict()
    for number, _batch in enumerate(first):
        if number == stop:
            break
        state = first.state_dict()
    state = json.loads(json.dumps(state))
    rest = []
    for rank in range(worlds[1]):
        loader = ShardLoader(path, "train", rank=rank, world_size=worlds[1], **how)  # type: ignore[arg-type]
        loader.load_state_dict(state)
        loader.set_epoch(3)
        rest.append([batch["id"] for batch in loader])
    assert [sum(step, []) for step in zip(*rest, strict=True)] == whole[stop:]


def test_iterating_again_starts_the_epoch_anew() -> None:
    path, _ = folder((40,))
    loader = ShardLoader(path, "train", batch_size=7, shuffle=True)
    first = [b["id"] for b in loader]
    for _batch in loader:
        break
    assert [b["id"] for b in loader] == first
    loader.set_epoch(1)
    assert [b["id"] for b in loader] != first


@pytest.mark.parametrize(
    ("name", "value"),
    [("version", 1), ("dataset", "x"), ("seed", 2), ("batch_size", 3), ("window", 2)],
)
def test_a_foreign_state_is_refused(name: str, value: object) -> None:
    path, _ = folder((40,))
    loader = ShardLoader(path, "train", batch_size=4, shuffle=True)
    with pytest.raises(ValueError, match=f"{name} is"):
        loader.load_state_dict({**loader.state_dict(), name: value})


def test_a_batch_that_is_kept_never_changes() -> None:
    path, _ = folder((40,))
    loader = ShardLoader(path, "train", batch_size=2, shuffle=True)
    kept = [(batch["mel"], batch["mel"].clone()) for batch in loader]
    views = [(batch["tags"][0], batch["tags"][0].clone()) for batch in loader]
    assert all(torch.equal(held, copy) for held, copy in kept + views)


def test_buffers_are_reused_when_nobody_keeps_them() -> None:
    path, _ = folder((40,))
    loader = ShardLoader(path, "train", batch_size=2, shuffle=True)
    places = {batch["mel"].data_ptr() for batch in loader}
    assert len(places) <= 2 + 1 + 2 < len(loader)  # read, next, handed out and held


def test_many_shards_are_read_without_keeping_them_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "MAX_OPEN_SHARDS", 3)
    path, samples = folder((1,) * 12)
    loader = ShardLoader(path, "train", batch_size=5, shuffle=False)
    assert [i for b in loader for i in b["id"]] == [s.meta["id"] for s in samples]


def test_a_split_that_is_not_there_is_refused() -> None:
    path, _ = folder((40,))
    with pytest.raises(ValueError, match="no split 'test'; there are train"):
        ShardLoader(path, "test", batch_size=2, shuffle=True)


def test_every_open_file_is_closed_again() -> None:
    path, _ = folder((5, 1, 7, 3))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for window in (0, 1):
        loader = ShardLoader(path, "train", batch_size=2, shuffle=True, window=window)
        list(loader)
        for _batch in loader:
            break
    del _batch, loader
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_empty_split_has_no_batches(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [3], "valid": []})
    assert list(ShardLoader(tmp_path, "valid", batch_size=2, shuffle=False)) == []


def test_a_resumed_loader_resumes_once() -> None:
    path, _ = folder((40,))
    loader = ShardLoader(path, "train", batch_size=5, shuffle=True)
    whole = [b["id"] for b in loader]
    loader.load_state_dict({**loader.state_dict(), "clips": 30})
    assert [b["id"] for b in loader] == whole[6:]
    assert [b["id"] for b in loader] == whole
