"""bench/train.py: it understands train.py, and what the targets hang on has its turn first."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import tiny_run
import train_text
from click.testing import CliRunner
from shared_data import REPOSITORY
from train_rows import Row
from train_whole import EPOCH_LINE

import train


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The script, whose name is that of train.py."""
    spec = importlib.util.spec_from_file_location("bench_train", REPOSITORY / "bench" / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_reads_the_line_that_ends_an_epoch(tmp_path: Path) -> None:
    tiny_run.make_config(tmp_path)
    done = CliRunner().invoke(train.main, tiny_run.arguments(tmp_path, "run"))
    assert done.exception is None, done.stderr
    found = [match for line in done.stderr.splitlines() if (match := EPOCH_LINE.match(line))]
    assert [match[1] for match in found] == ["1", "2", "3"]
    assert all(float(match[2]) > 0 and 0 <= float(match[3]) <= 100 for match in found)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_the_targets_hang_on_comes_first(bench: ModuleType, device: str) -> None:
    about = {"device": device, "precision": "bf16", "threads": 2, "num_gpus": 1}
    rows: list[Row] = bench.all_rows(about, 20)
    turn = bench.in_turn(rows)
    assert sorted(row.key for row in turn) == sorted(row.key for row in rows)
    extras = [row.table in ("step", "ranks") and row.rounds == 1 for row in turn]
    assert extras == sorted(extras)
    tables = {row.table for row, is_extra in zip(turn, extras, strict=True) if not is_extra}
    assert tables == {"step", "epoch", "run", "evaluation"}


def test_the_recipe_takes_its_epochs_and_what_a_run_takes_once() -> None:
    line = {"epoch_s": 4.0, "clips": train_text.NUM_CLIPS // 2, "around_s": 30.0}
    assert train_text.recipe_s(line) == train_text.NUM_EPOCHS * 8.0 + 30.0
