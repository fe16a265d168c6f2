"""A bundle -> a program that runs without mstag, and what one must know to feed it.

``OUT.pt2`` is a torch.export program: log-mel windows (batch, 1, n_mels, num_frames), float32,
to scores (batch, num_tags), 0 to 1, for any batch size. The spectrogram is outside: its settings,
the tags and their thresholds are in ``OUT.json``.
"""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mstag import files

if TYPE_CHECKING:
    import torch

    from mstag.models.bundle import Bundle

FORMATS = ("pt2",)
TOLERANCE = 1e-4
"""Largest difference of a score between the program and the model that is let pass."""
FORMAT_VERSION = 1


def export_bundle(bundle: Path, to: str, out: Path) -> tuple[Path, Path]:
    """Exports a bundle; nothing is written unless the program scores as the model does.

    Args:
        bundle: a bundle, or a run folder.
        to: "pt2".
        out: the program's file; must end in .pt2.

    Returns:
        The program and, beside it, the labels.

    Raises:
        ValueError: another format, another ending, no bundle, or a program that scores otherwise.
    """
    check_target(to, out)
    from mstag.models.bundle import load_bundle

    loaded = load_bundle(bundle, "cpu")
    program = _program(loaded)
    labels = out.with_suffix(".json")
    files.write_text(labels, json.dumps(_labels(loaded, out.name), indent=1) + "\n")
    files.write_bytes(out, program)
    return out, labels


def check_target(to: str, out: Path) -> None:
    """Refuses what cannot be written; needs no torch.

    Raises:
        ValueError: an unknown format, or an ending that does not fit it.
    """
    if to not in FORMATS:
        raise ValueError(
            f"export to {to!r}: no such format; known: {', '.join(FORMATS)} (torch.export)"
        )
    if out.suffix != f".{to}":
        raise ValueError(f"{out}: an export to {to} must end in .{to}, as its readers expect")


def _program(bundle: Bundle) -> bytes:
    """The exported program's file, read back and compared with the model."""
    import torch

    from mstag.models.predict import score_windows

    class Scorer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = bundle.model

        def forward(self, mel: torch.Tensor) -> torch.Tensor:
            return score_windows(self.model, mel)

    scorer = Scorer().eval()
    buffer = io.BytesIO()
    with torch.no_grad():
        program = torch.export.export(
            scorer,
            (_example(bundle, 2),),
            dynamic_shapes={"mel": {0: torch.export.Dim("batch", min=1)}},
        )
        torch.export.save(program, buffer)
        buffer.seek(0)
        read_back = torch.export.load(buffer).module()
        for batch_size in (1, 3):
            mel = _example(bundle, batch_size)
            check_same(scorer(mel), read_back(mel))
    return buffer.getvalue()


def check_same(expected: torch.Tensor, found: torch.Tensor) -> None:
    """Refuses scores that differ by more than :data:`TOLERANCE`, or are not numbers.

    Raises:
        ValueError: says by how much.
    """
    difference = float((expected - found).abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(
            f"export: the program's scores differ from the model's by {difference:g} (more than "
            f"{TOLERANCE:g}), so it was not written; this is torch's doing: try another version"
        )


def _example(bundle: Bundle, batch_size: int) -> torch.Tensor:
    """Noise as loud as music."""
    import torch

    generator = torch.Generator().manual_seed(batch_size)
    shape = batch_size, 1, bundle.features.n_mels, bundle.features.num_frames
    return 3 * torch.randn(shape, generator=generator)


def _labels(bundle: Bundle, program: str) -> dict[str, Any]:
    features = bundle.features
    return {
        "format_version": FORMAT_VERSION,
        "program": program,
        "weights_sha256": bundle.digest,
        "input": {
            "name": "mel",
            "dtype": "float32",
            "shape": ["batch", 1, features.n_mels, features.num_frames],
            "values": "natural log of max(mel power, 1e-20)",
        },
        "output": {"dtype": "float32", "shape": ["batch", len(bundle.tag_names)]},
        "features": dataclasses.asdict(features),
        "tags": bundle.tag_names,
        "thresholds": bundle.thresholds,
        "dataset": bundle.dataset,
        "scores": bundle.scores,
    }
