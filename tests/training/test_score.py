"""Scoring a split: every sample once, windows averaged, files that anyone can read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_shards import TINY, make_samples, make_shards
from torch import Tensor, nn

from mstag.data import shards, tars
from mstag.data.stream import ShardLoader
from mstag.runtime import Ranks
from mstag.training import score

CPU = torch.device("cpu")


class LoudBands(nn.Module):
    """Scores tag i by band i, where make_samples is louder for it; two frames, so not perfectly."""

    num_frames = TINY.num_frames

    def forward(self, x_B1MT: Tensor) -> Tensor:
        return x_B1MT[:, 0, :5, :2].mean(dim=2)


def scored(folder: Path, split: str = "test", **options: Any) -> Any:
    return score.score_split(LoudBands(), folder, split, device=CPU, ranks=Ranks(), **options)


def test_scores_are_the_models_and_ordered_by_id(tmp_path: Path) -> None:
    content = make_shards(tmp_path, {"test": [9, 3, 14]})["test"]
    report, predictions = scored(tmp_path, num_resamples=50)
    assert report["split"] == "test"
    assert report["clips"] == 26
    assert 0.8 < report["roc_auc_ci"][0] < report["roc_auc"] < 1
    by_id = {sample.meta["id"]: sample for sample in content}
    assert predictions.ids == sorted(by_id)
    for clip_id, scores, labels in zip(
        predictions.ids, predictions.scores, predictions.labels, strict=True
    ):
        logits = by_id[clip_id].mel[:5, :2].astype(np.float32).mean(axis=1)
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits)), atol=1e-6)
        assert np.array_equal(labels, by_id[clip_id].tags)


def test_scoring_can_be_stopped_between_batches(tmp_path: Path) -> None:
    make_shards(tmp_path, {"test": [9, 3, 14]})
    times = []
    scored(tmp_path, num_resamples=0, batch_size=8, between_batches=lambda: times.append(1))
    assert len(times) == 4

    def stop() -> None:
        raise SystemExit(143)

    with pytest.raises(SystemExit, match="143"):
        scored(tmp_path, num_resamples=0, between_batches=stop)


@pytest.mark.parametrize("batch_size", [1, 4, 26, 100])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_and_threads_change_nothing(
    tmp_path: Path, batch_size: int, num_workers: int
) -> None:
    make_shards(tmp_path, {"test": [9, 3, 14]})
    report, predictions = scored(tmp_path, num_resamples=20)
    again, other = scored(
        tmp_path, num_resamples=20, batch_size=batch_size, num_workers=num_workers
    )
    np.testing.assert_allclose(predictions.scores, other.scores, rtol=0, atol=1e-6)
    assert again.pop("loss") == pytest.approx(report.pop("loss"), abs=1e-6)
    assert again == report


def windows_of_two_clips(folder: Path) -> list[tars.Sample]:
    """Three samples of clip "a" and one of clip "b"; each clip has one label vector."""
    samples = make_samples("w", 4)
    for number, sample in enumerate(samples):
        clip_id = "b" if number == 3 else "a"
        samples[number] = tars.Sample(
            sample.key, sample.mel, samples[0 if clip_id == "a" else 3].tags, {"id": clip_id}
        )
    make_shards(folder, {"train": [1]})
    made = shards.read_manifest(folder)
    rows = tars.write_shard(folder / "test-000000.tar", samples)
    entry = shards.entry_of(folder / "test-000000.tar", 4)
    split = shards.Split(4, [entry], shards.write_index(folder, "test", rows))
    shards.write_manifest(
        folder,
        shards.Manifest(
            dataset=made.dataset,
            features=made.features,
            tags=made.tags,
            splits={**made.splits, "test": split},
            split_rule="",
            leaks={},
            oracle_roc_auc=None,
            skipped=[],
            mstag_version="0",
        ),
    )
    return samples


def test_the_windows_of_a_clip_are_averaged(tmp_path: Path) -> None:
    samples = windows_of_two_clips(tmp_path)
    report, predictions = scored(tmp_path, num_resamples=0)
    assert predictions.ids == ["a", "b"]
    assert report["clips"] == 2
    logits = np.stack([s.mel[:5, :2].astype(np.float32).mean(axis=1) for s in samples])
    expected = (1 / (1 + np.exp(-logits)))[:3].mean(axis=0)
    np.testing.assert_allclose(predictions.scores[0], expected, atol=1e-6)


def test_a_loader_that_misses_or_repeats_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shards(tmp_path, {"test": [6, 6]})

    class Missing(ShardLoader):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            return (batch for number, batch in enumerate(super().__iter__()) if number != 1)

    class Swapping(ShardLoader):
        """Hands one sample out twice and another not at all: the count is right."""

        def __iter__(self) -> Iterator[dict[str, Any]]:
            for batch in super().__iter__():
                numbers = np.where(batch["number"] == 7, 3, batch["number"])
                yield {**batch, "number": numbers}

    for loader, message in (
        (Missing, r"8 samples were scored, 12 are stored; missed 4"),
        (Swapping, r"missed 1 \[7\], more than once 1 \[3\]"),
    ):
        monkeypatch.setattr(score, "ShardLoader", loader)
        with pytest.raises(RuntimeError, match=message):
            scored(tmp_path, batch_size=4)


def test_a_split_without_clips_is_refused(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [4], "test": []})
    for split in ("test", "valid"):
        with pytest.raises(ValueError, match=f"no clips in split '{split}'"):
            scored(tmp_path, split)


@pytest.mark.parametrize("partial", [False, True])
def test_what_is_written(tmp_path: Path, partial: bool) -> None:
    make_shards(tmp_path / "shards", {"test": [8]}, TINY, partial=partial)
    manifest = shards.read_manifest(tmp_path / "shards")
    report, predictions = scored(tmp_path / "shards", num_resamples=0)
    full = score.full_report(report, manifest, "0123")
    score.write_eval(tmp_path, full, predictions)
    assert json.loads((tmp_path / "eval-test.json").read_text()) == full
    assert full["checkpoint_digest"] == "0123"
    assert full["dataset_digest"] == manifest.digest
    assert full["features_digest"] == manifest.features_digest
    assert full["tags_digest"] == manifest.tags_digest
    with np.load(tmp_path / "scores-test.npz", allow_pickle=False) as arrays:
        assert list(arrays["ids"]) == predictions.ids
        assert np.array_equal(arrays["scores"], predictions.scores)
        assert np.array_equal(arrays["labels"], predictions.labels)
        assert ("mask" in arrays) == partial


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        score.write_report(tmp_path / "x.json", {"roc_auc": float("nan")})
    assert not (tmp_path / "x.json").exists()
