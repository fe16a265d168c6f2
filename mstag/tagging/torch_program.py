"""A bundle -> a torch.export program: log-mel windows -> scores, for any batch size."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mstag.models.predict import as_in_shards, score_windows

if TYPE_CHECKING:
    from mstag.models.bundle import Bundle

FRAMEWORK = "pytorch", str(torch.__version__)
OUTPUTS = ["scores"]


class _Scorer(nn.Module):
    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.model = bundle.model

    def forward(self, mel: Tensor) -> Tensor:
        """Rounds to float16 first, as shards do and as the tagger does."""
        return score_windows(self.model, as_in_shards(mel))


def torch_program(bundle: Bundle, labels: str) -> bytes:
    """The program's file; ``labels`` stand in it as the extra file ``mstag.json``."""
    features = bundle.features
    buffer = io.BytesIO()
    with torch.no_grad():
        program = torch.export.export(
            _Scorer(bundle).eval(),
            (torch.zeros(2, 1, features.n_mels, features.num_frames),),
            dynamic_shapes={"mel": {0: torch.export.Dim("batch", min=1)}},
        )
        torch.export.save(program, buffer, extra_files={"mstag.json": labels})
    return buffer.getvalue()


def run(program: Path, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The scores that torch reads from a program's file, on the CPU."""
    with torch.no_grad(), warnings.catch_warnings():
        # torch's own: it reads a buffer that it could write to.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        read: Any = torch.export.load(io.BytesIO(program.read_bytes())).module()
        scores: NDArray[np.float32] = read(torch.from_numpy(inputs["mel"])).numpy()
    return scores
