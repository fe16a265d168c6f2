"""A bundle -> a program that runs without mstag, and what one must know to feed it.

    onnx      windows of waveform -> scores and embeddings; the spectrogram is inside
    onnx-mel  log-mel windows (batch, 1, n_mels, num_frames) -> scores and embeddings
    pt2       log-mel windows -> scores; a torch.export program

All take any batch size. Beside the program, ``OUT.json`` holds the tags, their thresholds, the
features, and how longer pieces are cut and averaged (:mod:`mstag.tagging.export_labels`).

Spectrograms are rounded to float16 inside, as the tagger rounds them to score as on shards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mstag import files
from mstag.tagging.export_labels import About, export_labels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mstag.models.bundle import Bundle

SUFFIXES = {"onnx": ".onnx", "onnx-mel": ".onnx", "pt2": ".pt2"}
FORMATS = tuple(SUFFIXES)
TOLERANCE = 1e-4
"""Largest difference of a score between the program and the tagger that is let pass."""
CHECKED_WINDOWS = 2.7
"""Length of the piece that both must score alike: two whole windows, and a part of one."""


def export_bundle(
    bundle: Path, to: str, out: Path, about: About | None = None
) -> tuple[Path, Path]:
    """Exports a bundle; nothing is written unless the program scores as the tagger does.

    Args:
        bundle: a bundle, or a run folder.
        to: "onnx", "onnx-mel" or "pt2".
        out: the program's file; must end in .onnx or .pt2.
        about: author, email and link for the labels.

    Returns:
        The program and, beside it, the labels.

    Raises:
        ValueError: another format, another ending, labels of another program in the way, no
            bundle, a package that is missing, a bundle that cannot hear waveforms (onnx), or a
            program that scores otherwise.
    """
    check_target(to, out)
    from mstag.models import bundle_format
    from mstag.models.bundle import load_bundle

    loaded = load_bundle(bundle, "cpu")
    loaded.model.requires_grad_(False)
    exporter = _exporter(to)
    known = export_labels(
        loaded,
        out.name,
        to=to,
        framework=exporter.framework,
        outputs=exporter.outputs,
        about=about or About(),
    )
    text = bundle_format.to_text(known)
    with files.atomic_path(out) as temporary:
        temporary.write_bytes(exporter.program(loaded, text))
        expected, inputs = made_up_piece(loaded, with_waveform=to == "onnx")
        # In batches of two sizes.
        for part in (slice(1), slice(1, None)):
            found = exporter.run(temporary, {name: v[part] for name, v in inputs.items()})
            check_same(expected[part], found)
        files.write_text(_labels_of(out), text)
    return out, _labels_of(out)


def check_target(to: str, out: Path) -> None:
    """Refuses what cannot be written; needs no torch.

    Raises:
        ValueError: an unknown format, an ending that does not fit it, or labels of another
            program in the way.
    """
    if to not in FORMATS:
        raise ValueError(f"export to {to!r}: no such format; known: {', '.join(FORMATS)}")
    if out.suffix != SUFFIXES[to]:
        raise ValueError(
            f"{out}: an export to {to} must end in {SUFFIXES[to]}, as its readers expect"
        )
    labels = _labels_of(out)
    if labels.exists():
        other = _program_of(labels)
        if other is None or (other != out.name and (out.parent / other).exists()):
            what = f"the labels of {other}" if other else "which holds no labels"
            raise ValueError(f"{out}: its labels would replace {labels}, {what}: name another file")


def check_same(expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
    """Refuses scores that differ by more than :data:`TOLERANCE`, or are not numbers.

    Raises:
        ValueError: says by how much.
    """
    difference = float(abs(expected - found).max())
    if not difference <= TOLERANCE:
        raise ValueError(
            f"export: the program's scores differ from the tagger's by {difference:g} (more than "
            f"{TOLERANCE:g}), so it was not written; this is the exporter's doing: try another "
            "version of torch, or another format"
        )


class _Exporter(NamedTuple):
    framework: tuple[str, str]
    """Name and version."""
    outputs: list[str]
    program: Callable[[Bundle, str], bytes]
    """The program's file, which may hold the labels too."""
    run: Callable[[Path, dict[str, NDArray[Any]]], NDArray[np.float32]]
    """A program's file and its inputs -> scores."""


def _exporter(to: str) -> _Exporter:
    if to == "pt2":
        from mstag.tagging import torch_program as pt2

        return _Exporter(pt2.FRAMEWORK, pt2.OUTPUTS, pt2.torch_program, pt2.run)
    from mstag.tagging import onnx_program as onnx

    onnx.require_packages()
    program = onnx.from_waveform if to == "onnx" else onnx.from_mel
    return _Exporter(onnx.FRAMEWORK, onnx.OUTPUTS, program, onnx.run)


def made_up_piece(
    bundle: Bundle, *, with_waveform: bool
) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
    """The tagger's scores of the windows of a piece that nobody made, and the program's inputs.

    A bundle that cannot hear waveforms is given noise for spectrograms.

    Returns:
        (3, num_tags), and mel, or waveform and num_frames, of three windows.
    """
    import numpy as np
    import torch

    from mstag.data.features import LogMel, windows
    from mstag.models.predict import predict
    from mstag.tagging.spectrogram import waveform_windows

    features = bundle.features
    rng = np.random.default_rng(0)
    if features.recipe == "unknown":
        mel = 3 * rng.standard_normal((3, features.n_mels, features.num_frames), np.float32)
    else:
        num_samples = round(CHECKED_WINDOWS * features.num_frames * features.hop_length)
        loudness = 0.2 + 0.15 * np.sin(np.arange(num_samples) / 3000)
        waveform = (loudness * rng.standard_normal(num_samples)).astype(np.float32)
        cut = windows(LogMel(features)(waveform), features.num_frames)
        mel = np.stack([window.mel for window in cut])
    batch = {
        "mel": torch.from_numpy(mel[:, None]).half(),
        "tags": torch.zeros(len(mel), len(bundle.tag_names), dtype=torch.uint8),
        "id": [""] * len(mel),
    }
    scores = predict(bundle.model, [batch], "cpu").scores
    if not with_waveform:
        return scores, {"mel": mel[:, None]}
    heard, num_frames = waveform_windows(waveform, features)
    return scores, {"waveform": heard, "num_frames": num_frames}


def _labels_of(program: Path) -> Path:
    return program.with_suffix(".json")


def _program_of(labels: Path) -> str | None:
    """Which program a file of labels belongs to; None: it holds something else."""
    try:
        found = json.loads(labels.read_text(encoding="utf-8"))["program"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
