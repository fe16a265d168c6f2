"""A bundle -> a program that runs without mstag, and what one must know to feed it.

    onnx      windows of waveform -> scores and embeddings; the spectrogram is inside
    onnx-mel  log-mel windows (batch, 1, n_mels, num_frames) -> scores and embeddings
    pt2       log-mel windows -> scores; a torch.export program

All take any batch size. Beside the program, ``OUT.json`` holds the tags, their thresholds, the
features, and how longer pieces are cut and averaged (:mod:`mstag.tagging.export_labels`).

Spectrograms are rounded to float16 inside, as the tagger rounds them to score as on shards.
"""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mstag import files
from mstag.tagging.export_labels import About, export_labels

if TYPE_CHECKING:
    import torch

    from mstag.models.bundle import Bundle

SUFFIXES = {"onnx": ".onnx", "onnx-mel": ".onnx", "pt2": ".pt2"}
FORMATS = tuple(SUFFIXES)
TOLERANCE = 1e-4
"""Largest difference of a score between the program and the tagger that is let pass."""
CHECKED_WINDOWS = 2.7
"""Length of the piece that both must score alike: two whole windows, and a part of one."""


def export_bundle(bundle: Path, to: str, out: Path, about: About | None = None) -> tuple[Path, Path]:
    """Exports a bundle; nothing is written unless the program scores as the tagger does.

    Args:
        bundle: a bundle, or a run folder.
        to: "onnx", "onnx-mel" or "pt2".
        out: the program's file; must end in .onnx or .pt2.
        about: author, email and link for the labels.

    Returns:
        The program and, beside it, the labels.

    Raises:
        ValueError: another format, another ending, no bundle, a package that is missing, a
            bundle that cannot hear waveforms (onnx), or a program that scores otherwise.
    """
    check_target(to, out)
    from mstag.models import bundle_format
    from mstag.models.bundle import load_bundle

    loaded = load_bundle(bundle, "cpu")
    if to == "pt2":
        import torch

        framework = "pytorch", torch.__version__
    else:
        from mstag.tagging import onnx_program

        onnx_program.require_packages()
        framework = "onnx", f"opset {onnx_program.OPSET}, IR {onnx_program.IR_VERSION}"
    known = export_labels(
        loaded,
        out.name,
        to=to,
        framework=framework,
        num_features=_num_features(loaded),
        about=about or About(),
    )
    text = bundle_format.to_text(known)
    with files.atomic_path(out) as temporary:
        if to == "pt2":
            temporary.write_bytes(_torch_program(loaded))
        else:
            with_spectrogram = to == "onnx"
            content = onnx_program.onnx_program(
                loaded, with_spectrogram=with_spectrogram, labels=text
            )
            temporary.write_bytes(content)
        check_same(*_scores_of_both(loaded, to, temporary))
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
        if other != out.name and (other is None or (out.parent / other).exists()):
            what = f"the labels of {other}" if other else "something else than labels"
            raise ValueError(f"{out}: its labels would replace {labels}, {what}; name another --out")


def _labels_of(program: Path) -> Path:
    return program.with_suffix(".json")


def _program_of(labels: Path) -> str | None:
    """Which program a file of labels belongs to; None: it holds something else."""
    try:
        found = json.loads(labels.read_text(encoding="utf-8"))["program"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def check_same(expected: torch.Tensor, found: torch.Tensor) -> None:
    """Refuses scores that differ by more than :data:`TOLERANCE`, or are not numbers.

    Raises:
        ValueError: says by how much.
    """
    difference = float((expected - found).abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(
            f"export: the program's scores differ from the model's by {difference:g} (more than "
            f"{TOLERANCE:g}), so it was not written; this is the exporter's doing: try another "
            "version of torch, or another format"
        )


def _torch_program(bundle: Bundle) -> bytes:
    import torch

    from mstag.models.predict import score_windows

    class Scorer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = bundle.model

        def forward(self, mel: torch.Tensor) -> torch.Tensor:
            return score_windows(self.model, mel.to(torch.float16).to(torch.float32))

    features = bundle.features
    buffer = io.BytesIO()
    with torch.no_grad():
        program = torch.export.export(
            Scorer().eval(),
            (torch.zeros(2, 1, features.n_mels, features.num_frames),),
            dynamic_shapes={"mel": {0: torch.export.Dim("batch", min=1)}},
        )
        torch.export.save(program, buffer)
    return buffer.getvalue()


def _scores_of_both(bundle: Bundle, to: str, program: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of a piece that nobody made music of: the tagger's, and the program's file's.

    A bundle that cannot hear waveforms scores noise instead.
    """
    import numpy as np
    import torch

    from mstag.data.features import LogMel, windows
    from mstag.models.predict import predict

    features = bundle.features
    rng = np.random.default_rng(0)
    if features.recipe == "unknown":
        stacked = 3 * rng.standard_normal((3, features.n_mels, features.num_frames), np.float32)
    else:
        num_samples = round(CHECKED_WINDOWS * features.num_frames * features.hop_length)
        loudness = 0.2 + 0.15 * np.sin(np.arange(num_samples) / 3000)
        waveform = (loudness * rng.standard_normal(num_samples)).astype(np.float32)
        cut = windows(LogMel(features)(waveform), features.num_frames)
        stacked = np.stack([window.mel for window in cut])
    mel = torch.from_numpy(stacked)[:, None]
    tags = torch.zeros(len(mel), len(bundle.tag_names), dtype=torch.uint8)
    batch = {"mel": mel.half(), "tags": tags, "id": [""] * len(mel)}
    expected = torch.from_numpy(predict(bundle.model, [batch], "cpu").scores)
    if to == "pt2":
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's about itself
            run: Any = torch.export.load(io.BytesIO(program.read_bytes())).module()
            return expected, torch.cat([run(mel[:1]), run(mel[1:])])
    from mstag.tagging import onnx_program
    from mstag.tagging.spectrogram import waveform_windows

    if to == "onnx":
        heard, num_frames = waveform_windows(waveform, features)
        inputs = {"waveform": heard, "num_frames": num_frames}
    else:
        inputs = {"mel": mel.numpy()}
    parts = [
        onnx_program.run(program, {name: values[part] for name, values in inputs.items()})
        for part in (slice(1), slice(1, None))
    ]
    return expected, torch.from_numpy(np.concatenate(parts))


def _num_features(bundle: Bundle) -> int:
    import torch

    from mstag.models.predict import score_and_embed

    features = bundle.features
    with torch.inference_mode():
        _, found = score_and_embed(
            bundle.model, torch.zeros(1, 1, features.n_mels, features.num_frames)
        )
    return found.shape[1]
