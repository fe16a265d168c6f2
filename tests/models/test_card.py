"""The model card: everything that a reader must know, and nothing that was not measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from mstag import metrics
from mstag.models.card import model_card
from mstag.training.score import for_bundle

TAGS = ["guitar", "a|b", "never"]


def report(split: str, num_resamples: int) -> dict[str, Any]:
    rng = np.random.default_rng(len(split))
    labels = (rng.random((40, 3)) < [0.5, 0.1, 0.0]).astype(np.uint8)
    labels[:2, :2] = [[1, 1], [0, 0]]
    scores = np.clip(0.3 * labels + 0.6 * rng.random((40, 3)), 0, 1)
    found = metrics.evaluate(labels, scores, TAGS, num_resamples=num_resamples)
    return for_bundle(found)


def tagger(**changes: Any) -> dict[str, Any]:
    leaks = {"track": 0.0, "artist": 0.25}
    content = {
        "mstag_version": "0.1.0",
        "model": {"name": "mscnn", "chunk_frames": 0},
        "features": {"num_frames": 628, "hop_length": 512, "sample_rate_hz": 11025},
        "tags": TAGS,
        "thresholds": [0.5, 0.25, 0.5],
        "dataset": {
            "name": "mtt",
            "kind": "mtt",
            "digest": "d1",
            "split_rule": "folders",
            "clips": {"train": 100, "valid": 40, "test": 40},
            "leaks": {"valid": leaks, "test": leaks},
            "oracle_roc_auc": 0.7512,
        },
        "scores": {"epoch": 3, "valid": report("valid", 0), "test": report("test", 100)},
    }
    return {**content, **changes}


def rows(card: str, first: str) -> list[str]:
    return [line for line in card.splitlines() if line.startswith(f"| {first}")]


def test_it_says_data_split_leaks_scores_and_limits() -> None:
    content = tagger()
    card = model_card(content)
    test = content["scores"]["test"]
    low, high = test["roc_auc_ci"]
    assert f"| test | 40 | {test['roc_auc']:.4f} [{low:.4f}, {high:.4f}] |" in card
    assert f"| valid | 40 | {content['scores']['valid']['roc_auc']:.4f} | " in card
    assert "| split\\_rule | folders |" in card
    assert "| clips.train | 100 |" in card
    assert "| test | 0.0% | 25.0% |" in card
    assert "ROC-AUC of 0.7512" in card
    guitar = test["per_tag"][0]
    (line,) = rows(card, "guitar")
    assert line.startswith(f"| guitar | 0.5000 | {guitar['positives']} | {guitar['roc_auc']:.4f} [")
    (line,) = rows(card, "a\\|b")
    assert line.count(" | ") == 4
    assert rows(card, "never") == ["| never | 0.5000 | 0 | unknown | unknown |"]
    assert "Without a score, as the test split cannot tell: never." in card
    assert f"a\\|b ({test['per_tag'][1]['positives']})" in card
    assert "the test split was opened once" in card
    assert "weak on real recordings" not in card


def test_before_the_test_split_was_opened_it_shows_the_validation() -> None:
    content = tagger()
    del content["scores"]["test"]
    card = model_card(content)
    assert "| tag | threshold | clips with it (valid) |" in card
    assert "opened once" not in card


def test_what_is_not_known_is_said() -> None:
    bare = tagger(dataset={}, scores={})
    card = model_card(bare)
    assert card.count("Not recorded.") == 3
    assert "| guitar | 0.5000 |" in card
    old = tagger(scores={"epoch": 1, "valid": {"roc_auc": 0.75, "pr_auc": 0.5, "loss": 1.0}})
    assert "| valid | unknown | 0.7500 | 0.5000 | 1.0000 |" in model_card(old)


def test_the_demo_is_weak_on_real_recordings() -> None:
    card = model_card(tagger(dataset={"name": "mine", "kind": "demo"}))
    assert "weak on real recordings" in card


def test_the_hub_reads_what_stands_in_front() -> None:
    front = model_card(tagger()).split("---\n")
    assert front[0] == ""
    assert "library_name: mstag" in front[1]
    assert "\n# A music tagger trained on mtt\n" in front[2]
