"""bench/accuracy.py: its contestants exist, its intervals and its parts are what they say."""

from __future__ import annotations

import argparse
import ast
import dataclasses
from pathlib import Path
from typing import Any

import accuracy
import accuracy_costs as costs
import accuracy_rows as rows
import accuracy_text as text
import numpy as np
import pytest
import torch

from mstag.config import load_config
from mstag.models import mscnn2
from shard_tools.demo.piece import VOCABULARY
from shard_tools.demo.tables import ClipRow, annotations_table, info_table


@pytest.mark.parametrize("name", sorted(rows.CONTESTANTS))
def test_every_contestant_can_be_built(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contestant = rows.CONTESTANTS[name]
    pairs = (change.partition("=") for change in contestant.design)
    changes = {field: ast.literal_eval(value) for field, _, value in pairs}
    monkeypatch.setattr(mscnn2, "DESIGN", dataclasses.replace(mscnn2.DESIGN, **changes))
    config = contestant.config()
    found = costs.gmacs_of(config)
    assert 0 < found["gmacs_chunk"] <= found["gmacs_clip"]
    assert not contestant.without or contestant.without in rows.CONTESTANTS
    with torch.device("meta"):
        assert found["weights"] == sum(w.numel() for w in costs.build(config).parameters())


def test_multiply_adds_are_those_of_the_papers_networks() -> None:
    found = {n: costs.gmacs_of(rows.CONTESTANTS[n].config()) for n in ("mscnn", "short_chunk_res")}
    assert found["mscnn"]["gmacs_chunk"] == pytest.approx(1.067, abs=2e-3)
    assert found["short_chunk_res"]["gmacs_chunk"] == pytest.approx(2.77, abs=1e-2)
    assert found["short_chunk_res"]["gmacs_clip"] == pytest.approx(8 * 2.77, abs=0.1)


def test_a_contestant_that_is_better_everywhere_has_an_interval_above_zero() -> None:
    rng = np.random.default_rng(0)
    other = rng.normal(0.8, 0.01, (3, 2, 400))
    found = accuracy.difference(other + 0.05, other)
    for low, high in found.values():
        assert low == pytest.approx(0.05) and high == pytest.approx(0.05)
    noise = accuracy.difference(rng.normal(0.8, 0.01, (3, 2, 400)), other)
    for low, high in noise.values():
        assert low < 0 < high


def test_artists_are_drawn_with_all_their_clips() -> None:
    artists = [name for name in "abcde" for _ in range(4)]
    weights = accuracy.artist_weights(artists, 50)
    assert weights.shape == (20, 50)
    assert (weights.reshape(5, 4, 50) == weights.reshape(5, 4, 50)[:, :1]).all()
    assert (weights.sum(axis=0) == 20).all()


def test_a_part_keeps_a_share_of_the_training_artists_and_all_others(tmp_path: Path) -> None:
    clips = [
        ClipRow(
            *(i + 1, 1, "piece", f"artist {i // 2}", f"album {i // 2}", i % 2, 29, VOCABULARY[:2]),
            split="train" if i < 40 else "test",
        )
        for i in range(60)
    ]
    whole = tmp_path / "whole"
    for clip in clips:
        (whole / clip.mp3_path).parent.mkdir(parents=True, exist_ok=True)
        (whole / clip.mp3_path).write_bytes(b"sound")
    (whole / "demo.json").write_text("{}")
    (whole / accuracy.INFO).write_text(info_table(clips))
    (whole / accuracy.ANNOTATIONS).write_text(annotations_table(clips, VOCABULARY))
    part = accuracy.part_of(whole, 0.3, tmp_path / "part")
    kept = {row["clip_id"]: row["artist"] for row in accuracy.read_table(part / accuracy.INFO)}
    trained = {artist for clip, artist in kept.items() if int(clip) <= 40}
    assert len(trained) == 6, "of 20"
    assert len(kept) == 12 + 20, "whole artists"
    assert len([*part.rglob("*.mp3")]) == len(kept)
    assert (part / accuracy.ANNOTATIONS).read_text().count("\n") == len(kept) + 1


def test_the_report_says_what_is_met_and_what_is_missed() -> None:
    cost = {"weights": 1e6, "chunk_s": 3.7, "gmacs_chunk": 1.0, "gmacs_clip": 2.0}
    cost |= {"train_clips_per_s": 10.0, "score_clips_per_s": 20.0}

    def contestant(roc_auc: float) -> dict[str, Any]:
        scores = {"roc_auc": roc_auc, "pr_auc": roc_auc / 2, "clips": 480}
        run = {"test": scores, "stranger": scores, "valid": roc_auc, "clips_seen": 8400}
        return {
            **{"what": "", "without": "", "command": "train.py", "costs": cost},
            "runs": dict.fromkeys(range(3), run),
        }

    found = {"mscnn2": contestant(0.94), "mscnn": contestant(0.90)}
    interval = {key: [0.03, 0.05] for key in ("roc_auc", "pr_auc")}
    pair = {"test": interval, "stranger": interval}
    result = {
        "command": "python bench/accuracy.py",
        **{"machine": "m", "device": "cpu", "torch": "2", "epochs": 5},
        "contestants": found,
        "differences": {"mscnn2 - mscnn": pair},
    }
    lines = text.as_text(result).splitlines()
    verdicts = [line for line in lines if "wanted" in line and "over mscnn" in line]
    assert ["met" in line for line in verdicts] == [True, False, False]
    assert "**+0.0400** [+0.0300, +0.0500] (wanted: +0.03; met)" in verdicts[0]


def test_another_budget_has_another_folder(tmp_path: Path) -> None:
    args = argparse.Namespace(folder=tmp_path, epochs=5)
    chosen = rows.CONTESTANTS["mscnn2"]
    other = argparse.Namespace(folder=tmp_path, epochs=6)
    assert accuracy.run_folder(args, chosen, 0) != accuracy.run_folder(other, chosen, 0)
    fewer = rows.CONTESTANTS["mscnn2-10%"]
    command = accuracy.command_of(args, fewer, 0)
    assert {"train.epochs=50", "train.valid_every_epochs=10"} <= set(command), "as many clips seen"


def test_the_config_for_our_network_is_its_contestant() -> None:
    shipped = load_config(rows.ROOT / "configs" / "demo-large-mscnn2.toml")
    contestant = rows.CONTESTANTS["mscnn2"].config()
    named = dataclasses.replace(contestant.dataset, name=shipped.dataset.name)
    assert shipped == dataclasses.replace(contestant, dataset=named)
