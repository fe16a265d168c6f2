"""What one must know to use an exported program, as JSON in the style of Essentia's models.

Essentia's keys come first (https://essentia.upf.edu/models.html); ours follow: features,
thresholds, windows, training_data, scores, weights_sha256.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mstag import __version__
from mstag.models import embedding_size

if TYPE_CHECKING:
    from mstag.models.bundle import Bundle

FORMAT_VERSION = 2
CITATIONS = {
    "mtt": "Law, West, Mandel, Bay, Downie: Evaluation of algorithms using games: the case of "
    "music tagging. ISMIR 2009",
    "mtg-jamendo": "Bogdanov, Won, Tovstogan, Porter, Serra: The MTG-Jamendo dataset for automatic "
    "music tagging. Machine Learning for Music Discovery Workshop, ICML 2019",
    "msd": "Bertin-Mahieux, Ellis, Whitman, Lamere: The Million Song Dataset. ISMIR 2011",
    "openmic": "Humphrey, Durand, McFee: OpenMIC-2018: an open dataset for multiple instrument "
    "recognition. ISMIR 2018",
}
"""Of datasets, by ``dataset.kind``."""


@dataclass(frozen=True, slots=True)
class About:
    """What a bundle does not know of itself."""

    author: str = ""
    email: str = ""
    link: str = ""


def export_labels(
    bundle: Bundle,
    program: str,
    *,
    to: str,
    framework: tuple[str, str],
    outputs: Sequence[str],
    about: About,
) -> dict[str, Any]:
    """The labels of a program.

    Args:
        bundle: what was exported.
        program: the name of its file.
        to: onnx, onnx-mel or pt2.
        framework: its name and version.
        outputs: the names of what the program gives.
        about: what goes into the keys of the same names.
    """
    features, dataset = bundle.features, bundle.dataset
    hears = "windows of waveform" if to == "onnx" else "log-mel windows"
    clips = dataset.get("clips")  # not in bundles from before format 2
    num_clips = sum(clips.values()) if isinstance(clips, dict) else 0
    return {
        "name": f"mstag {bundle.model_config.name}, {dataset.get('name', 'unknown')}",
        "type": "auto-tagging",
        "link": about.link,
        "version": bundle.digest[:16],
        "description": f"{len(bundle.tag_names)} tags of music, from {hears} of "
        f"{features.num_frames * features.frame_s:.1f} s",
        "author": about.author,
        "email": about.email,
        "release_date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "framework": framework[0],
        "framework_version": framework[1],
        "classes": bundle.tag_names,
        "model_types": [to],
        "dataset": {
            "name": dataset.get("name", "unknown"),
            "citation": CITATIONS.get(str(dataset.get("kind")), ""),
            "size": f"{num_clips} clips" if num_clips else "unknown",
            "metrics": _metrics(bundle.scores),
        },
        "schema": {"inputs": _inputs(bundle, to), "outputs": _outputs(bundle, outputs)},
        "citation": "",
        "format_version": FORMAT_VERSION,
        "mstag_version": __version__,
        "program": program,
        "weights_sha256": bundle.digest,
        "features": {
            **dataclasses.asdict(features),
            "window": "hann, periodic",
            "padding": "reflect, n_fft / 2 samples at either end of the piece",
            "mel": "Slaney, 0 Hz to half the sample rate, Slaney norm",
            "values": "natural log of max(mel power, 1e-20), rounded to float16 by the program",
        },
        "thresholds": bundle.thresholds,
        "windows": _windows(bundle, to),
        "training_data": dataset,
        "scores": bundle.scores,
    }


def _inputs(bundle: Bundle, to: str) -> list[dict[str, Any]]:
    features = bundle.features
    if to != "onnx":
        shape = ["batch", 1, features.n_mels, features.num_frames]
        return [{"name": "mel", "type": "float", "shape": shape}]
    return [
        {
            "name": "waveform",
            "type": "float",
            "shape": ["batch", features.num_samples + features.n_fft],
            "description": f"mono, {features.sample_rate_hz} Hz, nominally -1 to 1; see windows",
        },
        {
            "name": "num_frames",
            "type": "int64",
            "shape": ["batch or 1"],
            "description": "frames of each window that are audio; the others become silence. May "
            f"be left out: then all {features.num_frames} are",
        },
    ]


def _outputs(bundle: Bundle, names: Sequence[str]) -> list[dict[str, Any]]:
    scores = {
        "name": "scores",
        "type": "float",
        "shape": ["batch", len(bundle.tag_names)],
        "op": "Sigmoid",
        "output_purpose": "predictions",
    }
    embeddings = {
        "name": "embeddings",
        "type": "float",
        "shape": ["batch", embedding_size(bundle.model)],
        "op": "what the last layer hears",
        "output_purpose": "embeddings",
    }
    return [output for output in (scores, embeddings) if output["name"] in names]


def _windows(bundle: Bundle, to: str) -> dict[str, Any]:
    """How a piece of any length becomes windows, and their scores one."""
    features = bundle.features
    half, hop, num_frames = features.n_fft // 2, features.hop_length, features.num_frames
    cut: dict[str, Any] = {
        "num_frames": num_frames,
        "step_frames": num_frames,
        "min_last_frames": (num_frames + 1) // 2,
        "average": "mean of the outputs over the windows of a piece",
    }
    if to == "onnx":
        return {
            "pad_samples": half,
            "pad_mode": "reflect",
            "num_samples": features.num_samples + features.n_fft,
            "step_samples": num_frames * hop,
            **cut,
            "how": f"zeros behind a piece shorter than {half + 1} samples; its frames are 1 + "
            f"samples // {hop}; pad it by reflection with {half} samples at either end; windows "
            f"start every {num_frames * hop} samples; a last window counts if at least "
            "min_last_frames of it are audio, or if it is the only one; zeros behind it, and "
            "num_frames says how many of its frames are audio",
        }
    return {
        **cut,
        "how": "cut the spectrogram of the whole piece; a last window counts if at least "
        "min_last_frames of it are audio, or if it is the only one; frames behind the audio are "
        "log(1e-20)",
    }


def _metrics(scores: dict[str, Any]) -> dict[str, Any]:
    split = "test" if "test" in scores else "valid"
    found = scores.get(split)
    if not isinstance(found, dict):
        return {}
    return {"ROC-AUC": found.get("roc_auc"), "PR-AUC": found.get("pr_auc"), "split": split}
