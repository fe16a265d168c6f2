"""What a run says of its code, its data and its network."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from make_shards import make_shards
from shared_data import REPOSITORY

from mstag import config
from mstag.data.store import open_store
from mstag.models import build_model
from mstag.training import lineage

FEATURES = config.FeatureConfig(n_mels=16, num_frames=128)


def git(folder: Path, *argv: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *argv], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_and_whether_it_is_what_ran(tmp_path: Path) -> None:
    assert lineage.git_state(tmp_path) is None, "no repository"
    git(tmp_path, "init")
    assert lineage.git_state(tmp_path) is None, "no commit yet"
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    state = lineage.git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert not state["dirty"]
    (tmp_path / "untracked").write_text("1")
    assert lineage.git_state(tmp_path) == state, "data and runs beside the code change nothing"
    (tmp_path / "a").write_text("2")
    assert lineage.git_state(tmp_path) == {**state, "dirty": True}
    (tmp_path / "b").mkdir()
    assert lineage.git_state(tmp_path / "b") is None, "the repository is somebody else's"


def test_without_git_there_is_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert lineage.git_state(tmp_path) is None


def test_a_network_is_counted_with_all_its_chunks(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [2], "valid": [1], "test": [1]}, FEATURES)
    manifest = open_store(tmp_path).manifest
    before = torch.random.get_rng_state()
    whole = lineage.network_card(config.ModelConfig(hidden_units=8), manifest)
    chunks = lineage.network_card(config.ModelConfig(hidden_units=8, chunk_frames=64), manifest)
    assert torch.equal(torch.random.get_rng_state(), before), "the training's lots are its own"
    real = build_model(config.ModelConfig(hidden_units=8), 16, 128, 5)
    assert whole["weights"] == sum(weights.numel() for weights in real.parameters())
    from torch.utils.flop_counter import FlopCounterMode

    real.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        real(torch.zeros(1, 1, 16, 128))
    assert whole["flops_per_clip"] == counter.get_total_flops() > 0
    assert chunks["flops_per_clip"] == pytest.approx(whole["flops_per_clip"], rel=0.05)


def test_the_settings_say_what_a_score_is_worth(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [2], "valid": [1], "test": [1]}, FEATURES)
    store = open_store(tmp_path)
    shown = lineage.run_settings(config.Config(), store, device="cpu")
    assert json.loads(json.dumps(shown))["device"] == "cpu"
    assert shown["train"]["epochs"] == config.TrainConfig().epochs
    assert shown["dataset_digest"] == store.manifest.digest
    data = shown["data"]
    assert data["clips"] == {"train": 2, "valid": 1, "test": 1}
    assert data["split_rule"] == "made by a test"
    assert {"leaks", "oracle_roc_auc"} <= set(data)
    assert data["tags"] == [f"tag {i}" for i in range(5)]


def test_seeds_and_folds_of_a_recipe_share_its_name() -> None:
    def recipe(*changes: str) -> str:
        path = REPOSITORY / "configs" / "mtg-jamendo.toml"
        return lineage.recipe(config.load_config(path, changes))

    for free in ("train.seed=7", "dataset.split_number=3", "train.device=cpu", "wandb.project=x"):
        assert recipe(free) == recipe(), free
    for other in ("train.epochs=7", "model.dropout=0.1", "dataset.split=artist"):
        assert recipe(other) != recipe(), other
    assert recipe().startswith("mtg-jamendo-")
