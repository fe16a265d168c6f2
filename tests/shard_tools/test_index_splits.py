from __future__ import annotations

import os
from pathlib import Path

import pytest
from make_foreign import (
    assert_loads,
    mel,
    one_hot,
    run,
    samples,
    write_tar,
)

from mstag.data import shards
from shard_tools.foreign_samples import read_tags
from shard_tools.foreign_splits import assign_splits, list_tars


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n\nb\n", "line 2 is empty"),
        (b"a\nb\na\n", "'a' stands in line 1 and in 3"),
        (b"\n\n", "no tags in it"),
        (b"caf\xe9\n", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_lists_of_tags_that_are_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "tags.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_tags(path)


def test_a_list_of_tags_is_read_as_editors_write_it(tmp_path: Path) -> None:
    (tmp_path / "tags.txt").write_bytes("\ufeffcaf\u00e9 \r\nrock\r\n\r\n".encode())
    assert read_tags(tmp_path / "tags.txt") == ["caf\u00e9", "rock"]


def test_names_say_their_split() -> None:
    names = [
        *("mtt_train_00.tar", "TRAIN-1.tar", "train0001.tar", "trainset.tar"),
        *("val-0.tar", "x.dev.tar", "validation_0.tar", "valid.tar"),
        *("eval-0.tar", "test-{0..9}.tar"),
    ]
    by_split, rule, notes = assign_splits(names)
    assert [len(by_split[split]) for split in shards.SPLITS] == [4, 4, 2]
    assert rule == "as the file names say" and notes == []
    # Words that only begin like one, or contain one, say nothing.
    by_split, _, notes = assign_splits(["strain.tar", "device.tar", "value-1.tar", "0.tar"])
    assert list(by_split) == ["train"] and "everything is train" in notes[0]


@pytest.mark.parametrize(
    ("names", "rules", "message"),
    [
        (["train-test.tar"], (), "train-test.tar: its name says test and train"),
        (["train-0.tar", "1.tar"], (), "1.tar: other file names say their split, these do not"),
        (["a.tar"], ("train=b*",), "--split train=b[*]: fits none of the tars: a.tar"),
        (["a.tar"], ("train=*", "test=a*"), "a.tar is in train already"),
        (["a.tar"], ("training=*",), "with train, valid or test as NAME"),
        (["a.tar"], ("train",), "must look like NAME=GLOB"),
        (["a.tar"], ("train=sub/*.tar",), "fits none"),
    ],
)
def test_splits_that_cannot_be(names: list[str], rules: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assign_splits(names, rules)


def test_the_user_says_the_splits(tmp_path: Path) -> None:
    for number in range(6):
        write_tar(tmp_path / f"train-{number}.tar", samples(2, 2 * number))
    rules = ("valid=*4.tar", "train=*[0-2].tar", "train=*-3.tar")
    report = run(tmp_path, split_rules=rules)
    assert report.sizes == {"train": 8, "valid": 2}
    assert "in no --split, so left out: train-5.tar" in report.notes
    assert_loads(
        tmp_path, "valid", [mel(8), mel(9)], one_hot([8, 9]), ["train-4/s008", "train-4/s009"]
    )
    assert "--split valid=*4.tar" in shards.read_manifest(tmp_path).split_rule


def test_folders_that_hold_no_tars_to_index(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        list_tars(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no \.tar file lies directly in it; index"):
        list_tars(tmp_path)
    write_tar(tmp_path / "train" / "0.tar", samples())
    with pytest.raises(ValueError, match=r"in sub-folders: train\).*ln train/0.tar all/train-0"):
        list_tars(tmp_path)
    write_tar(tmp_path / "a.tar", samples())
    assert "tars in sub-folders are not looked at: train" in run(tmp_path).notes


def test_file_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    for name in (b"a\nb.tar", b"caf\xe9.tar"):
        path = tmp_path / os.fsdecode(name)
        try:
            path.touch()
        except OSError:
            continue  # some file systems refuse them too
        with pytest.raises(ValueError, match=r"file name '.*' cannot be printed; rename it"):
            list_tars(tmp_path)
        path.unlink()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("a.tar.gz", "gunzip"), ("a.tgz", "gunzip"), ("a.tar.zst", "unzstd"), ("a.tar.xz", "unxz")],
)
def test_compressed_tars_are_refused(tmp_path: Path, name: str, remedy: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"readable in place; unpack it with `{remedy} {name}`"):
        list_tars(tmp_path)
    write_tar(tmp_path / "a.tar", samples())
    assert list_tars(tmp_path) == ["a.tar"], "its unpacked twin is there"
