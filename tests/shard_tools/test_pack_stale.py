"""What an earlier pack left is never taken for what it is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from make_audio import SETTINGS, contents, make_audio

from mstag import config
from mstag.data import tars
from mstag.data.clips import Catalogue, Clip, TagCount
from shard_tools import receipts
from shard_tools.merge import merge
from shard_tools.output import FolderOutput, Output
from shard_tools.pack import Packed, pack
from shard_tools.receipts import Receipt

DATA = "data"


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return make_audio(tmp_path / DATA, 24)


def run(
    catalogue: Catalogue, folder: Path, out: str, part: tuple[int, int] = (0, 1), **how: object
) -> Packed:
    shards = dataclasses.replace(SETTINGS.shards, **how)  # type: ignore[arg-type]
    settings = dataclasses.replace(SETTINGS, shards=shards)
    data, out_dir = folder / DATA, folder / out
    return pack(settings, catalogue, data, out_dir, num_workers=1, part=part, progress=False)


def damage(path: Path, what: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(what) + 1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("what", [b'{"id"', b'"id": "c', b"NUMPY"])
def test_nothing_is_taken_from_a_shard_that_rotted(
    tmp_path: Path, catalogue: Catalogue, what: bytes
) -> None:
    run(catalogue, tmp_path, "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    damage(tmp_path / "out" / "train-000001.tar", what)
    assert run(catalogue, tmp_path, "out").num_packed == 1
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("changed", [{"long_clips": "centre"}, {"clips_per_shard": 8}])
def test_parts_of_another_plan_are_refused(
    tmp_path: Path, catalogue: Catalogue, changed: dict[str, object]
) -> None:
    # 12, 6 and 6 clips make as many shards of 7 as of 8.
    run(catalogue, tmp_path, "out", (0, 2), clips_per_shard=7)
    run(catalogue, tmp_path, "out", (1, 2), **{"clips_per_shard": 7, **changed})
    with pytest.raises(ValueError, match="0 and 1 do not belong together: their plan differ"):
        merge(FolderOutput(tmp_path / "out"))


def test_parts_over_which_another_pack_went_are_refused(
    tmp_path: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        run(catalogue, tmp_path, "out", (number, 2))
    write = receipts.write

    def killed_after(output: Output, receipt: Receipt) -> None:
        write(output, receipt)
        raise KeyboardInterrupt

    monkeypatch.setattr(receipts, "write", killed_after)
    other = dataclasses.replace(SETTINGS, features=config.FeatureConfig(n_mels=8))
    with pytest.raises(KeyboardInterrupt):
        pack(other, catalogue, tmp_path / DATA, tmp_path / "out", num_workers=1, progress=False)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"train-000000\.tar is missing or not what was packed"):
        merge(FolderOutput(tmp_path / "out"))


def test_a_part_that_rotted_is_mended_as_merge_says(tmp_path: Path, catalogue: Catalogue) -> None:
    for number in range(2):
        run(catalogue, tmp_path, "out", (number, 2))
    damage(tmp_path / "out" / "train-000000.tar", b"NUMPY")
    with pytest.raises(ValueError, match="pack its part again: --task 0/2"):
        merge(FolderOutput(tmp_path / "out"))
    assert run(catalogue, tmp_path, "out", (0, 2)).num_packed == 1
    run(catalogue, tmp_path, "whole")
    merge(FolderOutput(tmp_path / "out"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_packing_again_does_not_get_around_max_skipped(
    tmp_path: Path, catalogue: Catalogue
) -> None:
    for number in range(0, 12, 2):
        (tmp_path / DATA / f"{number}.wav").write_text("words\n" * 99)
    for _ in range(8):
        with pytest.raises(ValueError, match=r"more than shards\.max_skipped"):
            run(catalogue, tmp_path, "out")
    assert run(catalogue, tmp_path, "out", max_skipped=0.5).manifest
    with pytest.raises(ValueError, match=r"more than shards\.max_skipped"):
        run(catalogue, tmp_path, "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_merge_removes_what_an_earlier_plan_left(tmp_path: Path, catalogue: Catalogue) -> None:
    run(catalogue, tmp_path, "out", clips_per_shard=1)
    (tmp_path / "out" / ".pack" / "part-0-of-1.json").unlink()
    for number in range(2):
        run(catalogue, tmp_path, "out", (number, 2))
    merge(FolderOutput(tmp_path / "out"))
    run(catalogue, tmp_path, "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_file_that_is_missing_is_asked_for_again_only_when_it_is_there(
    tmp_path: Path, catalogue: Catalogue
) -> None:
    path = tmp_path / DATA / "3.wav"
    whole = path.read_bytes()
    path.unlink()
    run(catalogue, tmp_path, "out")
    assert run(catalogue, tmp_path, "out").num_packed == 0
    path.mkdir()
    assert run(catalogue, tmp_path, "out").num_packed == 1
    assert run(catalogue, tmp_path, "out").num_packed == 0
    path.rmdir()
    path.write_bytes(whole)
    packed = run(catalogue, tmp_path, "out")
    assert packed.num_packed == 1 and packed.manifest and not packed.manifest.skipped


def test_shards_of_somebody_else_are_not_packed_over(tmp_path: Path, catalogue: Catalogue) -> None:
    run(catalogue, tmp_path, "out")
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "foreign": {"mel": "x"}}))
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="somebody else"):
        run(catalogue, tmp_path, "out")
    assert contents(tmp_path / "out") == before


def test_a_long_clip_that_ends_early_is_flagged(tmp_path: Path) -> None:
    # 130 s of promised 160: the third block brings no window that is half audio.
    path = tmp_path / DATA / "long.wav"
    path.parent.mkdir()
    rate_hz = 8000
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(160 * rate_hz) / rate_hz)
    sf.write(path, tone, rate_hz)
    with path.open("rb+") as file:
        file.truncate(44 + 2 * 130 * rate_hz)
    features = config.FeatureConfig(sample_rate_hz=rate_hz, hop_length=256, num_frames=1250)
    clip = Clip("long", "long.wav", frozenset(["x"]), split="train")
    catalogue = Catalogue("long", [TagCount("x", 1)], [clip], "by hand", [])
    settings = dataclasses.replace(SETTINGS, features=features)
    packed = pack(settings, catalogue, path.parent, tmp_path / "out", num_workers=1, progress=False)
    assert packed.truncated == ["long"]
    samples = tars.scan_shard(tmp_path / "out" / "train-000000.tar")[1]
    assert [bool(s.meta.get("truncated")) for s in samples] == [False, False, True]
