"""The table of faults: what can happen to a folder of shards, and who says what about it.

Every fault is named by the loader before a byte of it becomes training data (or does not
touch training data), and by ``shard-tools verify``, which reads everything.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from make_shards import make_shards

from mstag.data import shards, tars
from mstag.data.stream import ShardLoader
from shard_tools.verify import verify

SECOND = "train-000001.tar"


def row_of(folder: Path, number: int = 7) -> np.void:
    """An index row of the second shard (samples 6 to 11), as it was before the damage."""
    row: np.void = np.load(folder / "train.index.npy")[number]
    return row


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


def flip_in_sample(what: str, offset: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        row = row_of(folder)
        flip(folder / SECOND, int(row["start"]) + (int(row[what]) if what else 0) + offset)

    return damage


def flip_after_json(folder: Path) -> None:
    row = row_of(folder)
    flip(folder / SECOND, int(row["start"]) + int(row["bytes"]) + 1)


def cut(at: Callable[[np.void, int], int]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        size = (folder / SECOND).stat().st_size
        os.truncate(folder / SECOND, at(row_of(folder), size))

    return damage


def append(folder: Path) -> None:
    with (folder / SECOND).open("ab") as file:
        file.write(bytes(512))


def zeros(folder: Path) -> None:
    """Silence that nobody recorded."""
    row = row_of(folder)
    with (folder / SECOND).open("r+b") as file:
        file.seek(int(row["start"] + row["mel_at"]) + 128)
        file.write(bytes(64))


def swap(folder: Path) -> None:
    os.replace(folder / SECOND, folder / "x")
    os.replace(folder / "train-000000.tar", folder / SECOND)
    os.replace(folder / "x", folder / "train-000000.tar")


def from_another_dataset(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        make_shards(folder / "other", {"train": [6, 6]}, seed=9)
        os.replace(folder / "other" / name, folder / name)

    return damage


def folder_for_shard(folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / SECOND).mkdir()


def put_index(content: bytes) -> Callable[[Path], None]:
    """An index that the manifest vouches for, whatever is in it."""

    def damage(folder: Path) -> None:
        (folder / "train.index.npy").write_bytes(content)
        manifest = shards.read_manifest(folder)
        split = manifest.splits["train"]
        entry = shards.entry_of(folder / "train.index.npy")
        new = {**manifest.splits, "train": dataclasses.replace(split, index=entry)}
        shards.write_manifest(folder, dataclasses.replace(manifest, splits=new))

    return damage


def edit_index(change: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        rows = np.load(folder / "train.index.npy")
        change(rows)
        put_index(tars.npy_bytes(rows))(folder)

    return damage


def same_sample_twice(rows: np.ndarray) -> None:
    rows[3] = rows[2]


def past_the_end(rows: np.ndarray) -> None:
    rows["start"][11] += 10**6


def shard_that_is_not_there(rows: np.ndarray) -> None:
    rows["shard"][11] = 5


def other_parts(rows: np.ndarray) -> None:
    rows["tags_at"][4] += 512


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}] * 12, dtype=object), allow_pickle=True)
    return buffer.getvalue()


def edit_manifest(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def other_shape(folder: Path) -> None:
    manifest = shards.read_manifest(folder)
    features = dataclasses.replace(manifest.features, n_mels=12, num_frames=8)
    shards.write_manifest(folder, dataclasses.replace(manifest, features=features))


def cut_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 200)


def first(split: str = "train") -> Callable[[dict], dict]:
    return lambda content: content["splits"][split]["shards"][0]


CHECKSUM = (
    rf"{SECOND}: the clip at byte \d+ \(sample 7 of train\) is damaged: "
    r"checksum \w{16}, the index says \w{16}"
)
SHA256 = rf"{SECOND}: sha256"

# name: (damage, what the loader says (None: no training data is touched), what verify says)
FAULTS: dict[str, tuple[Callable[[Path], None], str | None, str]] = {
    "bit in a spectrogram": (flip_in_sample("mel_at", 200), CHECKSUM, SHA256),
    "bit in the labels": (flip_in_sample("tags_at", 129), CHECKSUM, SHA256),
    "bit in the json": (flip_in_sample("json_at", 3), CHECKSUM, SHA256),
    "bit in the mask": (flip_in_sample("mask_at", 130), CHECKSUM, SHA256),
    "bit in an npy header": (flip_in_sample("mel_at", 30), CHECKSUM, SHA256),
    "bit in the first tar header": (flip_in_sample("", 20), CHECKSUM, SHA256),
    "bit in a later tar header": (flip_in_sample("tags_at", -400), CHECKSUM, SHA256),
    "bit in the padding": (flip_in_sample("tags_at", -513), CHECKSUM, SHA256),
    "bit in the padding after a sample": (flip_after_json, None, SHA256),
    "part of a clip zeroed": (zeros, CHECKSUM, SHA256),
    "cut between samples": (
        cut(lambda row, size: int(row["start"])),
        rf"{SECOND}: \d+ bytes, the manifest says \d+: the shard was cut or replaced",
        rf"{SECOND}: \d+ bytes, the manifest says",
    ),
    "cut between members": (
        cut(lambda row, size: int(row["start"] + row["tags_at"]) - 512),
        rf"{SECOND}: \d+ bytes, the manifest says",
        rf"{SECOND}: the tar is cut",
    ),
    "cut in a payload": (
        cut(lambda row, size: int(row["start"] + row["mel_at"]) + 40),
        rf"{SECOND}: \d+ bytes, the manifest says",
        rf"{SECOND}: not a readable tar",
    ),
    "end of the tar cut off": (
        cut(lambda row, size: size - 512),
        rf"{SECOND}: \d+ bytes, the manifest says",
        rf"{SECOND}: \d+ bytes, the manifest says",
    ),
    "emptied": (cut(lambda row, size: 0), rf"{SECOND}: 0 bytes", rf"{SECOND}: 0 bytes"),
    "grown": (append, rf"{SECOND}: \d+ bytes, the manifest says", rf"{SECOND}: \d+ bytes"),
    "shard missing": (
        lambda folder: (folder / SECOND).unlink(),
        rf"{SECOND}: the shard is missing; `make shards`",
        rf"{SECOND}: missing",
    ),
    "a folder in its place": (folder_for_shard, rf"{SECOND}: \d+ bytes", rf"{SECOND}: missing"),
    "shards swapped": (
        swap,
        r"train-000000.tar: the clip at byte 0 \(sample 0 of train\) is damaged: checksum",
        r"train-000000.tar: sha256",
    ),
    "shard of another dataset": (
        from_another_dataset(SECOND),
        rf"{SECOND}: ",
        SHA256,
    ),
    "bit in the index": (
        lambda folder: flip(folder / "train.index.npy", 300),
        r"train.index.npy: sha256 \w{12}\.\.\., the manifest says \w{12}\.\.\.: the file is stale",
        r"train.index.npy: sha256",
    ),
    "index missing": (
        lambda folder: (folder / "train.index.npy").unlink(),
        r"train.index.npy: cannot be read \(No such file",
        r"train.index.npy: cannot be read",
    ),
    "index of another split": (
        lambda folder: shutil.copy(folder / "valid.index.npy", folder / "train.index.npy"),
        "train.index.npy: sha256",
        "train.index.npy: sha256",
    ),
    "index of another packing": (
        from_another_dataset("train.index.npy"),
        "train.index.npy: sha256",
        "train.index.npy: sha256",
    ),
    "index cut": (
        lambda folder: os.truncate(folder / "train.index.npy", 400),
        "train.index.npy: sha256",
        "train.index.npy: sha256",
    ),
    "index that needs a pickle": (
        put_index(pickled()),
        r"train.index.npy: not a plain array \(object",
        r"train.index.npy: not a plain array",
    ),
    "index that is no array": (
        put_index(b"hello"),
        r"train.index.npy: not a plain array",
        r"train.index.npy: not a plain array",
    ),
    "index of other rows": (
        put_index(tars.npy_bytes(np.zeros(12, np.int64))),
        "train.index.npy: not an index of 12 samples",
        "train.index.npy: not an index of 12 samples",
    ),
    "index too short": (
        put_index(tars.npy_bytes(np.zeros(11, tars.INDEX_DTYPE))),
        "train.index.npy: not an index of 12 samples",
        "train.index.npy: not an index of 12 samples",
    ),
    "index names a sample twice": (
        edit_index(same_sample_twice),
        None,  # what it names is whole; that one is missing shows where all is read
        "train: the index does not describe the shards",
    ),
    "index points past the end": (
        edit_index(past_the_end),
        rf"{SECOND}: the clip .*: 0 of \d+ bytes are there",
        "train: the index does not describe the shards",
    ),
    "index names no shard": (
        edit_index(shard_that_is_not_there),
        "sample 11 of the train index does not fit",
        "train: the index does not describe the shards",
    ),
    "index with other parts": (
        edit_index(other_parts),
        "sample 4 of the train index does not fit",
        "train: the index does not describe the shards",
    ),
    "manifest missing": (
        lambda folder: (folder / "manifest.json").unlink(),
        r"no manifest.json, so the folder holds no finished shards; make them",
        "no manifest.json",
    ),
    "manifest cut": (cut_manifest, r"manifest.json: cannot be read", "manifest.json: cannot be"),
    "manifest of another version": (
        edit_manifest(lambda m: m.update(format_version=7)),
        r"format version 7, this mstag reads 1; pack the shards again or use the mstag",
        "format version 7",
    ),
    "manifest without splits": (
        edit_manifest(lambda m: m.pop("splits")),
        "not a manifest of format 1",
        "not a manifest of format 1",
    ),
    "manifest with other features": (
        edit_manifest(lambda m: m["features"].update(hop_length=256)),  # type: ignore[attr-defined]
        "features_digest is .* the file was edited",
        "features_digest",
    ),
    "manifest with tags in another order": (
        edit_manifest(lambda m: m["tags"].reverse()),  # type: ignore[attr-defined]
        "tags_digest is .* the file was edited",
        "tags_digest",
    ),
    "manifest with another count": (
        edit_manifest(lambda m: first()(m).update(clips=5)),
        "shards hold 11 samples, the split says 12",
        "shards hold 11 samples",
    ),
    "manifest pointing outside": (
        edit_manifest(lambda m: first()(m).update(name="../secret.tar")),
        r"'../secret.tar' lies outside the folder",
        "lies outside the folder",
    ),
    "manifest without a checksum": (
        edit_manifest(lambda m: first()(m).update(sha256="../../etc")),
        r"'../../etc' is no sha256",
        "is no sha256",
    ),
    "manifest with other shapes": (
        other_shape,
        r"train-000000.tar: .*sample 0 of train\) is damaged: its mel is not float16 \(12, 8\)",
        r"mel is float16 \(8, 12\), not float16 \(12, 8\)",
    ),
}


def test_the_table_is_long_enough() -> None:
    assert len(FAULTS) >= 25


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("threads", [0, 2])
def test_every_fault_is_named(tmp_path: Path, name: str, threads: int) -> None:
    damage, loader_says, verify_says = FAULTS[name]
    content = make_shards(tmp_path, {"train": [6, 6], "valid": [3]}, partial=True)["train"]
    assert verify(tmp_path) == []
    damage(tmp_path)

    def read() -> list[np.ndarray]:
        loader = ShardLoader(tmp_path, "train", batch_size=4, shuffle=False, num_workers=threads)
        return [mel.clone().numpy() for batch in loader for mel in batch["mel"]]

    if loader_says is None:
        known = {sample.mel.tobytes() for sample in content}
        assert {mel.tobytes() for mel in read()} <= known
    else:
        with pytest.raises(ValueError, match=loader_says) as error:
            read()
        assert "\n" not in str(error.value)
    faults = verify(tmp_path)
    assert any(re.search(verify_says, fault) for fault in faults), faults


def test_a_shard_cut_while_it_is_read_is_named(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [6]})
    loader = ShardLoader(tmp_path, "train", batch_size=2, shuffle=False, num_workers=0)
    batches = iter(loader)
    next(batches)
    os.truncate(tmp_path / "train-000000.tar", 3000)
    with pytest.raises(ValueError, match="bytes are there"):
        list(batches)


# ---- on_bad_clip = "skip": left out, counted, limited ---------------------------------------


def skipping(folder: Path, batch_size: int = 4, **how: object) -> ShardLoader:
    return ShardLoader(
        folder,
        "train",
        batch_size=batch_size,
        on_bad_clip="skip",
        **{"shuffle": True, "max_bad_clips": 0.5, **how},  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("threads", [0, 2])
def test_a_damaged_clip_is_left_out_and_the_others_are_whole(
    tmp_path: Path, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    content = make_shards(tmp_path, {"train": [6, 6]}, partial=True)["train"]
    known = {str(sample.meta["id"]): sample for sample in content}
    whole = [batch["id"] for batch in skipping(tmp_path, num_workers=threads)]
    flip_in_sample("mel_at", 300)(tmp_path)
    loader = skipping(tmp_path, num_workers=threads)
    found = []
    for batch in loader:
        found.append(batch["id"])
        for row, clip in enumerate(batch["id"]):
            assert np.array_equal(batch["mel"][row, 0].numpy(), known[clip].mel)
            assert np.array_equal(batch["tags"][row].numpy(), known[clip].tags)
            assert np.array_equal(batch["mask"][row].numpy(), known[clip].mask)
            assert content[batch["number"][row]].meta["id"] == clip
    assert found == [[clip for clip in batch if clip != "train7"] for batch in whole]
    assert loader.num_refused == 1
    assert loader.ledger(1) == {"data/seen": 11, "data/dropped": 0, "data/refused": 1}
    assert "refused: " in caplog.text and "sample 7 of train" in caplog.text


def test_too_many_damaged_clips_fail_after_all(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [6, 6]})
    for number in (2, 7, 9):
        row = row_of(tmp_path, number)
        name = f"train-{int(row['shard']):06d}.tar"
        flip(tmp_path / name, int(row["start"] + row["mel_at"]) + 140)
    assert sum(len(batch["id"]) for batch in skipping(tmp_path, max_bad_clips=0.25)) == 9
    words = r"3 damaged clips in epoch 0 of split train, more than train.max_bad_clips = 0.2 of 12"
    with pytest.raises(ValueError, match=words):
        list(skipping(tmp_path, max_bad_clips=0.2))
    # Two ranks of which neither has too many.
    with pytest.raises(ValueError, match=words.replace("0.2", r"0\.2") + r" allows \(all ranks"):
        skipping(tmp_path, max_bad_clips=0.2).ledger(3)


def test_the_count_of_refused_clips_is_resumed_and_starts_anew_each_epoch(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [6, 6]})
    flip_in_sample("mel_at", 300)(tmp_path)
    loader = skipping(tmp_path, shuffle=False)
    states = [loader.state_dict() for _batch in loader]
    assert [state["refused"] for state in states] == [0, 1, 1]
    other = skipping(tmp_path, shuffle=False)
    other.load_state_dict(states[1])
    assert len(list(other)) == 1 and other.num_refused == 1
    other.set_epoch(1)
    assert other.num_refused == 0
    assert len(list(other)) == 3 and other.num_refused == 1
