"""The model card of a bundle: what it was trained on, what it reached, where it fails."""

from __future__ import annotations

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


def model_card(tagger: dict[str, Any]) -> str:
    """Markdown from the content of a bundle's tagger.json."""
    dataset, features = tagger["dataset"], tagger["features"]
    name = str(dataset.get("name", "unknown"))
    is_demo = "demo" in (name, dataset.get("kind"))
    chunk_frames = tagger["model"]["chunk_frames"]
    in_chunks = f", heard in chunks of {_seconds(chunk_frames, features)}" if chunk_frames else ""
    window = _seconds(features["num_frames"], features)
    return f"""# A music tagger trained on {name}

Made by mstag {tagger["mstag_version"]}. Architecture `{tagger["model"]["name"]}`,
{len(tagger["tags"])} tags, windows of {window} at {features["sample_rate_hz"]} Hz{in_chunks}.
{_origin(dataset.get("fine_tuned_from"))}
    mstag tag --model THIS_FOLDER my-music/

## Scores

{_table(_flat(tagger["scores"]))}

## Training data

{_table(_flat(dataset))}

`leaks` is the share of valid and test clips whose track, album or artist is in train too:
the higher it is, the less the scores say about music that is new.

## Limits

{DEMO_LIMITS if is_demo else LIMITS}

## Tags

{", ".join(tagger["tags"])}
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
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _table(rows: list[tuple[str, str]]) -> str:
    if not rows:
        return "Not recorded."
    lines = ["| | |", "|---|---|"]
    cells = (tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows)
    return "\n".join([*lines, *(f"| {key} | {value} |" for key, value in cells)])
