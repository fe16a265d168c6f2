"""Real packs that are killed, run out of disk, or lose their input."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from make_audio import contents, table_dataset
from shared_data import REPOSITORY

from shard_tools.verify import verify

NUM_CLIPS, NUM_SHARDS = 48, 16


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips that take a while, and under "undisturbed" what they become."""
    folder = tmp_path_factory.mktemp("dataset")
    settings = table_dataset(folder, NUM_CLIPS, clips_per_shard=3)
    rng = np.random.default_rng(0)
    for number in range(NUM_CLIPS):
        sf.write(folder / "data" / f"{number}.wav", 0.1 * rng.standard_normal(400_000), 32000)
    done = subprocess.run([*command(settings), str(folder / "undisturbed")], cwd=REPOSITORY)
    assert done.returncode == 0
    return folder


def command(settings: Path, num_workers: int = 2) -> list[str]:
    tool = [sys.executable, "-m", "shard_tools", "pack", "--config", str(settings)]
    tool += ["--data", str(settings.parent / "data"), "--workers", str(num_workers)]
    return [*tool, "--out"]


def wait_for(out: Path, num_shards: int, process: subprocess.Popen[bytes]) -> None:
    while len(list(out.glob("*.tar"))) < num_shards and process.poll() is None:
        time.sleep(0.002)


def marked(mark: str) -> list[int]:
    """Living processes with a mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def kill_and_go_on(dataset: Path, out: Path, num_kills: int, seed: int) -> None:
    """Kills packs at random moments, checks what is left, and lets the last one finish."""
    draw = random.Random(seed)
    mark = f"MARK=kill-{os.getpid()}-{seed}"
    environment = dict([*os.environ.items(), tuple(mark.split("=", 1))])
    undisturbed = contents(dataset / "undisturbed")
    for _ in range(num_kills):
        there = len(list(out.glob("*.tar")))
        process = subprocess.Popen(
            [*command(dataset / "tones.toml"), str(out)],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(out, min(there + draw.choice([0, 1, 1, 2]), NUM_SHARDS), process)
        time.sleep(draw.random() * 0.05)
        process.kill()
        process.wait()
        for _ in range(500):
            if not marked(mark):
                break
            time.sleep(0.01)
        assert not marked(mark), "a worker outlived its pack"
        for name, content in contents(out).items() if out.exists() else ():
            if not name.endswith(".tmp"):
                assert content == undisturbed[name], f"{name} is there and not whole"
    done = subprocess.run(
        [*command(dataset / "tones.toml"), str(out)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert contents(out) == undisturbed and verify(out) == []
    assert not list((out / ".pack").glob(".*.tmp"))


def test_kills_at_random_moments_lose_nothing(dataset: Path, tmp_path: Path) -> None:
    kill_and_go_on(dataset, tmp_path / "out", num_kills=3, seed=random.randrange(1 << 30))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_thirty_kills_lose_nothing(dataset: Path, tmp_path: Path, seed: int) -> None:
    kill_and_go_on(dataset, tmp_path / "out", num_kills=6, seed=seed)


def test_a_full_disk_is_said_and_what_is_there_is_whole(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    largest = max(p.stat().st_size for p in (dataset / "undisturbed").glob("*.tar"))

    def small_files_only() -> None:
        # EFBIG where a full disk says ENOSPC; both come from a write that fails.
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, largest - 1))

    arguments = [*command(dataset / "tones.toml", num_workers=1), str(out)]
    done = subprocess.run(
        arguments, cwd=REPOSITORY, capture_output=True, text=True, preexec_fn=small_files_only
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "too large" in done.stderr, done.stderr
    assert not (out / "manifest.json").exists() and not list(out.glob(".*.tmp"))
    subprocess.run(arguments, cwd=REPOSITORY, check=True, capture_output=True)
    assert contents(out) == contents(dataset / "undisturbed")


def test_a_disk_that_is_pulled_out_is_no_thousand_bad_clips(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [*command(dataset / "tones.toml"), str(out)]
    process = subprocess.Popen(arguments, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    wait_for(out, 2, process)  # type: ignore[arg-type]
    (dataset / "data").rename(dataset / "pulled out")
    _, said = process.communicate()
    (dataset / "pulled out").rename(dataset / "data")
    assert process.returncode == 1 and "Traceback" not in said
    assert "changed or vanished while it was packed" in said and "run the same command" in said
    assert not (out / "manifest.json").exists()
    subprocess.run(arguments, cwd=REPOSITORY, check=True, capture_output=True)
    assert contents(out) == contents(dataset / "undisturbed")


def test_a_kept_shard_that_rotted_is_packed_again(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [*command(dataset / "tones.toml", num_workers=1), str(out)]
    subprocess.run(arguments, cwd=REPOSITORY, check=True, capture_output=True)
    (out / "manifest.json").unlink()
    content = bytearray((out / "train-000001.tar").read_bytes())
    content[3000] ^= 1
    (out / "train-000001.tar").write_bytes(content)
    done = subprocess.run(arguments, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert "1 shards packed" in done.stdout
    assert contents(out) == contents(dataset / "undisturbed")


def test_a_killed_worker_is_said_in_one_line(dataset: Path, tmp_path: Path) -> None:
    mark = f"MARK=worker-{os.getpid()}"
    environment = dict([*os.environ.items(), tuple(mark.split("=", 1))])
    process = subprocess.Popen(
        [*command(dataset / "tones.toml"), str(tmp_path / "out")],
        cwd=REPOSITORY,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "out", 1, process)  # type: ignore[arg-type]
    workers = [pid for pid in marked(mark) if pid != process.pid]
    os.kill(max(workers), 9)  # the youngest: neither the fork server nor the tracker
    _, said = process.communicate()
    assert process.returncode == 1 and "Traceback" not in said, said
    assert "a packing process died" in said and "run the same command again" in said


def test_ctrl_c_ends_at_once_and_says_so(dataset: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*command(dataset / "tones.toml"), str(tmp_path / "out")],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(tmp_path / "out", 1, process)  # type: ignore[arg-type]
    os.killpg(process.pid, 2)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert said.strip().splitlines()[-1] == "shard-tools: interrupted" and "Traceback" not in said
