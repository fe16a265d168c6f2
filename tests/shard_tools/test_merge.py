from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from make_audio import SETTINGS, contents, make_audio, table_dataset
from shared_data import REPOSITORY

from mstag import config
from mstag.data.clips import Catalogue
from shard_tools.merge import merge
from shard_tools.output import FolderOutput
from shard_tools.pack import pack
from shard_tools.verify import verify


def pack_part(
    data: Path, out: Path, catalogue: Catalogue, part: tuple[int, int], **changed: object
) -> None:
    settings = dataclasses.replace(SETTINGS, **changed)  # type: ignore[arg-type]
    packed = pack(settings, catalogue, data, out, num_workers=1, part=part, progress=False)
    assert packed.manifest is None


@pytest.mark.parametrize("num_parts", [1, 2, 3, 20])
def test_parts_merge_into_the_same_bytes_as_one_pack(tmp_path: Path, num_parts: int) -> None:
    data = tmp_path / "data"
    catalogue = make_audio(data, 24)
    pack(SETTINGS, catalogue, data, tmp_path / "whole", num_workers=1, progress=False)
    out = tmp_path / "parts"
    if num_parts == 1:
        pack(SETTINGS, catalogue, data, out, num_workers=1, progress=False)
    else:
        for number in reversed(range(num_parts)):
            pack_part(data, out, catalogue, (number, num_parts))
            assert not (out / "manifest.json").exists(), "a folder in parts is not finished"
    merge(FolderOutput(out))
    assert contents(out) == contents(tmp_path / "whole")
    assert verify(out) == []
    before = (out / "manifest.json").stat().st_mtime_ns
    merge(FolderOutput(out))
    assert (out / "manifest.json").stat().st_mtime_ns == before, "nothing is left to do"


def test_gaps_overlaps_and_strangers_are_refused(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    catalogue = make_audio(data, 24)
    output = FolderOutput(out)
    with pytest.raises(ValueError, match="no finished parts"):
        merge(output)
    assert not out.exists()
    pack_part(data, out, catalogue, (0, 3))
    pack_part(data, out, catalogue, (2, 3))
    with pytest.raises(ValueError, match=r"of 3 parts, 1 is missing; run .*--task 1/3"):
        merge(output)
    other = config.ShardsConfig(clips_per_shard=4, max_skipped=0.2)
    pack_part(data, out, catalogue, (1, 3), shards=other)
    with pytest.raises(ValueError, match="0 and 1 do not belong together: their max_skipped"):
        merge(output)
    pack_part(data, out, catalogue, (1, 3))
    pack_part(data, out, catalogue, (0, 2))
    with pytest.raises(ValueError, match=r"parts of 2 and of 3 overlap; remove .*-of-2.json"):
        merge(output)
    (out / ".pack" / "part-0-of-2.json").unlink()
    os.truncate(out / "train-000001.tar", 512)
    with pytest.raises(ValueError, match=r"train-000001.tar is missing or not .*--task 1/3"):
        merge(output)
    pack_part(data, out, catalogue, (1, 3))
    note = out / ".pack" / "part-1-of-3.json"
    content = json.loads(note.read_text())
    packed = dict(list(content["shards"].items())[:1])
    note.write_text(json.dumps({**content, "shards": packed}))
    with pytest.raises(ValueError, match="not those of the whole, each once"):
        merge(output)
    pack_part(data, out, catalogue, (1, 3))
    assert merge(output).splits["train"].clips == 12
    assert not (out / "manifest.json.tmp").exists() and verify(out) == []


def test_skipped_clips_of_all_parts_together_are_limited(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    catalogue = make_audio(data, 24)
    for number in (1, 4, 6):
        (data / f"{number}.wav").write_text("words\n" * 99)
    for number in range(3):
        pack_part(data, out, catalogue, (number, 3))
    with pytest.raises(ValueError, match=r"3 of 24 clips.*max_skipped = 0\.1"):
        merge(FolderOutput(out))
    assert not (out / "manifest.json").exists()


def test_a_whole_pack_after_parts_takes_over(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    catalogue = make_audio(data, 24)
    pack_part(data, out, catalogue, (0, 2))
    packed = pack(SETTINGS, catalogue, data, out, num_workers=1, progress=False)
    assert packed.manifest and packed.num_packed == 3, "the part's shards are kept"
    assert verify(out) == [] and merge(FolderOutput(out)) == packed.manifest


def test_parts_run_beside_each_other_but_not_beside_themselves(tmp_path: Path) -> None:
    output = FolderOutput(tmp_path)
    with output.lock("0-of-2"), output.lock("1-of-2"):
        for part in ("0-of-2", ""):
            with pytest.raises(ValueError, match="another pack"), output.lock(part):
                pass
    with output.lock(""), pytest.raises(ValueError, match="another pack"), output.lock("0-of-2"):
        pass


def test_the_commands_pack_in_parts_and_merge(tmp_path: Path) -> None:
    settings = table_dataset(tmp_path, 16)
    tool = [sys.executable, "-m", "shard_tools"]
    command = [*tool, "pack", "--config", str(settings), "--data", str(tmp_path / "data")]
    command += ["--out", str(tmp_path / "out"), "--workers", "1"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*more], cwd=REPOSITORY, capture_output=True, text=True)

    for number in (0, 1):
        done = run(*command, "--task", f"{number}/2")
        assert done.returncode == 0 and "shard-tools merge" in done.stdout, done.stderr
    done = run(*tool, "merge", str(tmp_path / "out"))
    assert done.returncode == 0 and "merged and verified" in done.stdout, done.stderr
    for bad in ("2/2", "x", "1", "-1/2", "1/"):
        done = run(*command, "--task", bad)
        assert done.returncode == 2 and "I/N" in done.stderr


def test_the_slurm_script_packs_the_part_of_its_job(tmp_path: Path) -> None:
    settings = table_dataset(tmp_path, 16)
    tool = tmp_path / ".venv" / "bin" / "shard-tools"
    tool.parent.mkdir(parents=True)
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m shard_tools "$@"\n')
    tool.chmod(0o755)
    out = tmp_path / "out"
    script = ["sh", str(REPOSITORY / "scripts" / "pack.slurm")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "SLURM_ARRAY_TASK_COUNT": "2"}

    def job(*more: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*script, *more],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**environment, **variables},
        )

    what = (str(settings), str(tmp_path / "data"), str(out))
    assert job(*what).returncode != 0, "no array"
    assert job(SLURM_ARRAY_TASK_ID="1").returncode == 2
    for number in ("1", "2"):
        done = job(*what, SLURM_ARRAY_TASK_ID=number, SLURM_ARRAY_TASK_MIN="1")
        assert done.returncode == 0, done.stderr
    assert merge(FolderOutput(out)).splits["train"].clips == 8
