"""Exported programs: fed by their labels alone, they score as the tagger does."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from tiny_tagger import FEATURES, LONGER, TAGS, THRESHOLDS, make_bundle, music

from mstag.config import FeatureConfig
from mstag.data.features import LogMel
from mstag.models.bundle import load_bundle, save_bundle
from mstag.tagging import onnx_program
from mstag.tagging.export import SUFFIXES, check_same, check_target, export_bundle, made_up_piece
from mstag.tagging.export_labels import About
from mstag.tagging.tagger import Tagger

RATE_HZ = FEATURES.sample_rate_hz
WIDER = dataclasses.replace(LONGER, n_mels=32)
Exported = tuple[Path, Path, dict[str, Any]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def from_waveform(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    out = tmp_path_factory.mktemp("onnx") / "tagger.onnx"
    about = About(author="Ann", email="ann@example.org", link="https://example.org/tagger.onnx")
    program, labels = export_bundle(bundle, "onnx", out, about)
    return program, bundle, json.loads(labels.read_text())


def session_of(program: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(program), options, ["CPUExecutionProvider"])


def cut(waveform: NDArray[np.float32], known: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """A piece as ``windows.how`` of the labels says, which is all that this knows."""
    windows, hop = known["windows"], known["features"]["hop_length"]
    half = windows["pad_samples"]
    audio = np.pad(waveform, (0, max(0, half + 1 - len(waveform))))
    total = 1 + len(audio) // hop
    padded = np.pad(audio, half, mode=windows["pad_mode"])
    pieces, frames = [], []
    for start in range(0, total, windows["step_frames"]):
        left = total - start
        if start and left < windows["min_last_frames"]:
            break
        at = start // windows["step_frames"] * windows["step_samples"]
        piece = padded[at : at + windows["num_samples"]]
        pieces.append(np.pad(piece, (0, windows["num_samples"] - len(piece))))
        frames.append(min(left, windows["num_frames"]))
    return {"waveform": np.stack(pieces), "num_frames": np.array(frames)}


@pytest.mark.parametrize("num_windows", [0.002, 0.4, 1.0, 3.47, 3.49])
def test_from_waveforms_of_any_length_it_scores_as_the_tagger(
    from_waveform: Exported, num_windows: float
) -> None:
    program, bundle, known = from_waveform
    waveform = music(round(num_windows * FEATURES.num_frames * FEATURES.hop_length), seed=7)
    outputs = session_of(program).run(["scores", "embeddings"], cut(waveform, known))
    scores, embeddings = (output.mean(axis=0) for output in outputs)
    tagger = Tagger.load(bundle, "cpu")
    np.testing.assert_allclose(scores, tagger.scores(waveform, RATE_HZ), atol=2e-5)
    expected = tagger.embeddings(waveform, RATE_HZ)
    np.testing.assert_allclose(embeddings, expected, atol=1e-3 * np.abs(expected).max())


def test_windows_alone_are_enough_and_the_file_stands_alone(from_waveform: Exported) -> None:
    program, _, known = from_waveform
    session = session_of(program)
    assert [given.name for given in session.get_inputs()] == ["waveform"]
    waveform = music(3 * FEATURES.num_frames * FEATURES.hop_length)
    inputs = cut(waveform, known)
    (expected,) = session.run(["scores"], inputs)
    whole = inputs["waveform"][inputs["num_frames"] == FEATURES.num_frames]
    (found,) = session.run(["scores"], {"waveform": whole})
    assert len(whole) == 3
    np.testing.assert_array_equal(found, expected[:3])
    assert json.loads(session.get_modelmeta().custom_metadata_map["mstag"]) == known


def test_what_is_in_the_graph(from_waveform: Exported) -> None:
    """No operator that few runtimes have, the rounding of shards, no paths of this machine."""
    program, _, _ = from_waveform
    model = onnx.load(program)
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"STFT", "DFT", "Loop", "If", "Scan", "Dropout"}
    casts = [node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"]
    assert casts == [onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT]
    assert {(opset.domain, opset.version) for opset in model.opset_import} == {("", 18)}
    assert model.ir_version == 8
    content = program.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(__file__).parents[2]).encode() not in content


def test_labels_are_essentias_and_ours(from_waveform: Exported) -> None:
    program, bundle, known = from_waveform
    assert known["classes"] == TAGS
    assert known["thresholds"] == THRESHOLDS
    assert (known["author"], known["email"]) == ("Ann", "ann@example.org")
    assert known["link"] == "https://example.org/tagger.onnx"
    assert known["weights_sha256"] == load_bundle(bundle).digest
    assert known["program"] == program.name == "tagger.onnx"
    for key in ("name", "type", "version", "description", "release_date", "citation"):
        assert isinstance(known[key], str)
    assert known["dataset"]["name"] == "synthetic"
    assert known["model_types"] == ["onnx"]
    fields = {"sample_rate_hz", "n_fft", "hop_length", "n_mels", "recipe", "num_frames"}
    assert FeatureConfig(**{key: known["features"][key] for key in fields}) == FEATURES
    session = session_of(program)
    graph = {node.name: node for node in (*session.get_inputs(), *session.get_outputs())}
    graph |= {node.name: node for node in session.get_overridable_initializers()}
    described = [*known["schema"]["inputs"], *known["schema"]["outputs"]]
    assert {node["name"]: node["shape"] for node in described} == {
        name: node.shape for name, node in graph.items()
    }
    purposes = [output["output_purpose"] for output in known["schema"]["outputs"]]
    assert purposes == ["predictions", "embeddings"]


@pytest.mark.parametrize(
    ("to", "made_for", "chunk_frames", "network"),
    [
        ("onnx-mel", LONGER, 64, "mscnn"),
        ("onnx-mel", WIDER, 64, "mscnn2"),
        ("pt2", FEATURES, 0, "mscnn"),
        ("pt2", WIDER, 64, "mscnn2"),
    ],
)
def test_from_spectrograms_it_scores_as_the_tagger(
    tmp_path: Path, to: str, made_for: FeatureConfig, chunk_frames: int, network: str
) -> None:
    bundle = make_bundle(
        tmp_path / "bundle", features=made_for, chunk_frames=chunk_frames, name=network
    )
    out = tmp_path / "out" / f"tagger{SUFFIXES[to]}"
    program, labels = export_bundle(bundle, to, out)
    assert sorted(out.parent.iterdir()) == sorted([program, labels])
    known = json.loads(labels.read_text())
    (described,) = known["schema"]["inputs"]
    num_frames = made_for.num_frames
    assert described["shape"] == ["batch", 1, made_for.n_mels, num_frames]
    waveform = music(round(2.7 * num_frames * made_for.hop_length), seed=3)
    mel = LogMel(made_for)(waveform)
    padding = 3 * num_frames - mel.shape[1]
    padded = np.pad(mel, ((0, 0), (0, padding)), constant_values=np.log(1e-20))
    mel_B1MT = np.stack(np.split(padded, 3, axis=1))[:, None]
    if to == "pt2":
        with warnings.catch_warnings():
            # torch's own: it reads a buffer that it could write to.
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            extra = {"mstag.json": ""}
            read = torch.export.load(io.BytesIO(program.read_bytes()), extra_files=extra)
        assert json.loads(extra["mstag.json"]) == known
        assert "device" not in str(read.graph), "it must run where its weights are put"
        assert [output["name"] for output in known["schema"]["outputs"]] == ["scores"]
        found = read.module()(torch.from_numpy(mel_B1MT)).numpy()
    else:
        (found,) = session_of(program).run(["scores"], {"mel": mel_B1MT})
    over_time = Tagger.load(bundle, "cpu").scores_over_time(waveform, RATE_HZ)
    expected = over_time.reshape(3, -1, len(TAGS)).mean(axis=1)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_program_that_scores_otherwise_is_not_written(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_program, "from_waveform", lambda *_: b"")
    scores = np.full((1, len(TAGS)), 0.5, np.float32)
    monkeypatch.setattr(onnx_program, "run", lambda *_: scores)
    with pytest.raises(ValueError, match="was not written"):
        export_bundle(bundle, "onnx", tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
    check_same(scores, scores + 1e-5)
    for wrong in (scores + 1e-3, np.full_like(scores, np.nan)):
        with pytest.raises(ValueError, match="was not written"):
            check_same(scores, wrong)


@pytest.mark.parametrize(
    ("to", "out"), [("tflite", "a.tflite"), ("onnx", "a.pt2"), ("pt2", "a.json"), ("PT2", "a.pt2")]
)
def test_other_formats_and_endings_are_refused(tmp_path: Path, to: str, out: str) -> None:
    with pytest.raises(ValueError, match=r"known: onnx, onnx-mel, pt2|must end in \."):
        export_bundle(tmp_path, to, tmp_path / out)
    assert list(tmp_path.iterdir()) == []


def test_labels_of_another_program_stay(tmp_path: Path) -> None:
    labels = tmp_path / "a.json"
    labels.write_text('{"program": "a.onnx"}')
    check_target("pt2", tmp_path / "a.pt2")  # that program is gone
    (tmp_path / "a.onnx").touch()
    check_target("onnx", tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"would replace .*a\.json, the labels of a\.onnx"):
        check_target("pt2", tmp_path / "a.pt2")
    labels.write_text("[1]")
    with pytest.raises(ValueError, match="which holds no labels"):
        check_target("onnx", tmp_path / "a.onnx")


def test_without_the_packages_it_names_the_extra(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"package onnxscript .*pip install 'mstag\[onnx\]'"):
        export_bundle(bundle, "onnx", tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_cannot_hear_waveforms_is_refused(tmp_path: Path) -> None:
    loaded = load_bundle(make_bundle(tmp_path / "known"))
    foreign = FeatureConfig(n_mels=16, num_frames=64, recipe="unknown")
    save_bundle(
        tmp_path / "foreign",
        loaded.model,
        model_config=loaded.model_config,
        features=foreign,
        tag_names=TAGS,
        thresholds=THRESHOLDS,
        dataset={},
        scores={},
    )
    with pytest.raises(ValueError, match="spectrograms were made elsewhere"):
        export_bundle(tmp_path / "foreign", "onnx", tmp_path / "a.onnx")
    scores, inputs = made_up_piece(load_bundle(tmp_path / "foreign"), with_waveform=False)
    assert scores.shape == (3, len(TAGS))
    assert inputs["mel"].shape == (3, 1, 16, 64)
