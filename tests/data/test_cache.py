"""The shard cache, with a real server, real locks and real processes that are killed."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from loopback import CONTENT, Server, serving, sha256
from shared_data import REPOSITORY

from mstag.data import answers, cache, remote
from mstag.data.cache import ShardCache, default_folder

SIZE = 100_000
SHARDS = {f"/{i}.tar": bytes([i]) * SIZE for i in range(8)}

# A process of its own: FOLDER MAX_BYTES BASE NAME...; prints a line when each is open, and
# keeps all open until its stdin ends.
FETCHER = """
import hashlib, os, sys
from pathlib import Path
from mstag.data import answers
from mstag.data.cache import ShardCache
answers.TIMEOUT_S = 60.0
folder, max_bytes, base, *names = sys.argv[1:]
cache = ShardCache(Path(folder), int(max_bytes))
for name in names:
    content = bytes([int(name[1])]) * 100_000
    digest = hashlib.sha256(content).hexdigest()
    handle = cache.fetch(base + name, digest, len(content))
    assert os.pread(handle, 200_000, 0) == content
    print(name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.files = dict(SHARDS)
        yield server


class Box:
    """A cache and its server, with short patience."""

    def __init__(self, folder: Path, server: Server, num_shards: float) -> None:
        self.cache = ShardCache(folder, int(num_shards * SIZE))
        self.server = server

    def open(self, number: int, **options: Any) -> int:
        content = SHARDS[f"/{number}.tar"]
        url = f"{self.server.base}/{number}.tar"
        options = {"wait_s": 0.0, "num_tries": 2, "backoff_s": 0.001} | options
        handle = self.cache.fetch(url, sha256(content), len(content), **options)
        assert os.pread(handle, 2 * SIZE, 0) == content
        return handle

    def touch(self, number: int, **options: Any) -> None:
        os.close(self.open(number, **options))

    def path(self, number: int) -> Path:
        digest = sha256(SHARDS[f"/{number}.tar"])
        return self.cache.folder / digest[:2] / digest

    def held(self) -> set[int]:
        return {i for i in range(len(SHARDS)) if self.path(i).is_file()}


@pytest.fixture
def make(tmp_path: Path, server: Server) -> Callable[[float], Box]:
    return lambda num_shards: Box(tmp_path / "cache", server, num_shards)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@contextmanager
def process(box: Box, *names: str) -> Iterator[subprocess.Popen[str]]:
    arguments = [str(box.cache.folder), str(box.cache.max_bytes), box.server.base, *names]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", FETCHER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def test_a_miss_and_then_hits(make: Callable[[float], Box]) -> None:
    box = make(3)
    box.touch(1)
    assert files(box.cache.folder) == [sha256(SHARDS["/1.tar"]), "cache.lock"]
    box.server.shutdown()  # from here on there is no network
    box.touch(1)
    other = ShardCache(box.cache.folder, 3 * SIZE)
    os.close(other.fetch("http://127.0.0.1:1/x", box.path(1).name.upper(), SIZE))
    assert box.server.paths == ["/1.tar"]


def test_the_descriptor_is_for_reading_and_closes_with_exec(make: Callable[[float], Box]) -> None:
    handle = make(1).open(1)
    with pytest.raises(OSError, match=r"Bad file descriptor"):
        os.write(handle, b"x")
    assert not os.get_inheritable(handle)
    os.close(handle)


def test_same_names_with_other_contents_do_not_meet(make: Callable[[float], Box]) -> None:
    box = make(3)
    box.touch(1)
    box.server.files["/1.tar"] = other = b"x" * SIZE
    os.close(box.cache.fetch(f"{box.server.base}/1.tar", sha256(other), SIZE))
    box.touch(1)
    assert len(box.server.paths) == 2


def test_what_was_used_longest_ago_goes_first(make: Callable[[float], Box]) -> None:
    box = make(3)
    for number in (0, 1, 2, 0):
        box.touch(number)
    box.touch(3)
    assert box.held() == {0, 2, 3}
    box.touch(2)
    box.touch(4)
    assert box.held() == {2, 3, 4}
    box.touch(2)
    box.touch(5)
    assert box.held() == {2, 4, 5}


def test_a_bigger_shard_evicts_several(make: Callable[[float], Box]) -> None:
    box = make(3)
    for number in (0, 1, 2):
        box.touch(number)
    big = b"b" * (2 * SIZE + 1)
    box.server.files["/big.tar"] = big
    os.close(box.cache.fetch(f"{box.server.base}/big.tar", sha256(big), len(big)))
    assert box.held() == set()


def test_files_in_use_stay(make: Callable[[float], Box]) -> None:
    box = make(2)
    first = box.open(0)
    second = box.open(0)  # held twice
    box.touch(1)
    os.close(first)
    box.touch(2)
    assert box.held() == {0, 2}
    box.touch(2)
    third = box.open(2)
    with pytest.raises(
        ValueError,
        match=r"cache: no room for a shard of 100000 bytes: train.cache_gb = 0.0002, and 200000 "
        r"bytes are in use .* raise train.cache_gb or lower train.shuffle_window",
    ):
        box.open(3)
    os.close(second)
    box.touch(3)
    assert box.held() == {2, 3}
    os.close(third)


def test_files_that_another_process_uses_stay(make: Callable[[float], Box]) -> None:
    box = make(2)
    with process(box, "/0.tar", "/1.tar") as user:
        assert user.stdout is not None
        assert [user.stdout.readline() for _ in range(2)] == ["/0.tar\n", "/1.tar\n"]
        with pytest.raises(ValueError, match=r"no room"):
            box.open(2)
        user.kill()
        user.wait()
        box.touch(2)
    assert box.held() == {1, 2}


def test_room_is_waited_for(make: Callable[[float], Box], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_POLL_S", 0.01)
    box = make(1)
    handle = box.open(0)
    waited = threading.Thread(target=box.touch, args=(1,), kwargs={"wait_s": 60.0})
    waited.start()
    lock = box.path(1).with_name(f"{box.path(1).name}.lock")
    while not lock.exists():
        time.sleep(0.01)
    assert box.server.paths == ["/0.tar"]
    os.close(handle)
    waited.join()
    assert box.held() == {1}


def test_what_can_never_fit(make: Callable[[float], Box]) -> None:
    box = make(0.5)
    with pytest.raises(ValueError, match=r"train.cache_gb = 5e-05 is less than the one shard"):
        box.open(0)
    with pytest.raises(ValueError, match=r"no sha256"):
        box.cache.fetch("http://h/x", "../../etc/passwd", 1)
    assert not box.cache.folder.exists()


def test_wrong_bytes_are_never_cached(make: Callable[[float], Box]) -> None:
    box = make(3)
    box.server.moods = ["garbage"] * 9
    with pytest.raises(ValueError, match=r"1.tar: its sha256 is .*, twice"):
        box.open(1)
    assert files(box.cache.folder) == ["cache.lock"]
    box.server.moods = ["404"]
    with pytest.raises(OSError, match=r"404"):
        box.open(1)
    assert files(box.cache.folder) == ["cache.lock"]


def test_misbehaviour_on_the_way(
    make: Callable[[float], Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "TIMEOUT_S", 0.3)
    box = make(1)
    box.server.moods = ["cut", "503", "short", "stall", "garbage"]
    box.touch(1, num_tries=3)
    assert files(box.cache.folder) == [box.path(1).name, "cache.lock"]


def test_a_file_that_was_cut_is_fetched_again(make: Callable[[float], Box]) -> None:
    box = make(1)
    box.touch(0)
    os.truncate(box.path(0), 10)
    box.touch(0)
    assert len(box.server.paths) == 2
    os.truncate(box.path(0), 3 * SIZE)
    box.server.moods = ["404"]
    with pytest.raises(OSError, match="404"):
        box.open(0)
    assert not box.path(0).exists()  # nothing of it stood beside the download


def test_foreign_files_stay(make: Callable[[float], Box], tmp_path: Path) -> None:
    box = make(1)
    digest = sha256(b"foreign")
    folder = box.cache.folder
    outside = tmp_path / "outside"
    outside.write_bytes(bytes(SIZE))
    (folder / digest[:2] / digest).mkdir(parents=True)  # a folder of that name
    foreign = [
        folder / "0.tar",
        folder / digest,  # not in its folder
        folder / "zz" / digest,
        folder / "00" / digest,
        folder / "01" / digest[:63],
        folder / digest[:2] / f"{digest}.part.old",
        folder / digest[:2] / f"{digest}0",
        folder / digest[:2] / digest.upper(),
        folder / digest[:2] / digest / "inside",
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(SIZE))
    link = folder / "ab" / ("ab" * 32)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    for number in range(4):
        box.touch(number)
    assert all(path.stat().st_size == SIZE for path in foreign)
    with pytest.raises(ValueError, match="symbolic link"):
        box.cache.fetch(f"{box.server.base}/0.tar", link.name, SIZE)
    assert link.is_symlink() and outside.stat().st_size == SIZE
    assert box.held() == {3}


def test_a_killed_download_is_resumed(make: Callable[[float], Box]) -> None:
    box = make(1)
    box.server.moods = ["stall"]
    part = box.path(1).with_name(f"{box.path(1).name}.part")
    with process(box, "/1.tar") as victim:
        while not (part.is_file() and part.stat().st_size == SIZE // 2):
            assert victim.poll() is None
            time.sleep(0.01)
        with pytest.raises(ValueError, match=r"100000 bytes are in use or being fetched"):
            box.open(2)  # its reservation counts
        victim.kill()
        victim.wait()
    box.touch(1)
    assert box.server.ranges == [None, f"bytes={SIZE // 2}-"]
    assert files(box.cache.folder) == [box.path(1).name, "cache.lock"]


def test_a_killed_download_makes_room_for_others(make: Callable[[float], Box]) -> None:
    box = make(1)
    part = box.path(1).with_name(f"{box.path(1).name}.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(SIZE // 2))
    part.with_name(f"{part.name}.version").write_text("x\ny\n")
    box.path(1).with_name(f"{box.path(1).name}.lock").write_text(str(SIZE))
    box.touch(2)
    assert files(box.cache.folder) == [box.path(2).name, "cache.lock"]


def test_eight_processes_fetch_each_shard_once(make: Callable[[float], Box]) -> None:
    box = make(3)
    names = ["/1.tar", "/2.tar", "/3.tar"]
    running: list[subprocess.Popen[str]] = []
    try:
        for turn in range(8):
            arguments = [str(box.cache.folder), str(3 * SIZE), box.server.base]
            order = names[turn % 3 :] + names[: turn % 3]
            running.append(
                subprocess.Popen(
                    [sys.executable, "-W", "error", "-c", FETCHER, *arguments, *order],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=REPOSITORY,
                )
            )
        for one in running:
            out, err = one.communicate("")
            assert (sorted(out.split()), err, one.returncode) == (names, "", 0)
    finally:
        for one in running:
            one.kill()
    assert sorted(box.server.paths) == names
    assert box.held() == {1, 2, 3}


def test_threads_fetch_each_shard_once(make: Callable[[float], Box]) -> None:
    box = make(8)
    handles: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: handles.append(box.open(i % 4))) for i in range(16)
    ]
    run(threads)
    assert len(handles) == 16
    for handle in handles:
        os.close(handle)
    assert sorted(box.server.paths) == [f"/{i}.tar" for i in range(4)]


def test_the_bound_holds_at_every_moment(
    make: Callable[[float], Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_POLL_S", 0.002)
    box = make(3.5)
    box.cache.folder.mkdir(parents=True)
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        # Under the cache's lock nothing is evicted or reserved while this one counts.
        with (box.cache.folder / "cache.lock").open("w") as lock:
            while not done.is_set():
                fcntl.flock(lock, fcntl.LOCK_EX)
                sizes: dict[str, int] = {}
                for path in box.cache.folder.glob("??/*"):
                    if path.suffix in ("", ".part"):
                        with suppress(FileNotFoundError):  # renamed meanwhile
                            size = path.stat().st_size
                            sizes[path.stem] = max(size, sizes.get(path.stem, 0))
                seen.append(sum(sizes.values()))
                fcntl.flock(lock, fcntl.LOCK_UN)
                time.sleep(0.001)

    def use(turn: int) -> None:
        for step in range(12):
            handle = box.open((turn * 5 + step * 3) % 8, wait_s=60.0)
            time.sleep(0.001)
            os.close(handle)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run([threading.Thread(target=use, args=(turn,)) for turn in range(5)])
    done.set()
    watcher.join()
    assert 0 < max(seen) <= box.cache.max_bytes
    assert len(box.cache._entries()) <= 3


def test_eviction_between_open_and_lock_is_noticed(
    make: Callable[[float], Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = make(1)
    box.touch(0)
    real_flock = fcntl.flock
    evicted = []

    def flock_after_an_eviction(handle: int, operation: int) -> None:
        if operation == fcntl.LOCK_SH and not evicted:
            evicted.append(box.path(0))
            assert cache._evict(box.path(0))
        real_flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_an_eviction)
    handle = box.open(0)
    assert os.path.samestat(os.fstat(handle), box.path(0).stat())
    assert len(box.server.paths) == 2
    os.close(handle)


def test_a_lock_that_was_unlinked_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.lock"
    real_flock = fcntl.flock
    unlinked = []

    def flock_after_an_unlink(handle: int, operation: int) -> None:
        if not unlinked:
            unlinked.append(path)
            path.unlink()
        real_flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_an_unlink)
    handle = cache._lock(path)
    assert os.path.samestat(os.fstat(handle), path.stat())
    cache._unlock(handle)


def test_what_a_killed_process_had_reserved_does_not_count(make: Callable[[float], Box]) -> None:
    box = make(1)
    path = box.path(1)
    path.parent.mkdir(parents=True)
    path.with_name(f"{path.name}.lock").write_text(str(SIZE))
    with box.cache._fetching(path):
        box.touch(2)


def test_a_full_disk_is_one_line(make: Callable[[float], Box]) -> None:
    box = make(1)
    part = box.path(0).with_name(f"{box.path(0).name}.part")
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"cache: the disk is full, .* free some space") as error:
        box.open(0)
    assert "\n" not in str(error.value)
    box.touch(0)


def test_half_a_shard_does_not_keep_a_disk_full(
    make: Callable[[float], Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = make(1)
    real_append = remote._Arrived.append

    def fill_the_disk(arrived: remote._Arrived, block: bytes) -> None:
        if arrived.num_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_append(arrived, block[: SIZE // 2])

    with monkeypatch.context() as patch:
        patch.setattr(remote._Arrived, "append", fill_the_disk)
        with pytest.raises(ValueError, match="disk is full"):
            box.open(0)
    assert files(box.cache.folder) == ["cache.lock"]
    box.touch(0)


def test_a_folder_that_cannot_be_used_is_one_line(make: Callable[[float], Box]) -> None:
    box = make(1)
    box.cache.folder.write_text("a file")
    with pytest.raises(
        ValueError, match=r"cannot be used \(Not a directory: .*MSTAG_CACHE"
    ) as error:
        box.open(0)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_line(make: Callable[[float], Box]) -> None:
    box = make(1)
    box.cache.folder.mkdir(mode=0o500)
    with pytest.raises(ValueError, match=r"cannot be used .Permission denied"):
        box.open(0)


def test_errors_leave_no_descriptor_and_no_lock(make: Callable[[float], Box]) -> None:
    box = make(1)
    holder = box.open(0)
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
    for mood in ("404", "503", "garbage"):
        box.server.moods = [mood] * 9
        with pytest.raises((OSError, ValueError)):
            box.open(1)
    os.close(holder)
    with pytest.raises((OSError, ValueError)):
        box.open(1)
    assert not list(box.cache.folder.glob("??/*.lock"))
    box.server.moods = []
    box.touch(1)
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSTAG_CACHE", "/big/disk")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_folder() == Path("/big/disk/shards")
    monkeypatch.delenv("MSTAG_CACHE")
    assert default_folder() == Path("/xdg/mstag/shards")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "mstag" / "shards"


def run(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_contents_differ() -> None:
    assert len({sha256(content) for content in SHARDS.values()} | {sha256(CONTENT)}) == 9
