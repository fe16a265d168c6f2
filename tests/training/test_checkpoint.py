"""Checkpoints: whole or passed over, and refused where the run is another one."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from make_shards import make_shards

from mstag import config
from mstag.data import shards
from mstag.training import checkpoint


def state(step: int) -> dict[str, Any]:
    return {"step": step, "engine": {"model": {"w": torch.arange(5.0) + step}}, "text": "x"}


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped bit":
        content[len(content) // 2] ^= 4
    elif how == "empty":
        content.clear()
    else:
        del content[-(len(content) // 3) :]
    path.write_bytes(content)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, state(7), keep=2)
    assert path.name == "step-00000007.pt"
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["engine"]["model"]["w"], torch.arange(5.0) + 7)
    assert loaded["text"] == "x"
    assert list(tmp_path.iterdir()) == [path], "no temporary file stays"


def test_torch_alone_reads_it_without_executing_anything(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, state(7), keep=2)
    assert torch.load(path, weights_only=True)["step"] == 7


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    for step in (1, 20, 300, 99_999_999, 100_000_000):
        checkpoint.save(tmp_path, state(step), keep=3)
    names = [path.name for path in checkpoint.paths(tmp_path)]
    assert names == ["step-100000000.pt", "step-99999999.pt", "step-00000300.pt"]


@pytest.mark.parametrize("how", ["cut", "flipped bit", "empty"])
def test_a_damaged_one_is_passed_over_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    checkpoint.save(tmp_path, state(1), keep=2)
    damage(checkpoint.save(tmp_path, state(2), keep=2), how)
    newest = checkpoint.load_newest(tmp_path)
    assert newest is not None
    assert newest["step"] == 1
    assert "step-00000002.pt: cut short or damaged" in caplog.text
    assert "passed over" in caplog.text


def test_nothing_to_go_on_with(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path / "none") is None
    damage(checkpoint.save(tmp_path, state(1), keep=2), "cut")
    with pytest.raises(ValueError, match=r"none of its 1 checkpoints is whole.*--fresh"):
        checkpoint.load_newest(tmp_path)


def test_another_format_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    path = checkpoint.save(tmp_path, state(1), keep=2)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"format version 2, this mstag reads 1"):
        checkpoint.load(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    path = checkpoint.save(tmp_path, {**state(1), "evil": Evil()}, keep=2)
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load(path)
    assert not (tmp_path / "executed").exists()


def identity(settings: config.Config, folder: Path) -> dict[str, Any]:
    return checkpoint.identity(settings, shards.read_manifest(folder))


def changed(**train: Any) -> config.Config:
    return dataclasses.replace(
        config.Config(), train=dataclasses.replace(config.TrainConfig(epochs=10), **train)
    )


@pytest.mark.parametrize(
    "train",
    [
        {"learning_rate": 0.5},
        {"precision": "fp32"},
        {"epochs": 9},
        {"schedule": "cosine", "epochs": 11},
    ],
)
def test_settings_that_matter_are_refused_with_the_difference(
    tmp_path: Path, train: dict[str, Any]
) -> None:
    make_shards(tmp_path, {"train": [2]})
    before, now = identity(changed(), tmp_path), identity(changed(**train), tmp_path)
    name, value = next(iter(train.items()))
    with pytest.raises(ValueError, match=rf"train\.{name}: .* -> {value!r}.*--fresh"):
        checkpoint.check_identity(before, now, Path("runs/x"))


@pytest.mark.parametrize(
    "train", [{"loader_workers": 0}, {"keep_checkpoints": 9}, {"device": "cpu"}, {"epochs": 11}]
)
def test_settings_that_change_no_result_are_free(tmp_path: Path, train: dict[str, Any]) -> None:
    make_shards(tmp_path, {"train": [2]})
    now = identity(changed(**train), tmp_path)
    checkpoint.check_identity(identity(changed(), tmp_path), now, Path("runs/x"))
    assert checkpoint.changes(
        config.to_tables(changed(schedule="cosine")),
        config.to_tables(changed(schedule="cosine", epochs=11)),
    ) == ["train.epochs: 10 -> 11"]


def test_every_free_setting_exists() -> None:
    names = [
        f"{section}.{key}"
        for section, table in config.to_tables(config.Config()).items()
        for key in table
    ]
    for free in checkpoint.FREE_SETTINGS:
        assert any(name.startswith(free) for name in names), free


@pytest.mark.parametrize(
    ("what", "other"),
    [("dataset", {"seed": 1}), ("tags", {"num_tags": 6}), ("features", {"n_mels": 9})],
)
def test_other_data_is_refused(tmp_path: Path, what: str, other: dict[str, int]) -> None:
    make_shards(tmp_path / "a", {"train": [3]})
    features = config.FeatureConfig(n_mels=other.pop("n_mels", 8), num_frames=12)
    make_shards(tmp_path / "b", {"train": [3]}, features, **other)
    with pytest.raises(ValueError, match=rf"the {what} of the shards differ"):
        checkpoint.check_identity(
            identity(changed(), tmp_path / "a"), identity(changed(), tmp_path / "b"), Path("x")
        )


def test_the_best_epoch_is_the_first_with_the_highest_score() -> None:
    progress = checkpoint.Progress()
    kept = []
    for epoch, score in enumerate([None, None, 0.6, None, 0.5, 0.6, 0.7], start=1):
        progress.epoch = epoch
        if progress.note_score(score):
            kept.append(epoch)
    assert kept == [1, 3, 7]
    assert (progress.best_roc_auc, progress.best_epoch) == (0.7, 7)
