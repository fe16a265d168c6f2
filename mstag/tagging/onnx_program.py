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

from mstag.models.predict import score_and_embed
from mstag.tagging.spectrogram import Spectrogram, num_samples

if TYPE_CHECKING:
    from mstag.models.bundle import Bundle

OPSET, IR_VERSION = 18, 8
"""Of ONNX 1.13 (December 2022)."""
OUTPUTS = ["scores", "embeddings"]
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class FromMel(nn.Module):
    """Log-mel windows (B, 1, n_mels, num_frames) -> scores (B, K), features (B, F)."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.model = bundle.model

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Rounds to float16 first, as shards do and as the tagger does."""
        return score_and_embed(self.model, mel.to(torch.float16).to(torch.float32))


class FromWaveform(nn.Module):
    """Waveform windows -> scores (B, K), features (B, F); see :class:`Spectrogram`."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(bundle.features)
        self.from_mel = FromMel(bundle)

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


def onnx_program(bundle: Bundle, *, with_spectrogram: bool, labels: str) -> bytes:
    """The program's file; ``labels`` go into its metadata under the key ``mstag``."""
    batch = {0: torch.export.Dim("batch", min=1)}
    if with_spectrogram:
        program: nn.Module = FromWaveform(bundle)
        features = bundle.features
        example: tuple[Tensor, ...] = (
            torch.zeros(2, num_samples(features)),
            torch.full((2,), features.num_frames),
        )
        names = ["waveform", "num_frames"]
    else:
        program, names = FromMel(bundle), ["mel"]
        example = (torch.zeros(2, 1, bundle.features.n_mels, bundle.features.num_frames),)
    with torch.no_grad(), _quiet():
        exported = torch.onnx.export(
            program.eval(),
            example,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=names,
            output_names=OUTPUTS,
            dynamic_shapes=dict.fromkeys(names, batch),
        )
    assert exported is not None
    return _finished(exported.model_proto, bundle, labels)


def _finished(model: Any, bundle: Bundle, labels: str) -> bytes:
    """Without the exporter's notes, which hold paths of this machine; with ours."""
    import onnx

    graph = model.graph
    assert not model.functions, "functions need a later IR version"
    model.ir_version = IR_VERSION
    model.producer_name, model.doc_string = "mstag", ""
    graph.name, graph.doc_string = "mstag", ""
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
        part.doc_string = ""
    entry = model.metadata_props.add()
    entry.key, entry.value = "mstag", labels
    for given in graph.input:
        if given.name == "num_frames":
            # An input with a value of the same name may be left out.
            given.type.tensor_type.shape.dim[0].dim_param = "batch or 1"
            whole = np.array([bundle.features.num_frames], np.int64)
            graph.initializer.append(onnx.numpy_helper.from_array(whole, "num_frames"))
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


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
