"""Shards at an address: the same batches as from a folder, through a bounded cache."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from loopback import Server, serving
from make_shards import make_shards

from mstag.data import shelf
from mstag.data.store import Remote, Store, open_store
from mstag.data.stream import ShardLoader

SIZES = {"train": [9, 4, 7, 5, 8, 2], "valid": [3, 3]}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_shards(tmp_path / "shards", SIZES)
    return tmp_path / "shards"


def publish(server: Server, folder: Path) -> str:
    """Puts a folder's files on the server; what is not there answers with nonsense."""
    server.files = {f"/mtt/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return f"{server.base}/mtt/"


def content(where: str | Path | Store, split: str = "train", **how: object) -> list[object]:
    options = {"batch_size": 4, "shuffle": True, "seed": 3, **how}
    loader = ShardLoader(where, split, **options)  # type: ignore[arg-type]
    return [
        (batch["id"], batch["mel"].numpy().tobytes(), batch["tags"].numpy().tobytes())
        for batch in loader
    ]


@pytest.mark.parametrize("window", [0, 1, 2])
def test_an_address_gives_the_batches_of_the_folder(
    server: Server, folder: Path, tmp_path: Path, window: int
) -> None:
    store = open_store(publish(server, folder), cache_folder=tmp_path / "cache")
    server.moods = ["", "cut", "503", "cut"]
    assert content(store, window=window) == content(folder, window=window)
    assert content(store, "valid", shuffle=False) == content(folder, "valid", shuffle=False)
    server.paths.clear()
    assert content(store, window=window) == content(folder, window=window)
    assert server.paths == [], "the second epoch comes out of the cache"


def test_windows_pass_through_a_cache_that_holds_two_of_them(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    largest = sorted(path.stat().st_size for path in folder.glob("train-*.tar"))[-2:]
    room = sum(largest) + (folder / "train.index.npy").stat().st_size
    store = open_store(
        publish(server, folder), cache_folder=tmp_path / "cache", cache_gb=room / 1e9
    )
    for epoch in range(3):
        for how in ({"window": 1}, {"window": 1, "rank": 1, "world_size": 2}):
            found, expected = [], []
            for where, into in ((store, found), (folder, expected)):
                loader = ShardLoader(where, "train", batch_size=4, shuffle=True, **how)  # type: ignore[arg-type]
                loader.set_epoch(epoch)
                into += [batch["id"] for batch in loader]
            assert found == expected
        kept = [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and len(p.name) == 64]
        assert sum(path.stat().st_size for path in kept) <= room
    with pytest.raises(ValueError, match=r"all shards .* at hand at once.*train\.cache_gb"):
        content(store)
    with pytest.raises(ValueError, match=r"two windows .* at hand at once.*shuffle_window"):
        content(store, window=3)


def test_too_many_open_shards_are_refused_with_the_remedy(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "MAX_OPEN_SHARDS", 4)
    store = open_store(publish(server, folder), cache_folder=tmp_path / "cache")
    assert content(store, window=2) == content(folder, window=2)
    with pytest.raises(ValueError, match=r"all shards \(6\) would be open at once, at most 4"):
        content(store)


def test_reading_starts_before_all_shards_are_there(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    store = open_store(publish(server, folder), cache_folder=tmp_path / "cache")
    loader = ShardLoader(store, "train", batch_size=2, shuffle=True, window=1, num_workers=1)
    batches = iter(loader)
    next(batches)
    first = loader.plan().windows
    fetched = [path for path in server.paths if path.endswith(".tar")]
    wanted = [f"/mtt/train-{shard:06d}.tar" for window in first[:3] for shard in window]
    assert set(fetched) <= set(wanted)
    assert len(list(batches)) == len(loader) - 1
    assert set(Counter(p for p in server.paths if p.endswith(".tar")).values()) == {1}


def test_ranks_share_the_cache(server: Server, folder: Path, tmp_path: Path) -> None:
    address = publish(server, folder)
    found: dict[int, list[object]] = {}

    def read(rank: int) -> None:
        store = open_store(address, cache_folder=tmp_path / "cache")
        found[rank] = content(store, rank=rank, world_size=3, batch_size=6)

    ranks = [threading.Thread(target=read, args=(rank,)) for rank in range(3)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    for rank in range(3):
        assert found[rank] == content(folder, rank=rank, world_size=3, batch_size=6)
    fetched = Counter(path for path in server.paths if path.endswith(".tar"))
    assert len(fetched) == 6 and set(fetched.values()) == {1}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("shard changed", r"train-000002\.tar.*sha256"),
        ("shard missing", r"train-000002\.tar.*404"),
        ("shard cut", r"train-000002\.tar.* bytes"),
        ("index changed", r"train\.index\.npy.*sha256"),
        ("manifest missing", r"manifest\.json.*404"),
        ("manifest nonsense", r"manifest\.json: cannot be read"),
    ],
)
def test_what_is_wrong_at_the_address_is_named(
    server: Server, folder: Path, tmp_path: Path, damage: str, words: str
) -> None:
    address = publish(server, folder) + "?token=SECRET"
    shard = "/mtt/train-000002.tar"
    if damage == "shard changed":
        server.files[shard] = server.files[shard][::-1]
    elif damage == "shard cut":
        server.files[shard] = server.files[shard][:-512]
    elif damage == "index changed":
        server.files["/mtt/train.index.npy"] = server.files["/mtt/train.index.npy"][::-1]
    elif damage == "manifest nonsense":
        server.files["/mtt/manifest.json"] = b"{"
    missing = {"shard missing": shard, "manifest missing": "/mtt/manifest.json"}.get(damage)
    if missing:
        server.missing.add(missing)
    with pytest.raises((ValueError, OSError), match=words) as error:
        content(open_store(address, cache_folder=tmp_path / "cache"), num_workers=1)
    assert "SECRET" not in str(error.value) and "\n" not in str(error.value)


def test_names_that_are_no_address_are_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        open_store(tmp_path / "none")
    for address in ("ftp://h/x/", "file:///x/", "gs://b/x/"):
        with pytest.raises(ValueError, match="http, https"):
            open_store(address)
    with pytest.raises(ValueError, match="no such folder"):
        open_store("pipe:cat x")


def test_an_s3_bucket_gives_the_batches_of_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server", reason="moto's server is not installed")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        bucket = boto3.resource("s3", endpoint_url=endpoint).create_bucket(Bucket="music")
        for path in folder.iterdir():
            bucket.upload_file(str(path), f"sets/tiny/{path.name}")
        store = open_store(
            "s3://music/sets/tiny/", cache_folder=tmp_path / "cache", s3_endpoint=endpoint
        )
        assert isinstance(store, Remote)
        assert content(store, window=2) == content(folder, window=2)
        assert np.array_equal(store.index("valid"), open_store(folder).index("valid"))
        with pytest.raises(OSError, match="no-such"):
            open_store("s3://no-such/x/", cache_folder=tmp_path / "c", s3_endpoint=endpoint)
    finally:
        server.stop()
        server._server.server_close()
