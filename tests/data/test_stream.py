from __future__ import annotations

import atexit
import dataclasses
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

from mstag.data import shards, shelf, stream, tars
from mstag.data.stream import ShardLoader

SHARDINGS = ((1,), (2, 1), (5, 1, 7, 3), (40,), (1,) * 12, (16, 16, 5))


@functools.cache
def folder(sizes: tuple[int, ...], partial: bool = False) -> tuple[Path, list[tars.Sample]]:
    path = Path(tempfile.mkdtemp(prefix="mstag-stream-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path, make_shards(path, {"train": list(sizes)}, partial=partial)["train"]


def global_batches(path: Path, world_size: int, **how: object) -> list[list[str]]:
    """The ids of every global batch, put together from what each rank got."""
    parts = []
    for rank in range(world_size):
        loader = ShardLoader(path, "train", rank=rank, world_size=world_size, **how)  # type: ignore[arg-type]
        loader.set_epoch(3)
        parts.append([batch["id"] for batch in loader])
        assert len(parts[-1]) == len(loader)
    assert len({len(part) for part in parts}) == 1, "every rank has the same number of steps"
    return [sum(step, []) for step in zip(*parts, strict=True)]


@settings(max_examples=60)
@given(
    sizes=st.sampled_from(SHARDINGS),
    world_size=st.sampled_from([1, 2, 3, 4, 8]),
    threads=st.integers(0, 2),
    batch_size=st.integers(1, 11),
    shuffle=st.booleans(),
)
def test_global_batches_do_not_depend_on_ranks_and_threads(
    sizes: tuple[int, ...], world_size: int, threads: int, batch_size: int, shuffle: bool
) -> None:
    path, samples = folder(sizes)
    how = {"batch_size": batch_size, "shuffle": shuffle, "seed": 5}
    batches = global_batches(path, world_size, num_threads=threads, **how)
    assert batches == global_batches(path, 1, num_threads=0, **how)
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
    loader = ShardLoader(path, "train", batch_size=4, shuffle=True, num_threads=threads)
    for batch in loader:
        assert batch["mel"].shape == (4, 1, 8, 12) and batch["mel"].dtype == torch.float16
        assert batch["tags"].dtype == torch.uint8
        assert ("mask" in batch) == partial
        for row, clip in enumerate(batch["id"]):
            assert np.array_equal(batch["mel"][row, 0].numpy(), known[clip].mel)
            assert np.array_equal(batch["tags"][row].numpy(), known[clip].tags)
            if partial:
                assert np.array_equal(batch["mask"][row].numpy(), known[clip].mask)


@settings(max_examples=40)
@given(
    stop=st.integers(0, 8),
    worlds=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])),
    threads=st.integers(0, 2),
)
def test_a_resumed_loader_goes_on_at_the_next_batch_at_any_world_size(
    stop: int, worlds: tuple[int, int], threads: int
) -> None:
    path, _ = folder((16, 16, 5))
    how = {"batch_size": 4, "shuffle": True, "seed": 1, "num_threads": threads}
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
    ("name", "value"), [("version", 9), ("dataset", "x"), ("seed", 2), ("batch_size", 3)]
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
    assert len(places) <= stream.READ_AHEAD + 2 < len(loader)


def test_many_shards_are_read_without_keeping_them_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "MAX_OPEN_SHARDS", 3)
    path, samples = folder((1,) * 12)
    loader = ShardLoader(path, "train", batch_size=5, shuffle=False)
    assert [i for b in loader for i in b["id"]] == [s.meta["id"] for s in samples]


def corrupt(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("field", ["mel_at", "tags_at", "json_at"])
@pytest.mark.parametrize("threads", [0, 2])
def test_a_flipped_bit_is_named_and_never_becomes_data(
    tmp_path: Path, field: str, threads: int
) -> None:
    make_shards(tmp_path, {"train": [6, 6]})
    rows = np.load(tmp_path / "train.index.npy")
    corrupt(tmp_path / "train-000001.tar", int(rows[8]["start"] + rows[8][field]) + 3)
    loader = ShardLoader(tmp_path, "train", batch_size=3, shuffle=False, num_threads=threads)
    with pytest.raises(ValueError, match=r"train-000001\.tar.*sample 8.*checksum"):
        list(loader)


def test_missing_cut_and_stale_files_are_named_at_once(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [6, 6], "valid": [2]})
    shard = tmp_path / "train-000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-512])
    with pytest.raises(ValueError, match=r"train-000001\.tar: \d+ bytes, the manifest says"):
        ShardLoader(tmp_path, "train", batch_size=2, shuffle=True)
    shard.unlink()
    with pytest.raises(ValueError, match=r"train-000001\.tar: the shard is missing"):
        ShardLoader(tmp_path, "train", batch_size=2, shuffle=True)
    shard.write_bytes(content)
    (tmp_path / "train.index.npy").write_bytes((tmp_path / "valid.index.npy").read_bytes())
    with pytest.raises(ValueError, match="stale or damaged"):
        ShardLoader(tmp_path, "train", batch_size=2, shuffle=True)
    with pytest.raises(ValueError, match="no split 'test'"):
        ShardLoader(tmp_path, "test", batch_size=2, shuffle=True)


def test_a_shard_cut_while_training_is_named(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [6]})
    loader = ShardLoader(tmp_path, "train", batch_size=2, shuffle=False, num_threads=0)
    batches = iter(loader)
    next(batches)
    path = tmp_path / "train-000000.tar"
    with path.open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(ValueError, match="bytes are there"):
        list(batches)


def test_an_empty_split_has_no_batches(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [3], "valid": []})
    assert list(ShardLoader(tmp_path, "valid", batch_size=2, shuffle=False)) == []


def rewrite_features(folder: Path, n_mels: int, num_frames: int) -> None:
    """Lets the manifest describe other spectrograms than the shards hold."""
    manifest = shards.read_manifest(folder)
    features = dataclasses.replace(manifest.features, n_mels=n_mels, num_frames=num_frames)
    shards.write_manifest(folder, dataclasses.replace(manifest, features=features))


def test_shards_of_another_shape_than_the_manifests_are_refused(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [3]})
    rewrite_features(tmp_path, n_mels=8, num_frames=13)
    with pytest.raises(ValueError, match=r"sample 0 of the train index does not fit"):
        ShardLoader(tmp_path, "train", batch_size=2, shuffle=True)
    rewrite_features(tmp_path, n_mels=12, num_frames=8)  # as many bytes, another shape
    with pytest.raises(ValueError, match=r"its mel is not float16 \(12, 8\)"):
        list(ShardLoader(tmp_path, "train", batch_size=2, shuffle=True))


def test_a_resumed_loader_resumes_once() -> None:
    path, _ = folder((40,))
    loader = ShardLoader(path, "train", batch_size=5, shuffle=True)
    whole = [b["id"] for b in loader]
    loader.load_state_dict({**loader.state_dict(), "clips": 30})
    assert [b["id"] for b in loader] == whole[6:]
    assert [b["id"] for b in loader] == whole
