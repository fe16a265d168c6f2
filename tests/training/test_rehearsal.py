"""--dry-run: everything once, a plan, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run
import torch
from click.testing import CliRunner, Result

import train
from mstag.training import checkpoint, rehearsal, runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config, shards, and a run of one epoch."""
    path = tmp_path_factory.mktemp("tiny")
    tiny_run.make_config(path)
    assert start(path, "run", "train.epochs=1", dry=False).exception is None
    return path


def start(folder: Path, run: str, *settings: str, dry: bool = True) -> Result:
    threads = torch.get_num_threads()
    argv = [*tiny_run.arguments(folder, run, *settings), *["--dry-run"] * dry]
    done = CliRunner().invoke(train.main, argv)
    torch.set_num_threads(threads)
    return done


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every path, with the time and the content of files."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        if path.is_file()
        else (0, b"")
        for path in folder.rglob("*")
    }


def test_a_new_run_is_planned_and_not_begun(folder: Path) -> None:
    before = contents(folder)
    done = start(folder, "new/and/deep")
    assert done.exception is None
    assert contents(folder) == before
    for text in (
        f"run:        {folder}/new/and/deep, starts anew",
        "training:   3 epochs of 6 steps of 4 clips (25 clips), 1 rank(s) on cpu, fp32",
        "evaluation: 10 clips after each epoch",
        "tracking:   W&B disabled",
        "test split: scored once, at the end",
    ):
        assert text in done.stdout, done.stdout


def test_a_run_that_would_go_on_stays_as_it_is(folder: Path) -> None:
    before = contents(folder)
    done = start(folder, "run")
    assert done.exception is None
    assert contents(folder) == before
    assert f"{folder}/run, goes on at step 6" in done.stdout
    assert f"going on with {folder}/run at step 6 of 18" in done.stderr
    # And then it does.
    assert start(folder, "run", dry=False).exception is None
    assert checkpoint.paths(folder / "run" / "checkpoints")[0].name == "step-00000018.pt"
    assert "is finished" in start(folder, "run").stderr
    assert "starts anew" in start(folder, "run2").stdout


def test_fresh_moves_nothing_aside(folder: Path) -> None:
    before = contents(folder)
    argv = [*tiny_run.arguments(folder, "run"), "--fresh", "--dry-run"]
    done = CliRunner().invoke(train.main, argv)
    assert "starts anew" in done.stdout
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("place", "settings", "message"),
    [
        ("tiny.toml", [], "is a file; name a folder"),
        ("tiny.toml/run", [], "is a file; name a folder"),
        ("shards", [], "holds files but no config.toml"),
        ("other", ["train.batch_size=26"], "less than one batch"),
        ("other", ["model.chunk_frames=65"], "model.chunk_frames = 65"),
        ("run", ["train.learning_rate=0.5"], "train.learning_rate: 0.001 -> 0.5"),
    ],
)
def test_what_stops_a_training_stops_a_dry_run(
    folder: Path, place: str, settings: list[str], message: str
) -> None:
    before = contents(folder)
    for dry in (True, False):
        done = start(folder, place, *settings, dry=dry)
        assert isinstance(done.exception, ValueError), done.stdout
        assert message in str(done.exception)
        assert contents(folder) == before


def test_a_checkpoint_that_cannot_be_written_is_found_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    before = contents(folder)
    monkeypatch.setattr(rehearsal.checkpoint, "save", full)
    assert isinstance(start(folder, "other").exception, OSError)
    assert contents(folder) == before


def test_shards_without_a_test_split_are_no_fault(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "has_clips", lambda manifest, split: split != "test")
        assert "test split: none" in start(folder, "other").stdout
