"""Checkpoints: whole or passed over, and refused where the run is another one."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from make_shards import make_shards
from shared_data import REPOSITORY
from torch import nn

import train
from mstag import config
from mstag.data import shards
from mstag.models import mscnn
from mstag.training import checkpoint, identity

VERSION_1 = Path(__file__).parent / "checkpoint_v1.pt"
"""Step 8 of a run of tests/tiny_run.py, with TinyNetwork, by the code of format version 1."""


class TinyNetwork(nn.Sequential):
    """The network of that checkpoint."""

    def __init__(self, settings: Any, n_mels: int, num_frames: int, num_tags: int) -> None:
        layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        super().__init__(*layers, nn.Flatten(), nn.Linear(2, num_tags))
        self.num_frames = num_frames


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


def hinder(path: Path, how: str) -> None:
    """Puts something that is no readable file in the place of a checkpoint."""
    path.unlink()
    if how == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)  # cannot be opened, by root neither


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


@pytest.mark.parametrize("how", ["folder", "unreadable"])
def test_what_cannot_be_read_is_passed_over_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    checkpoint.save(tmp_path, state(1), keep=2)
    hinder(checkpoint.save(tmp_path, state(2), keep=2), how)
    newest = checkpoint.load_newest(tmp_path)
    assert newest is not None
    assert newest["step"] == 1
    assert "step-00000002.pt: cannot be read (" in caplog.text
    for step in (3, 4, 5):  # nor does it stop the run from saving and tidying up
        checkpoint.save(tmp_path, state(step), keep=1)
    assert checkpoint.load_newest(tmp_path)["step"] == 5  # type: ignore[index]


@pytest.fixture(scope="module")
def whole_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return checkpoint.save(tmp_path_factory.mktemp("whole"), state(1), keep=1).read_bytes()


@given(data=st.data())
def test_no_cut_and_no_flipped_bit_goes_unnoticed(
    whole_bytes: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(whole_bytes)
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "step-00000001.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cut short or damaged"):
        checkpoint.load(path)


def test_a_damaged_one_of_a_later_step_costs_no_other(tmp_path: Path) -> None:
    """A run that passed over step 9 goes on from an earlier one, and keeps what it then saves."""
    damage(checkpoint.save(tmp_path, state(9), keep=1), "cut")
    for step in (6, 7, 8):
        checkpoint.save(tmp_path, state(step), keep=1)
    assert [checkpoint.step_of(path) for path in checkpoint.paths(tmp_path)] == [9, 8]
    checkpoint.save(tmp_path, state(10), keep=1)
    assert [checkpoint.step_of(path) for path in checkpoint.paths(tmp_path)] == [10]


def test_a_save_that_was_killed_leaves_nothing_for_good(tmp_path: Path) -> None:
    leftover = tmp_path / ".step-00000001.pt.abcdefgh.tmp"
    leftover.write_bytes(b"PK")
    checkpoint.save(tmp_path, state(2), keep=2)
    assert not leftover.exists()


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from mstag.training import checkpoint, identity
state = {"step": 2, "w": torch.zeros(100_000), "x": torch.ones(9)}
for size in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        checkpoint.save(Path(sys.argv[1]), state, keep=1)
    except OSError as error:
        print(error.strerror)
"""


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the write that would exceed it fail, as a full disk does."""
    before = checkpoint.save(tmp_path, state(1), keep=1)
    sizes = ["0", "100", "150000", "400000", "401200"]
    argv = [sys.executable, "-c", FULL_DISK, str(tmp_path), *sizes]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(sizes)
    for line in done.stdout.splitlines():
        assert "step-00000002.pt: cannot be written (File too large)" in line
        assert "the checkpoint of step 1 stays" in line
        assert "make room" in line
    assert list(tmp_path.iterdir()) == [before]
    assert checkpoint.load(before)["step"] == 1


def test_an_interrupt_while_saving_is_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.hashlib, "sha256", InterruptedHash)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, state(1), keep=1)
    assert list(tmp_path.iterdir()) == []


class InterruptedHash:
    def update(self, data: object) -> None:
        raise KeyboardInterrupt


def test_nothing_to_go_on_with(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path / "none") is None
    damage(checkpoint.save(tmp_path, state(1), keep=2), "cut")
    with pytest.raises(ValueError, match=r"none of its 1 checkpoints is whole.*--fresh"):
        checkpoint.load_newest(tmp_path)


def test_a_newer_format_is_refused_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, state(1), keep=2)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", checkpoint.FORMAT_VERSION + 1)
    path = checkpoint.save(tmp_path, state(2), keep=2)
    monkeypatch.undo()
    for read in (lambda: checkpoint.load(path), lambda: checkpoint.load_newest(tmp_path)):
        with pytest.raises(checkpoint.NewerFormatError, match=r"version 3, .* reads up to 2.*--fr"):
            read()


@pytest.mark.parametrize("version", [None, 0, "2", [1]])
def test_a_format_that_never_was_is_refused(tmp_path: Path, version: Any) -> None:
    path = written(tmp_path / "step-00000001.pt", {"format_version": version, "step": 1})
    with pytest.raises(ValueError, match="not written by mstag"):
        checkpoint.load(path)


def written(path: Path, content: Any) -> Path:
    """Whatever torch.save takes, with our trailer."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getvalue()
    path.write_bytes(body + checkpoint.MARK + hashlib.sha256(body).digest())
    return path


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    path = checkpoint.save(tmp_path, {**state(1), "evil": Evil()}, keep=2)
    with pytest.raises(ValueError, match="torch refuses it: UnpicklingError"):
        checkpoint.load(path)
    assert not (tmp_path / "executed").exists()


def test_version_1_is_upgraded(tmp_path: Path) -> None:
    make_shards(tmp_path, tiny_run.SIZES, tiny_run.FEATURES)
    manifest = shards.read_manifest(tmp_path)
    old = checkpoint.load(VERSION_1)
    assert (old["format_version"], old["step"], old["dataset"]) == (2, 8, "synthetic")
    assert old["features"] == dataclasses.asdict(tiny_run.FEATURES)
    assert old["tags"] is None
    engine = old["engine"]
    assert (engine["ema"], engine["news"], engine["bad_steps"]) == (None, [], [])
    assert engine["sums"].shape == (1, 3)
    assert checkpoint.Progress(**old["progress"]).clips_seen == 32
    # Settings that it does not know yet count as their defaults.
    now = identity.of_run(config.from_tables(old["config"]), manifest)
    assert set(now["config"]["train"]) > set(old["config"]["train"])
    old["dataset_digest"] = manifest.digest  # another NumPy may draw other clips
    identity.check_same(old, now, Path("runs/x"))
    now["config"]["train"]["ema_decay"] = 0.9
    with pytest.raises(ValueError, match=r"\(train\.ema_decay: 0\.0 -> 0\.9\)"):
        identity.check_same(old, now, Path("runs/x"))


def test_training_goes_on_from_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_run.make_config(tmp_path)
    monkeypatch.setattr(mscnn, "MultiScaleCnn", TinyNetwork)
    content = torch.load(VERSION_1, weights_only=True)
    assert content["format_version"] == 1
    digest = shards.read_manifest(tmp_path / "shards").digest
    content["dataset_digest"] = content["loader"]["dataset"] = digest
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    written(folder / "step-00000008.pt", content)
    settings = config.to_toml(config.from_tables(content["config"]))
    (tmp_path / "run" / "config.toml").write_text(settings)
    done = CliRunner().invoke(train.main, tiny_run.arguments(tmp_path, "run"))
    assert done.exception is None, done.stderr
    steps = [line["step"] for line in tiny_run.metrics_of(tmp_path / "run")]
    assert steps[0] > 8
    assert steps[-1] == 18


def test_the_best_epoch_is_the_first_with_the_highest_score() -> None:
    progress = checkpoint.Progress()
    kept = []
    for epoch, score in enumerate([None, None, 0.6, None, 0.5, 0.6, 0.7], start=1):
        progress.epoch = epoch
        if progress.note_score(score):
            kept.append(epoch)
    assert kept == [1, 3, 7]
    assert (progress.best_roc_auc, progress.best_epoch) == (0.7, 7)


@pytest.mark.parametrize(
    ("every", "patience", "scored"),
    [(1, 0, [1, 2, 3, 4, 5]), (2, 0, [2, 4, 5]), (7, 0, [5]), (4, 3, [3, 4, 5])],
)
def test_the_epoch_that_may_be_the_last_is_always_scored(
    every: int, patience: int, scored: list[int]
) -> None:
    settings = config.TrainConfig(epochs=5, valid_every_epochs=every, early_stop_epochs=patience)
    progress, found = checkpoint.Progress(), []
    while not progress.is_over(settings):
        is_scored = progress.is_scored_next(settings)
        progress.epoch += 1
        if is_scored:
            found.append(progress.epoch)
            progress.note_score(0.5)
    assert found == scored
