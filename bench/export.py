"""The spectrogram inside exported ONNX programs: three ways to write it, and the network behind.

    python bench/export.py [--rounds N]

Each is exported, read by onnxruntime and run on one window of the default features, on one
thread, in turns: ratios hold on a busy machine too. Writes bench/results/export-<machine>.json
and .md.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from stream import machine
from torch import Tensor, nn

from mstag import config
from mstag.data.features import POWER_FLOOR, LogMel, mel_filters
from mstag.models import build_model
from mstag.models.predict import score_windows
from mstag.tagging.onnx_program import OPSET
from mstag.tagging.spectrogram import Spectrogram, num_samples

FEATURES = config.FeatureConfig()


class TwoSteps(nn.Module):
    """mstag's."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(FEATURES)

    def forward(self, x_BS: Tensor) -> Tensor:
        """Windows of waveform -> log-mel."""
        return self.spectrogram(x_BS, torch.tensor([FEATURES.num_frames]))


class OneMatrix(nn.Module):
    """The Fourier transform as a convolution with windowed cosines and sines."""

    def __init__(self) -> None:
        super().__init__()
        n_fft, num_bins = FEATURES.n_fft, FEATURES.n_fft // 2 + 1
        time_N = np.arange(n_fft)
        angles = 2 * np.pi * (np.outer(np.arange(num_bins), time_N) % n_fft) / n_fft
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * time_N / n_fft)
        basis = np.concatenate([np.cos(angles), np.sin(angles)]) * hann
        self.num_bins = num_bins
        self.basis = nn.Buffer(torch.from_numpy(basis.astype(np.float32))[:, None])
        self.mel = nn.Buffer(torch.from_numpy(mel_filters(FEATURES).astype(np.float32)))

    def forward(self, x_BS: Tensor) -> Tensor:
        """Windows of waveform -> log-mel."""
        parts = nn.functional.conv1d(x_BS[:, None], self.basis, stride=FEATURES.hop_length)
        power = parts[:, : self.num_bins] ** 2 + parts[:, self.num_bins :] ** 2
        return torch.log((self.mel @ power).clamp(min=POWER_FLOOR))


class StftOperator(nn.Module):
    """ONNX's own STFT."""

    def __init__(self) -> None:
        super().__init__()
        self.window = nn.Buffer(torch.hann_window(FEATURES.n_fft))
        self.mel = nn.Buffer(torch.from_numpy(mel_filters(FEATURES).astype(np.float32)))

    def forward(self, x_BS: Tensor) -> Tensor:
        """Windows of waveform -> log-mel."""
        spectrum = torch.stft(
            x_BS,
            FEATURES.n_fft,
            FEATURES.hop_length,
            window=self.window,
            center=False,
            return_complex=True,
        )
        parts = torch.view_as_real(spectrum)
        power = parts[..., 0] ** 2 + parts[..., 1] ** 2
        return torch.log((self.mel @ power).clamp(min=POWER_FLOOR))


class Network(nn.Module):
    """The 2017 network, for comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build_model(config.ModelConfig(), FEATURES.n_mels, FEATURES.num_frames, 50)

    def forward(self, mel_B1MT: Tensor) -> Tensor:
        """Log-mel windows -> scores."""
        return score_windows(self.model, mel_B1MT)


def read(module: nn.Module, example: Tensor) -> tuple[onnxruntime.InferenceSession, int]:
    """A module as onnxruntime runs it, on one thread, and its bytes."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            module.eval(), (example,), dynamo=True, verbose=False, opset_version=OPSET
        )
    assert exported is not None
    content = exported.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(content, options, providers), len(content)


def measure(rounds: int) -> list[dict[str, Any]]:
    """A row per way: bytes, largest difference to LogMel, time in mstag's, ms."""
    rng = np.random.default_rng(0)
    waveform = (0.2 * rng.standard_normal((1, num_samples(FEATURES)))).astype(np.float32)
    expected = LogMel(FEATURES).frames(waveform[0])
    modules = {
        "two steps (mstag)": (TwoSteps(), waveform),
        "ONNX's STFT": (StftOperator(), waveform),
        "one matrix": (OneMatrix(), waveform),
        "the network": (Network(), expected[None, None]),
    }
    rows, calls = [], []
    for name, (module, given) in modules.items():
        session, num_bytes = read(module, torch.from_numpy(given))
        inputs = {session.get_inputs()[0].name: given}
        (found,) = session.run(None, inputs)
        is_mel = found.shape[1:] == expected.shape
        difference = float(abs(found[0] - expected).max()) if is_mel else None
        rows.append({"name": name, "bytes": num_bytes, "difference": difference})
        calls.append((session, inputs))
    times = np.empty((rounds, len(calls)))
    for row in times:
        for i, (session, inputs) in enumerate(calls):
            start = time.perf_counter()
            session.run(None, inputs)
            row[i] = time.perf_counter() - start
    for i, row in enumerate(rows):
        row["ms"] = 1e3 * statistics.median(times[:, i])
        row["ratio"] = statistics.median(times[:, i] / times[:, 0])
    return rows


def as_table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    lines = ["| | MB | largest difference to LogMel | ms | ratio |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        difference = "" if row["difference"] is None else f"{row['difference']:.1e}"
        lines.append(
            f"| {row['name']} | {row['bytes'] / 1e6:.1f} | {difference} | {row['ms']:.0f} "
            f"| {row['ratio']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    rows = measure(args.rounds)
    path = Path(__file__).resolve().parent / "results" / f"export-{machine()}.json"
    command = f"python bench/export.py --rounds {args.rounds}"
    versions = {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__}
    content = {"command": command, "versions": versions, "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n")
    path.with_suffix(".md").write_text(f"{as_table(rows)}\n\n`{command}`, {machine()}\n")
    print(as_table(rows))


if __name__ == "__main__":
    main()
