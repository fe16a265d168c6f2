"""eval.py: the same score however it is computed, one line for mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
from click.testing import CliRunner, Result
from make_shards import make_shards

import train

script = tiny_run.load_eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config, shards and a finished run; tests that write take a run of their own."""
    path = tmp_path_factory.mktemp("tiny")
    tiny_run.make_config(path)
    done = CliRunner().invoke(train.main, tiny_run.arguments(path, "run", "train.epochs=2"))
    assert done.exception is None
    return path


def invoke(folder: Path, source: str, *argv: str) -> Result:
    shards = ["--shards", str(folder / "shards")]
    return CliRunner().invoke(script.main, [str(folder / source), *shards, *argv])


def report_of(done: Result) -> dict[str, Any]:
    assert done.exception is None
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def without_loss(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key != "loss"}


def test_it_repeats_what_training_wrote_at_its_end(folder: Path) -> None:
    written = json.loads((folder / "run" / "eval-test.json").read_text())
    assert report_of(invoke(folder, "run", "--json", "-")) == written
    assert report_of(invoke(folder, "run/best", "--json", "-")) == written, (
        "the bundle stands alone"
    )


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_score_does_not_depend_on_the_batch(folder: Path, batch_size: int) -> None:
    first = report_of(invoke(folder, "run", "--json", "-"))
    with np.load(folder / "run" / "scores-test.npz", allow_pickle=False) as arrays:
        scores, ids = arrays["scores"], arrays["ids"]
    again = report_of(invoke(folder, "run", "--json", "-", "--batch-size", str(batch_size)))
    with np.load(folder / "run" / "scores-test.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["ids"], ids)
        np.testing.assert_allclose(arrays["scores"], scores, rtol=0, atol=1e-6)
    assert without_loss(again) == without_loss(first)
    assert again["loss"] == pytest.approx(first["loss"], abs=1e-6)


def test_the_files_of_a_run_and_of_a_bundle(folder: Path, tmp_path: Path) -> None:
    done = invoke(folder, "run", "--split", "valid", "--num-resamples", "0")
    assert done.stdout.startswith("valid: ROC-AUC")
    report = json.loads((folder / "run" / "eval-valid.json").read_text())
    assert report["roc_auc_ci"] is None
    assert (folder / "run" / "scores-valid.npz").exists()
    before = sorted((folder / "run" / "best").iterdir())
    path = tmp_path / "out.json"
    invoke(folder, "run/best", "--split", "train", "--json", str(path))
    assert json.loads(path.read_text())["split"] == "train"
    assert sorted((folder / "run" / "best").iterdir()) == before, "a bundle is not written to"


def test_the_scores_of_another_dataset_stand_beside_the_runs_own(
    folder: Path, tmp_path: Path
) -> None:
    make_shards(tmp_path / "shards", {"test": [9]}, tiny_run.FEATURES, seed=5)
    path = tmp_path / "shards" / "manifest.json"
    own = json.loads(path.read_text())["dataset"]
    path.write_text(path.read_text().replace(f'"{own}"', '"stranger"'))
    shutil.copytree(folder / "run", tmp_path / "run")
    before = (folder / "run" / "eval-test.json").read_bytes()
    assert invoke(tmp_path, "run").exception is None
    assert (tmp_path / "run" / "eval-test.json").read_bytes() == before
    report = json.loads((tmp_path / "run" / "eval-test-stranger.json").read_text())
    assert (report["split"], report["dataset"], report["clips"]) == ("test", "stranger", 9)
    assert (tmp_path / "run" / "scores-test-stranger.npz").exists()


def test_mistakes_are_one_clear_error(folder: Path, tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", tiny_run.SIZES, tiny_run.FEATURES, num_tags=6)
    (tmp_path / "run").symlink_to(folder / "run")
    for done, message in [
        (invoke(tmp_path, "run"), "trained on other tags"),
        (invoke(folder, "run", "--split", "tset"), "no clips in split 'tset'"),
        (invoke(folder, "run", "--watch", "--split", "test"), "no test any more"),
        (invoke(folder, "nothing"), "nothing"),
        (invoke(folder, "nothing", "--watch", "--patience", "0.001"), "no training has begun"),
        (invoke(folder, "run/best", "--watch"), "is not a run"),
    ]:
        assert isinstance(done.exception, ValueError), done
        assert message in str(done.exception)
