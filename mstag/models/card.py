"""The model card of a bundle: what it was trained on, what it reached, where it fails.

Markdown, with the front matter that the Hugging Face Hub reads. It says only what tagger.json
holds, and says so where that is nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DEMO_LIMITS = (
    "It was trained on the demo set: music made by synthesis, with one soundfont, and tagged by "
    "construction. **It is weak on real recordings**: it shows that the chain works. Train on "
    "a real collection before you trust its tags."
)
LIMITS = (
    "Its tags mean what the annotators of its training music meant by them. Scores are not "
    "calibrated probabilities, and music unlike the training music gets tags all the same."
)
FEW_POSITIVES = 10
"""Clips with a tag below which its score says little."""
FRONT_MATTER = """---
library_name: mstag
pipeline_tag: audio-classification
tags:
- music
- music-tagging
---
"""


def model_card(tagger: dict[str, Any]) -> str:
    """Markdown from the content of a bundle's tagger.json."""
    dataset, features, scores = tagger["dataset"], tagger["features"], tagger["scores"]
    name = str(dataset.get("name", "unknown"))
    chunk_frames = tagger["model"]["chunk_frames"]
    in_chunks = f", heard in chunks of {_seconds(chunk_frames, features)}" if chunk_frames else ""
    window = _seconds(features["num_frames"], features)
    return f"""{FRONT_MATTER}
# A music tagger trained on {name}

Made by mstag {tagger["mstag_version"]}. Architecture `{tagger["model"]["name"]}`,
{len(tagger["tags"])} tags, windows of {window} at {features["sample_rate_hz"]} Hz{in_chunks}.
{_origin(dataset.get("fine_tuned_from"))}
    mstag tag --model THIS_FOLDER my-music/

    import mstag
    mstag.load_tagger("THIS_FOLDER").tag("song.mp3")

## Scores

{_scores(scores)}

## Training data

{_table(["", ""], _flat({k: v for k, v in dataset.items() if k != "leaks"}))}

## Leaks

{_leaks(dataset)}

## Limits

{_limits(name, dataset, scores)}

## Tags

{_tags(tagger)}
"""


def _origin(card: dict[str, Any] | None) -> str:
    """What the training began from, if not from nothing."""
    if not card:
        return ""
    return (
        f"Fine-tuned from a tagger of {card['dataset']} with {card['tags']} tags (weights "
        f"`{card['weights'][:16]}`); its backbone: {card['backbone']}.\n"
    )


def _seconds(num_frames: int, features: dict[str, Any]) -> str:
    """How long a spectrogram of so many frames is."""
    return f"{(num_frames - 1) * features['hop_length'] / features['sample_rate_hz']:.1f} s"


def _scores(scores: dict[str, Any]) -> str:
    splits = _splits(scores)
    if not splits:
        return _table(["", ""], _flat(scores))
    rows = [
        (split, _text(found.get("clips")), *_both_aucs(found), _text(found.get("loss")))
        for split, found in splits.items()
    ]
    words = [_table(["split", "clips", "ROC-AUC", "PR-AUC", "loss"], rows)]
    words.append("Macro averages over the tags; brackets are 95 % bootstrap intervals over clips.")
    if "valid" in splits:
        words.append(
            "The weights and the thresholds were chosen on the validation split, which flatters "
            "its scores" + ("; the test split was opened once." if "test" in splits else ".")
        )
    if "epoch" in scores:
        words.append(f"The weights are those after epoch {scores['epoch']}.")
    return "\n\n".join([words[0], " ".join(words[1:])])


def _leaks(dataset: dict[str, Any]) -> str:
    leaks = dataset.get("leaks")
    if not isinstance(leaks, dict) or not all(isinstance(v, dict) for v in leaks.values()):
        leaks = {}
    words = []
    kinds = list(dict.fromkeys(kind for found in leaks.values() for kind in found))
    if kinds:
        rows = [(split, *(_share(found.get(k)) for k in kinds)) for split, found in leaks.items()]
        words.append(_table(["share of clips with one in train too", *kinds], rows))
        words.append(
            "The higher these are, the less the scores say about music that is new. `recording` is "
            "a lower bound, by names."
        )
    if dataset.get("oracle_roc_auc") is not None:
        words.append(
            "An oracle that hears nothing, and knows tracks, albums and artists alone, has a "
            f"ROC-AUC of {_text(dataset['oracle_roc_auc'])} on the test split."
        )
    return "\n\n".join(words) or "Not recorded."


def _limits(name: str, dataset: dict[str, Any], scores: dict[str, Any]) -> str:
    words = [DEMO_LIMITS if "demo" in (name, dataset.get("kind")) else LIMITS]
    splits = _splits(scores)
    split = "test" if "test" in splits else "valid"
    found = splits.get(split, {})
    few = [
        f"{_cell(row['tag'])} ({row['positives']})"
        for row in found.get("per_tag", [])
        if 0 < row["positives"] < FEW_POSITIVES
    ]
    if few:
        words.append(
            f"So few clips of the {split} split have these tags that their scores say little: "
            f"{', '.join(few)}."
        )
    if skipped := [_cell(row["tag"]) for row in found.get("skipped_tags", [])]:
        words.append(f"Without a score, as the {split} split cannot tell: {', '.join(skipped)}.")
    return "\n\n".join(words)


def _tags(tagger: dict[str, Any]) -> str:
    """Every tag; with its scores where there are any, else its name and threshold."""
    splits = _splits(tagger["scores"])
    split = "test" if "test" in splits else "valid"
    per_tag = {row["tag"]: row for row in splits.get(split, {}).get("per_tag", [])}
    rows = []
    for tag, threshold in zip(tagger["tags"], tagger["thresholds"], strict=True):
        row: tuple[str, ...] = (tag, _text(threshold))
        if per_tag:
            found = per_tag.get(tag, {})
            row = (*row, _text(found.get("positives")), *_both_aucs(found))
        rows.append(row)
    header = ["tag", "threshold"]
    if per_tag:
        header += [f"clips with it ({split})", f"ROC-AUC ({split})", f"PR-AUC ({split})"]
    note = "A score at or above its threshold means yes: there F1 was highest on the validation "
    return f"{_table(header, rows)}\n\n{note}split."


def _splits(scores: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {split: found for split, found in scores.items() if isinstance(found, dict)}


def _both_aucs(found: dict[str, Any]) -> tuple[str, str]:
    roc_auc, pr_auc = (
        _text(found.get(key)) + _interval(found.get(f"{key}_ci")) for key in ("roc_auc", "pr_auc")
    )
    return roc_auc, pr_auc


def _interval(ends: list[float] | None) -> str:
    return f" [{_text(ends[0])}, {_text(ends[1])}]" if ends else ""


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested dicts as (dotted name, text) pairs."""
    pairs = []
    for key, value in values.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            pairs.append((f"{prefix}{key}", " to ".join(_text(v) for v in value)))
        else:
            pairs.append((f"{prefix}{key}", _text(value)))
    return pairs


def _text(value: Any) -> str:
    if value is None:
        return "unknown"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _table(header: list[str], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return "Not recorded."
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)])


def _cell(text: str) -> str:
    """Text that stays in its cell, and is neither markup nor HTML."""
    for char in "\\`*_<|":
        text = text.replace(char, f"\\{char}")
    return text.replace("](", "]\\(").replace("\n", " ")
