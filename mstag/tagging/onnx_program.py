"""A bundle -> an ONNX program, read back by onnxruntime and compared before anybody gets it.

Opset 18: onnxruntime 1.14 (2023) and later run it. One file, weights inside.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mstag import __version__
from mstag.models.predict import as_in_shards, score_and_embed
from mstag.tagging.spectrogram import Spectrogram, num_samples

if TYPE_CHECKING:
    from mstag.models.bundle import Bundle

OPSET, IR_VERSION = 18, 8
"""Of ONNX 1.13 (December 2022)."""
FRAMEWORK = "onnx", f"opset {OPSET}, IR {IR_VERSION}"
OUTPUTS = ["scores", "embeddings"]
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class _FromMel(nn.Module):
    """Log-mel windows (B, 1, n_mels, num_frames) -> scores (B, K), features (B, F)."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.model = bundle.model

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Rounds to float16 first, as shards do and as the tagger does."""
        return score_and_embed(self.model, as_in_shards(mel))


class _FromWaveform(nn.Module):
    """Waveform windows -> scores (B, K), features (B, F); see :class:`Spectrogram`."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(bundle.features)
        self.from_mel = _FromMel(bundle)

    def forward(self, waveform: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Windows and how many of their frames are audio."""
        scores, features = self.from_mel(self.spectrogram(waveform, num_frames)[:, None])
        return scores, features


def require_packages() -> None:
    """Refuses to go on without the packages that ONNX takes.

    Raises:
        ValueError: names the extra.
    """
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(
                f"export to onnx needs the package {name} ({error}): pip install 'mstag[onnx]' "
                "(in a checkout: pip install -e '.[onnx]')"
            ) from None


def from_waveform(bundle: Bundle, labels: str) -> bytes:
    """The file of a program that hears windows of waveform.

    ``labels`` stand in its metadata, under the key "mstag".

    Raises:
        ValueError: the bundle cannot hear waveforms, as its recipe is unknown.
    """
    waveform = torch.zeros(2, num_samples(bundle.features))
    num_frames = torch.full((2,), bundle.features.num_frames)
    inputs = {"waveform": waveform, "num_frames": num_frames}
    model = _traced(_FromWaveform(bundle), inputs)
    (given,) = (given for given in model.graph.input if given.name == "num_frames")
    given.type.tensor_type.shape.dim[0].dim_param = "batch or 1"
    # An input that is an initializer too may be left out.
    model.graph.initializer.append(_tensor("num_frames", num_frames[:1]))
    return _finished(model, labels)


def from_mel(bundle: Bundle, labels: str) -> bytes:
    """The same for a program that takes log-mel windows."""
    features = bundle.features
    mel = torch.zeros(2, 1, features.n_mels, features.num_frames)
    return _finished(_traced(_FromMel(bundle), {"mel": mel}), labels)


def _traced(program: nn.Module, inputs: dict[str, Tensor]) -> Any:
    """The ONNX model of a program, for any batch size."""
    batch = {0: torch.export.Dim("batch", min=1)}
    with torch.no_grad(), _quiet():
        exported = torch.onnx.export(
            program.eval(),
            tuple(inputs.values()),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=OUTPUTS,
            dynamic_shapes=dict.fromkeys(inputs, batch),
        )
    assert exported is not None
    return exported.model_proto


def _finished(model: Any, labels: str) -> bytes:
    """With our notes in place of the exporter's, which hold paths of this machine."""
    import onnx

    graph = model.graph
    assert not model.functions, "functions need a later IR version"
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "mstag", __version__
    graph.name = "mstag"
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    entry = model.metadata_props.add()
    entry.key, entry.value = "mstag", labels
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _tensor(name: str, values: Tensor) -> Any:
    import onnx

    return onnx.numpy_helper.from_array(values.numpy(), name)


def run(program: Path, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The scores that onnxruntime reads from a program's file, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(
        str(program), options, providers=["CPUExecutionProvider"]
    )
    scores: NDArray[np.float32] = session.run(["scores"], inputs)[0]
    return scores


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's warnings to itself: they are about torch, not about the user."""
    root = logging.getLogger("torch.onnx")
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
