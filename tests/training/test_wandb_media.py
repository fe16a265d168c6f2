"""What W&B is shown of an evaluation: the rows behind tables, pictures, audio at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_shards import make_shards

from mstag import config, metrics
from mstag.data.store import open_store
from mstag.models import build_model
from mstag.models.predict import Predictions, predict_chunks, score_windows
from mstag.training import wandb_media
from mstag.training.wandb_media import Evaluation

NAMES = ["rock", "flute", "harp"]
HALF = np.full(3, 0.5)


def make_evaluation(labels: Any, scores: Any, mask: Any = None, **more: Any) -> Evaluation:
    known = Predictions(
        ids=[f"clip {i}" for i in range(len(labels))],
        scores=np.array(scores, np.float32),
        labels=np.array(labels, np.uint8),
        mask=None if mask is None else np.array(mask, np.uint8),
    )
    found = metrics.evaluate(known.labels, known.scores, NAMES, known.mask, num_resamples=0)
    return Evaluation({"split": "valid", **found}, known, **more)


def test_the_table_of_tags_says_what_changed_since_the_last_evaluation() -> None:
    labels = [[1, 0, 0], [0, 1, 0]]
    before = make_evaluation(labels, [[0.1, 0.2, 0.3], [0.9, 0.8, 0.3]]).report
    now = make_evaluation(labels, [[0.9, 0.2, 0.3], [0.1, 0.8, 0.3]]).report
    assert wandb_media.tag_rows(now, before) == [
        ["rock", 1, 1.0, 1.0, 1.0],
        ["flute", 1, 1.0, 1.0, 0.0],
        ["harp", 0, None, None, None],
    ]
    assert [row[-1] for row in wandb_media.tag_rows(now, None)] == [None, None, None]


def test_best_and_worst_tags_stand_beside_each_other() -> None:
    labels = [[1, 0, 1], [0, 1, 0], [1, 1, 0]]
    report = make_evaluation(labels, [[0.9, 0.9, 0.5], [0.1, 0.1, 0.5], [0.8, 0.2, 0.4]]).report
    rows = wandb_media.extreme_rows(report)
    assert [(row[1], row[3]) for row in rows] == [
        ("rock", "flute"),
        ("harp", "harp"),
        ("flute", "rock"),
    ]


def test_clips_with_mistakes_come_first_and_unknown_labels_are_none() -> None:
    labels = [[0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]]
    scores = [[0.1, 0.1, 0.1], [0.1, 0.1, 0.9], [0.9, 0.1, 0.1], [0.7, 0.1, 0.1]]
    whole = make_evaluation(labels, scores).predictions
    assert wandb_media.clips_to_show(whole, HALF) == [1, 2, 3, 0]
    assert wandb_media.clip_row(whole, HALF, NAMES, 1) == [
        *("clip 1", 3, "rock, flute", "harp", "rock, flute", "harp 0.90")
    ]
    mask = [[1, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1]]
    partial = make_evaluation(labels, scores, mask).predictions
    assert wandb_media.clips_to_show(partial, HALF)[0] == 2
    assert wandb_media.clip_row(partial, HALF, NAMES, 1)[1:4] == [0, "", ""]


def test_of_many_clips_the_worst_and_some_of_the_best_are_shown() -> None:
    scores = np.linspace(0.51, 0.99, 40)[:, None].repeat(3, axis=1)
    shown = wandb_media.clips_to_show(make_evaluation(np.zeros((40, 3)), scores).predictions, HALF)
    assert shown == [*range(39, 27, -1), 3, 2, 1, 0]


def test_confusions_name_what_is_given_wrongly_most_often_first() -> None:
    labels = [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]
    scores = [[0.9, 0.9, 0.1], [0.9, 0.1, 0.1], [0.1, 0.9, 0.9], [0.1, 0.9, 0.1]]
    evaluation = make_evaluation(labels, scores)
    assert wandb_media.confusion_rows(evaluation, HALF) == [
        ["harp", "flute", 1.0],
        ["rock", "flute", 0.5],
    ]


def test_audio_is_looked_for_below_its_folder_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "x.mp3").write_bytes(bytes(10))
    (tmp_path / "secret").write_bytes(bytes(10))
    (folder / "link").symlink_to(tmp_path / "secret")
    assert wandb_media.find_audio(str(folder), "a/x.mp3") == folder / "a" / "x.mp3"
    for path in ("../secret", str(tmp_path / "secret"), "link", "a", "a/y.mp3", ""):
        assert wandb_media.find_audio(str(folder), path) is None, path
    assert wandb_media.find_audio("", "a/x.mp3") is None
    monkeypatch.setattr(wandb_media, "MAX_AUDIO_BYTES", 9)
    assert wandb_media.find_audio(str(folder), "a/x.mp3") is None


def test_curves_and_pictures_are_made_of_any_labels() -> None:
    for labels, defined in (
        ([[1, 0, 0], [0, 1, 0]], ["roc", "pr", "calibration", "scores"]),
        ([[0, 0, 0], [0, 0, 0]], ["calibration", "scores"]),
    ):
        evaluation = make_evaluation(labels, [[0.9, 0.2, 0.3], [0.1, 0.8, 0.3]])
        panels = wandb_media.tag_curves(evaluation)
        assert list(panels) == defined
        for panel in panels.values():
            table = wandb_media._chart(panel).table
            points = [(key, x, y) for x, key, y in table.data]
            assert points == [
                (name, *point)
                for name, line in panel.lines.items()
                for point in zip(*line, strict=True)
            ]
        pictures = wandb_media.tag_pictures(evaluation, HALF, panels)
        assert set(pictures) == {f"tags/valid/{n}" for n in ("bars", "curves", "confusion_map")}
        assert all(png.startswith(b"\x89PNG") for png in pictures.values())


def test_scores_over_time_have_the_mean_that_scores_the_clip() -> None:
    torch.manual_seed(0)
    model = build_model(config.ModelConfig(hidden_units=8, chunk_frames=64), 16, 160, 5)
    mel = np.random.default_rng(0).standard_normal((16, 160)).astype(np.float16)
    over_time = predict_chunks(model, mel)
    assert over_time.shape == (3, 5)
    assert model.training, "handed back in the mode that it came in"
    with torch.inference_mode():
        whole = score_windows(model.eval(), torch.tensor(mel, dtype=torch.float32)[None, None])
    np.testing.assert_allclose(over_time.mean(axis=0), whole[0].numpy(), atol=1e-6)


def test_spectrograms_are_those_of_the_clips(tmp_path: Path) -> None:
    """Rows are ordered by clip id, and clips of two windows are one row: neither may mix them."""
    from mstag.data.samples import Source
    from mstag.runtime import Ranks
    from mstag.training.score import score_split

    features = config.FeatureConfig(n_mels=16, num_frames=64)
    make_shards(tmp_path, {"train": [4], "valid": [7, 5]}, features)
    store = open_store(tmp_path)
    model = build_model(config.ModelConfig(hidden_units=8), 16, 64, 5)
    _, predictions = score_split(
        model, store, "valid", device=torch.device("cpu"), ranks=Ranks(), num_resamples=0
    )
    assert predictions.ids == sorted(predictions.ids) != []
    assert predictions.numbers is not None
    with Source(store, "valid") as source:
        read = [source.read(int(number)).meta["id"] for number in predictions.numbers]
    assert read == predictions.ids
