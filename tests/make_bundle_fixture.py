"""Makes the bundles that tests/models/bundles keeps for ever: one per state of the format.

    PYTHONPATH=. python tests/make_bundle_fixture.py tests/models/bundles/format-2.zip COMMIT

Run it once for each new format version and commit what it writes; never make an old one anew.
``first.zip`` was made by this script too, with the code of the commit that its golden.json names:
from before there were ``features.recipe`` and ``model.chunk_frames``.
An archive holds a bundle and golden.json: the scores of :func:`waveform` by the mstag that
made it. Weights are -1, 0 or 1 times a scale, mostly 0, so that an archive takes 43 KB, not 1.5 MB.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 8000
NUM_SAMPLES = 40_000
TAGS = ["guitar", "slow", "rock & <roll>", "techno", "no piano", "flute", "loud"]


def waveform() -> NDArray[np.float32]:
    """(NUM_SAMPLES,), five seconds: chords, sweeps and clicks, the same on any machine."""
    time_s = np.arange(NUM_SAMPLES) / RATE_HZ
    chord = sum(np.sin(2 * np.pi * f_hz * time_s) / f_hz for f_hz in (220.0, 277.2, 329.6))
    sweep = np.sin(2 * np.pi * (200 + 300 * time_s) * time_s)
    # Knuth's multiplicative hash of the sample's number: noise that no library can change.
    noise = (np.arange(NUM_SAMPLES, dtype=np.uint64) * 2654435761 % 2**32) / 2**31 - 1
    clicks = np.exp(-40 * (time_s % 0.37)) * noise
    return (20 * chord + 0.2 * sweep + 0.3 * clicks + 0.01 * noise).astype(np.float32)


def main(out: Path, commit: str) -> None:
    import torch

    from mstag import __version__
    from mstag.config import FeatureConfig, ModelConfig
    from mstag.models import build_model
    from mstag.models.bundle import load_bundle, save_bundle
    from mstag.tagging.tagger import Tagger

    features = FeatureConfig(
        sample_rate_hz=RATE_HZ, n_fft=512, hop_length=128, n_mels=16, num_frames=150
    )
    settings = {"hidden_units": 8, "dropout": 0.5}
    if "chunk_frames" in {field.name for field in dataclasses.fields(ModelConfig)}:
        settings["chunk_frames"] = 64
    model_config = ModelConfig(**settings)
    model = build_model(model_config, features.n_mels, features.num_frames, len(TAGS)).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() < 2:
                continue
            signs = rng.choice([-1, 0, 1], size=tuple(weights.shape), p=[0.04, 0.92, 0.04])
            scale = 2.0 ** round(np.log2(np.sqrt(2 / 0.08 / weights[0].numel())))
            weights.copy_(torch.from_numpy(signs * scale))
            if name.endswith("5.weight"):
                weights.copy_(torch.from_numpy(rng.choice([-1, 1], size=tuple(weights.shape)) / 2))
    bundle = {
        "model_config": model_config,
        "features": features,
        "tag_names": TAGS,
        "thresholds": [0.1, 0.9, 0.3, 0.2, 0.8, 0.5, 0.5],
        "dataset": {"name": "synthetic", "digest": "0", "split_rule": "none", "leaks": {}},
        "scores": {"epoch": 1, "valid": {"roc_auc": 0.5, "pr_auc": 0.25, "loss": 0.7}},
    }
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        save_bundle(place, model, **bundle)
        tagger = Tagger(load_bundle(place), torch.device("cpu"))
        inputs = _heard_by_batchnorm(tagger)
        norm = model.classifier[1]
        norm.running_mean.copy_(torch.round(inputs.mean(0) * 64) / 64)
        norm.running_var.copy_(torch.round(inputs.var(0) * 64).clamp(min=4) / 64)
        save_bundle(place, model, **bundle)
        scores = Tagger(load_bundle(place), torch.device("cpu")).scores(waveform(), RATE_HZ)
        golden = {
            "commit": commit,
            "mstag_version": __version__,
            "scores": [round(float(score), 7) for score in scores],
        }
        (place / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
        out.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(out, "w", zipfile.ZIP_LZMA) as archive:
            for path in sorted(place.iterdir()):
                archive.write(path, path.name)
    print(out, out.stat().st_size, golden)


def _heard_by_batchnorm(tagger: Any) -> Any:
    """What BatchNorm hears of the waveform, (windows, features)."""
    import torch

    heard = []
    hook = tagger.bundle.model.classifier[1].register_forward_pre_hook(
        lambda _, given: heard.append(given[0].detach().clone())
    )
    tagger.scores(waveform(), RATE_HZ)
    hook.remove()
    return torch.cat(heard)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
