"""Runs are refused where they are other ones, and the difference is shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from make_shards import make_shards

from mstag import config
from mstag.data import shards
from mstag.training import identity


def of_run(settings: config.Config, folder: Path) -> dict[str, Any]:
    return identity.of_run(settings, shards.read_manifest(folder))


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
    before, now = of_run(changed(), tmp_path), of_run(changed(**train), tmp_path)
    name, value = next(iter(train.items()))
    with pytest.raises(ValueError, match=rf"train\.{name}: .* -> {value!r}.*--fresh"):
        identity.check_same(before, now, Path("runs/x"))


@pytest.mark.parametrize(
    "train", [{"loader_workers": 0}, {"keep_checkpoints": 9}, {"device": "cpu"}, {"epochs": 11}]
)
def test_settings_that_change_no_result_are_free(tmp_path: Path, train: dict[str, Any]) -> None:
    make_shards(tmp_path, {"train": [2]})
    now = of_run(changed(**train), tmp_path)
    identity.check_same(of_run(changed(), tmp_path), now, Path("runs/x"))
    assert identity.changes(
        config.to_tables(changed(schedule="cosine")),
        config.to_tables(changed(schedule="cosine", epochs=11)),
    ) == ["train.epochs: 10 -> 11"]


def test_every_free_setting_exists() -> None:
    names = [
        f"{section}.{key}"
        for section, table in config.to_tables(config.Config()).items()
        for key in table
    ]
    for free in identity.FREE_SETTINGS:
        assert any(name.startswith(free) for name in names), free


@pytest.mark.parametrize(
    ("what", "other", "shown"),
    [
        ("dataset", {"seed": 1}, "digest [0-9a-f]{12} -> [0-9a-f]{12}"),
        ("tags", {"num_tags": 6}, "added: 'tag 5'"),
        ("tags", {"num_tags": 3}, "removed: 'tag 3', 'tag 4'"),
        ("features", {"n_mels": 9}, "features.n_mels: 8 -> 9"),
    ],
)
def test_other_data_is_refused_with_the_difference(
    tmp_path: Path, what: str, other: dict[str, int], shown: str
) -> None:
    make_shards(tmp_path / "a", {"train": [3]})
    features = config.FeatureConfig(n_mels=other.pop("n_mels", 8), num_frames=12)
    make_shards(tmp_path / "b", {"train": [3]}, features, **other)
    with pytest.raises(ValueError, match=rf"the {what} of the shards differ.*{shown}"):
        identity.check_same(
            of_run(changed(), tmp_path / "a"), of_run(changed(), tmp_path / "b"), Path("x")
        )


def data(tags: list[str], dataset: str = "a") -> dict[str, Any]:
    features = identity.of_model(config.FeatureConfig(), tags)
    return {**features, "dataset": dataset, "dataset_digest": config.digest([dataset, tags])}


@pytest.mark.parametrize(
    ("old", "new", "what", "how"),
    [
        (["a", "b", "c"], ["a", "c", "b"], "tags", "another order: number 2 was 'b' and is 'c'"),
        (["a"], [*"abcdefgh"], "tags", "added: 'b', 'c', 'd', 'e', 'f' and 2 more"),
        (["a", "b"], ["a", "c"], "tags", "added: 'c'; removed: 'b'"),
    ],
)
def test_how_tags_differ(old: list[str], new: list[str], what: str, how: str) -> None:
    found = dict(identity.data_changes(data(old), data(new)))
    assert how in found[what]
    unknown = {**data(old), "tags": None}
    assert dict(identity.data_changes(unknown, data(new)))["tags"].startswith("digest ")


def test_another_dataset_is_named() -> None:
    found = dict(identity.data_changes(data(["a"], "mtt"), data(["a"], "demo")))
    assert list(found) == ["dataset"]
    assert found["dataset"].startswith("'mtt' -> 'demo'; digest ")


def test_many_changed_settings_are_counted(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [2]})
    many = {"learning_rate": 0.5, "seed": 1, "grad_clip": 1.0, "mixup_alpha": 1.0}
    now = changed(**many, schedule="cosine", warmup_steps=3, optimizer="adamw")
    with pytest.raises(ValueError, match=r"; [^;]* and 2 more\), so it cannot go on"):
        identity.check_same(of_run(changed(), tmp_path), of_run(now, tmp_path), Path("x"))
