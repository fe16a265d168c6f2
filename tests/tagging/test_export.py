"""The exported program: fed by its labels alone, it scores as the tagger does."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import pytest
import torch
from tiny_tagger import FEATURES, LONGER, TAGS, THRESHOLDS, WINDOW_SAMPLES, make_bundle, music

from mstag.config import FeatureConfig
from mstag.data.features import LogMel, windows
from mstag.models.predict import predict
from mstag.tagging.export import check_same, export_bundle
from mstag.tagging.tagger import Tagger


@pytest.mark.parametrize(("made_for", "chunk_frames"), [(FEATURES, 0), (LONGER, 64), (LONGER, 75)])
def test_program_and_labels_are_all_one_needs(
    tmp_path: Path, made_for: FeatureConfig, chunk_frames: int
) -> None:
    bundle = make_bundle(tmp_path / "bundle", features=made_for, chunk_frames=chunk_frames)
    with warnings.catch_warnings():
        # torch's own: it reads a buffer that it could write to.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        program, labels = export_bundle(bundle, "pt2", tmp_path / "out" / "tagger.pt2")
        read = torch.export.load(io.BytesIO(program.read_bytes()))
    run = read.module()
    assert "device" not in str(read.graph), "the program must run where its weights are put"
    assert (program, labels) == (tmp_path / "out/tagger.pt2", tmp_path / "out/tagger.json")
    known = json.loads(labels.read_text())
    assert known["tags"] == TAGS
    assert known["thresholds"] == THRESHOLDS
    assert known["program"] == "tagger.pt2"
    assert known["input"]["shape"] == ["batch", 1, 16, made_for.num_frames]
    features = FeatureConfig(**known["features"])
    assert features == made_for
    waveform = music(5 * WINDOW_SAMPLES)
    mel = LogMel(features)(waveform)
    cut = [torch.from_numpy(window.mel) for window in windows(mel, features.num_frames)]
    mel_B1MT = torch.stack(cut)[:, None]
    over_time = run(mel_B1MT)
    batch = {"mel": mel_B1MT, "tags": torch.zeros(len(cut), len(TAGS)), "id": [""] * len(cut)}
    tagger = Tagger.load(bundle, "cpu")
    predicted = torch.from_numpy(predict(tagger.bundle.model, [batch], "cpu").scores)
    torch.testing.assert_close(over_time, predicted, atol=1e-6, rtol=0)
    scores = over_time.mean(dim=0)
    expected = torch.from_numpy(tagger.scores(waveform, 8000))
    # The tagger rounds spectrograms to float16, as shards do.
    torch.testing.assert_close(scores, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("to", "out"), [("onnx", "a.onnx"), ("pt2", "a.json"), ("PT2", "a.pt2")])
def test_other_formats_and_endings_are_refused(tmp_path: Path, to: str, out: str) -> None:
    with pytest.raises(ValueError, match=r"no such format; known: pt2|must end in \.pt2"):
        export_bundle(tmp_path, to, tmp_path / out)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_scores_otherwise_is_refused() -> None:
    scores = torch.tensor([[0.1, 0.9]])
    check_same(scores, scores + 1e-5)
    for wrong in (scores + 1e-3, torch.full_like(scores, torch.nan)):
        with pytest.raises(ValueError, match="was not written"):
            check_same(scores, wrong)
