from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_shards import TINY, make_samples, make_shards

from mstag.data import shards, tars


def test_same_samples_same_bytes(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        tars.write_shard(tmp_path / name, make_samples("train", 7))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@given(num_clips=st.integers(0, 9), partial=st.booleans())
def test_scanning_a_shard_gives_the_rows_and_samples_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, num_clips: int, partial: bool
) -> None:
    path = tmp_path_factory.mktemp("scan") / "train-000000.tar"
    samples = make_samples("train", num_clips, partial=partial)
    written = tars.write_shard(path, samples)
    rows, found = tars.scan_shard(path)
    assert np.array_equal(rows, written)
    for sample, expected in zip(found, samples, strict=True):
        assert (sample.key, sample.meta) == (expected.key, expected.meta)
        assert np.array_equal(sample.mel, expected.mel)
        assert np.array_equal(sample.tags, expected.tags)
        assert (sample.mask is None) == (not partial)


def test_plain_tarfile_and_numpy_read_a_shard(tmp_path: Path) -> None:
    samples = make_samples("train", 3)
    tars.write_shard(tmp_path / "s.tar", samples)
    with tarfile.open(tmp_path / "s.tar") as tar:
        names = tar.getnames()
        assert names == [f"{s.key}.{e}" for s in samples for e in ("mel.npy", "tags.npy", "json")]
        assert all(info.mtime == 0 and not info.pax_headers for info in tar)
        for sample in samples:
            raw = tar.extractfile(f"{sample.key}.mel.npy")
            assert raw is not None
            mel = np.load(io.BytesIO(raw.read()), allow_pickle=False)
            assert mel.dtype == np.float16 and np.array_equal(mel, sample.mel)


@pytest.mark.filterwarnings("ignore")
def test_the_webdataset_library_reads_every_shard(tmp_path: Path) -> None:
    import webdataset

    content = make_shards(tmp_path, {"train": [4, 1, 3]}, partial=True)
    urls = sorted(str(path) for path in tmp_path.glob("train-*.tar"))
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [x["__key__"] for x in found] == [s.key for s in content["train"]]
    for sample, expected in zip(found, content["train"], strict=True):
        assert np.array_equal(sample["mel.npy"], expected.mel)
        assert np.array_equal(sample["tags.npy"], expected.tags)
        assert np.array_equal(sample["mask.npy"], expected.mask)
        assert sample["json"] == expected.meta


def test_a_manifest_reads_back_as_itself(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [4, 1], "valid": [], "test": [2]})
    manifest = shards.read_manifest(tmp_path)
    assert {name: split.clips for name, split in manifest.splits.items()} == {
        "train": 5,
        "valid": 0,
        "test": 2,
    }
    before = (tmp_path / "manifest.json").read_bytes()
    shards.write_manifest(tmp_path, manifest)
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert manifest.features == TINY and manifest.tag_names[1] == "tag 1"


def test_the_digest_names_the_data(tmp_path: Path) -> None:
    digests = set()
    for number, how in enumerate(({}, {"seed": 1}, {"num_tags": 4})):
        make_shards(tmp_path / str(number), {"train": [4]}, **how)  # type: ignore[arg-type]
        digests.add(shards.read_manifest(tmp_path / str(number)).digest)
    make_shards(tmp_path / "again", {"train": [4]})
    digests.add(shards.read_manifest(tmp_path / "again").digest)
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(format_version=2), "format version 2"),
        (lambda m: m.pop("splits"), "not a manifest"),
        (lambda m: m["features"].update(n_mels=9), "features_digest"),
        (lambda m: m["tags"].reverse(), "tags_digest"),
        (lambda m: m["splits"]["train"].update(clips=6), "the split says 6"),
        (lambda m: m["splits"]["train"]["shards"][0].update(name="../x.tar"), "outside"),
        (lambda m: m["features"].update(hop=1), "features.hop"),
    ],
    ids=["version", "no splits", "features", "tags", "count", "path", "unknown feature"],
)
def test_an_edited_manifest_is_refused(tmp_path: Path, change: object, words: str) -> None:
    make_shards(tmp_path, {"train": [4]})
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    change(content)  # type: ignore[operator]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        shards.read_manifest(tmp_path)


def test_folders_without_a_manifest_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no manifest\.json.*make shards"):
        shards.read_manifest(tmp_path)
    with pytest.raises(ValueError, match=r"no such folder.*make shards"):
        shards.read_manifest(tmp_path / "none")
    (tmp_path / "manifest.json").write_text("[1, 2")
    with pytest.raises(ValueError, match=r"manifest\.json: cannot be read"):
        shards.read_manifest(tmp_path)


def test_pickles_in_a_shard_are_never_loaded(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        buffer = io.BytesIO()
        np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
        for name, data in (
            ("k.mel.npy", buffer.getvalue()),
            ("k.tags.npy", tars.npy_bytes(np.zeros(5, np.uint8))),
            ("k.json", b"{}"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(ValueError, match="allow_pickle"):
        tars.scan_shard(tmp_path / "s.tar")


@pytest.mark.parametrize("keep", ["member boundary", "one block of the end", "middle of a payload"])
def test_a_cut_shard_is_not_taken_for_a_shorter_one(tmp_path: Path, keep: str) -> None:
    rows = tars.write_shard(tmp_path / "s.tar", make_samples("train", 3))
    content = (tmp_path / "s.tar").read_bytes()
    second = int(rows[1]["start"])
    third_end = int(rows[2]["start"] + rows[2]["json_at"]) + tarfile.BLOCKSIZE
    at = {"member boundary": second, "one block of the end": third_end + 512}.get(
        keep, second + 600
    )
    (tmp_path / "s.tar").write_bytes(content[:at])
    with pytest.raises(ValueError, match=r"cut|not a readable tar"):
        tars.scan_shard(tmp_path / "s.tar")


def test_samples_that_are_taken_back_leave_no_byte(tmp_path: Path) -> None:
    samples = make_samples("train", 5)
    with tars.open_shard(tmp_path / "a.tar") as writer:
        for sample in samples[:4]:
            writer.add(sample)
        writer.rewind(2)
        writer.rewind(2)
        assert writer.num_samples == 2
    rows = tars.write_shard(tmp_path / "b.tar", samples[:2])
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert np.array_equal(writer.rows, rows)
    with tars.open_shard(tmp_path / "c.tar") as writer:
        writer.add(samples[0])
        writer.rewind(0)
        writer.add(samples[4])
    assert [s.key for s in tars.scan_shard(tmp_path / "c.tar")[1]] == [samples[4].key]
