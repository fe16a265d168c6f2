"""Reading processes: what they read, and how they begin, fail and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_shards import make_samples, make_shards
from shared_data import REPOSITORY

from mstag.data import rows, tars
from mstag.data.stream import ShardLoader

IDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=70)


@given(ids=st.lists(IDS, min_size=1, max_size=5))
def test_ids_are_found_as_parsing_would_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str]
) -> None:
    path = tmp_path_factory.mktemp("ids") / "s.tar"
    samples = [
        tars.Sample(s.key, s.mel, s.tags, {"album": '"id": "no"', "id": clip})
        for s, clip in zip(make_samples("train", len(ids)), ids, strict=True)
    ]
    index = tars.write_shard(path, samples)
    content = path.read_bytes()
    views = [
        memoryview(content)[int(row["start"]) : int(row["start"]) + 5000].toreadonly()
        for row in index
    ]
    found = rows.find_ids(views, int(index[0]["json_at"]))
    plain = all('"' not in i and "\\" not in i and i.isprintable() for i in ids)
    if plain and all(len(i.encode()) < rows.ID_BYTES - len(rows.ID_START) for i in ids):
        assert found.decode().split('"') == ids
    else:
        assert found == b"" or found.decode().split('"') == ids


def test_ids_that_need_parsing_are_parsed(tmp_path: Path) -> None:
    ids = ['say "hi"', "back\\slash", "x" * 200, "eins", "zwo\n", "", "\u00fcber"]
    odd = [
        tars.Sample(s.key, s.mel, s.tags, {**s.meta, "id": clip})
        for s, clip in zip(make_samples("train", len(ids)), ids, strict=True)
    ]
    make_shards(tmp_path, {"train": [len(ids)]}, samples={"train": odd})
    for num_workers in (0, 1):
        loader = ShardLoader(
            tmp_path, "train", batch_size=3, shuffle=False, num_workers=num_workers
        )
        assert [clip for batch in loader for clip in batch["id"]] == ids


def pids(loader: ShardLoader) -> list[int]:
    assert loader._kit is not None and loader._kit.readers is not None
    return [process.pid for process in loader._kit.readers._processes]


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_reading_process_is_named_and_replaced(tmp_path: Path, victim: int) -> None:
    make_shards(tmp_path, {"train": [40]})
    loader = ShardLoader(tmp_path, "train", batch_size=2, shuffle=False, num_workers=2)
    whole = [batch["id"] for batch in loader]
    process = loader._kit.readers._processes[victim]  # type: ignore[union-attr]
    process.kill()
    process.wait()
    with pytest.raises(ChildProcessError, match=r"killed by signal 9.*train\.loader_workers = 0"):
        list(loader)
    assert [batch["id"] for batch in loader] == whole


def test_the_processes_serve_every_epoch_and_end_with_the_loader(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [40]})
    loader = ShardLoader(tmp_path, "train", batch_size=2, shuffle=True, num_workers=2)
    list(loader)
    first = pids(loader)
    for _batch in loader:
        break
    del _batch
    list(loader)
    assert pids(loader) == first and all(map(is_running, first))
    loader.close()
    assert not any(map(is_running, first))
    list(loader)
    second = pids(loader)
    del loader
    assert not any(map(is_running, second))


def test_two_iterations_over_one_loader_do_not_disturb_each_other(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [40]})
    loader = ShardLoader(tmp_path, "train", batch_size=4, shuffle=True, num_workers=1)
    expected = [batch["id"] for batch in loader]
    pairs = [(a["id"], b["id"]) for a, b in zip(loader, loader, strict=True)]
    assert pairs == [(ids, ids) for ids in expected]


PARENT = """
import sys, time
from mstag.data.stream import ShardLoader
loader = ShardLoader(sys.argv[1], "train", batch_size=2, shuffle=True, num_workers=2)
batches = iter(loader)
next(batches)
kit = batches.gi_frame.f_locals  # keep it alive
import subprocess, os
print(subprocess.check_output(["pgrep", "-P", str(os.getpid())], text=True).split()[:2], flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_they_end_when_the_training_process_dies(tmp_path: Path, how: int) -> None:
    make_shards(tmp_path, {"train": [40]})
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        text=True,
    )
    assert parent.stdout is not None
    children = [int(word.strip("[]',\n")) for word in parent.stdout.readline().split()]
    assert len(children) == 2 and all(map(is_running, children))
    # A Ctrl-C reaches the whole group; reading goes on until the training process has ended.
    for child in children:
        os.kill(child, signal.SIGINT)
    time.sleep(0.1)
    assert all(map(is_running, children))
    parent.send_signal(how)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_running, children))


def test_a_reading_process_imports_next_to_nothing() -> None:
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='looked at');"
        "print([m for m in ('numpy', 'torch', 'mstag') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, rows.__file__],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_rows_say_what_failed(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    index = tars.write_shard(path, make_samples("train", 4))
    places = [(0, int(r["start"]), int(r["bytes"]), int(r["checksum"])) for r in index]
    places[1] = (0, places[1][1], places[1][2], places[1][3] ^ 1)
    places[3] = (0, path.stat().st_size, 100, 0)
    memory = np.zeros((4, 8192), np.uint8)
    views = [memoryview(row) for row in memory]
    handle = os.open(path, os.O_RDONLY)
    try:
        assert rows.read_rows(views, places, {0: handle}) == [1, 3]
        assert rows.read_rows(views, places, {0: os.fsencode(path)}) == [1, 3]
        assert rows.read_rows(views, places, {0: b"/no/such/file"}) == [0, 1, 2, 3]
    finally:
        os.close(handle)
    assert rows.read_rows(views, places, {0: handle}) == [0, 1, 2, 3], "a closed file"
