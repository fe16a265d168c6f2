"""File -> waveform: decoding, mixing to mono, resampling.

Waveforms are float32 arrays of shape (num_samples,), nominally within -1 to 1.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Waveform = NDArray[np.float32]


def load_audio(
    source: Path | bytes,
    sample_rate_hz: int,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> Waveform:
    """Decodes audio, averages its channels and resamples it.

    Args:
        source: a file, or the bytes of one (any format that libsndfile reads).
        sample_rate_hz: rate of the result.
        start_s: where to start, in seconds.
        duration_s: how much to read, in seconds; None: to the end.

    Returns:
        Waveform of shape (num_samples,), at least one sample.

    Raises:
        ValueError: not audio, empty, or with samples that are not numbers; the message
            says which, without the path.
    """
    waveform, file_rate_hz = decode(source, start_s=start_s, duration_s=duration_s)
    return resample(waveform, file_rate_hz, sample_rate_hz)


def decode(
    source: Path | bytes, *, start_s: float = 0.0, duration_s: float | None = None
) -> tuple[Waveform, int]:
    """Decodes audio to mono at its own sample rate; see :func:`load_audio`."""
    import soundfile

    # From bytes: given a path, libsndfile hides a missing file or a folder behind
    # "format not recognised".
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    if not content:
        raise ValueError("the file is empty (0 bytes)")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate_hz = int(file.samplerate)
            if start_s:
                file.seek(min(round(start_s * rate_hz), file.frames))
            frames = -1 if duration_s is None else round(duration_s * rate_hz)
            samples = file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise ValueError(f"cannot be decoded as audio: {reason}") from None
    if not len(samples):
        where = f" after {start_s:g} s" if start_s else ""
        raise ValueError(f"holds no audio{where}")
    waveform = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if not np.isfinite(waveform).all():
        raise ValueError("holds samples that are not finite numbers")
    return np.ascontiguousarray(waveform, dtype=np.float32), rate_hz


def resample(waveform: Waveform, from_hz: int, to_hz: int) -> Waveform:
    """Resamples with soxr's HQ filter (measured 4.4 ms for 29 s of 16 kHz, one core)."""
    if from_hz == to_hz:
        return waveform
    import soxr

    resampled: Waveform = soxr.resample(waveform, from_hz, to_hz, quality="HQ")
    if not len(resampled):
        raise ValueError(f"holds too little audio to resample from {from_hz} to {to_hz} Hz")
    return resampled
