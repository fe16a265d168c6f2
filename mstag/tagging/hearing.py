"""An audio file -> what a page shows of it: its scores, these over time, and a copy to play.

Shapes: p parts of a piece, t tags.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mstag import files
from mstag.data import headers
from mstag.data.audio import open_audio
from mstag.data.decoders import joined
from mstag.data.resampling import Waveform, resample
from mstag.tagging.listening import listen

if TYPE_CHECKING:
    from mstag.tagging.tagger import Tagger

MOST_HOURS = 3.0
"""Of audio in a file: a small file can hold days of silence, and memory is for all visitors."""
MOST_PARTS = 240
"""Of a piece, over time: as many as a screen has room for."""
PARTS_PER_WINDOW = 8
LEAST_PART_S = 2.0
"""Nobody can tell an instrument from less."""
MOST_COPY_HZ = 48_000
PLAYED_BY_BROWSERS = frozenset(["wav", "mp3", "flac", "ogg", "m4a", "aac", "webm"])


@dataclass(frozen=True, slots=True)
class Heard:
    """What a tagger says of a piece."""

    duration_s: float
    scores: NDArray[np.float32]
    """(t,), 0 to 1, of the whole piece: what `mstag tag` gives it."""
    over_time: NDArray[np.float32]
    """(p, t), 0 to 1, of parts of equal length, each heard alone."""


class Stopped(Exception):  # noqa: N818 - an end that was asked for, no error
    """Nobody waits for the answer any more."""


def hear(
    tagger: Tagger, path: Path, waveform: Waveform, progress: Callable[[float], None]
) -> Heard:
    """Scores a piece as a whole and part by part.

    A part that is shorter than the tagger's window is heard over and over until the window is
    full: padded with silence it would sound like the end of a piece, and two windows that overlap
    would blur what changes between them.

    Args:
        tagger: who listens.
        path: the piece, of which the whole is heard as `mstag tag` hears it.
        waveform: the same, (num_samples,), at the tagger's rate.
        progress: told the share that is done, 0 to 1; what it raises ends the work.

    Raises:
        ValueError: see :func:`mstag.tagging.listening.listen`.
    """
    rate_hz = tagger.sample_rate_hz
    progress(0.0)
    scores = listen(tagger, path).scores
    edges = part_edges(len(waveform), rate_hz, tagger.window_s)
    window = round(tagger.window_s * rate_hz)
    over_time = np.empty((len(edges) - 1, len(scores)), np.float32)
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        progress((1 + number) / len(edges))
        part = waveform[start:end]
        whole = part if len(part) >= window else np.resize(part, window)
        over_time[number] = tagger.scores_over_time(whole, rate_hz).mean(axis=0)
    return Heard(len(waveform) / rate_hz, scores, over_time)


def part_edges(num_samples: int, rate_hz: int, window_s: float) -> list[int]:
    """Where the parts of a piece start, and where the last one ends: p + 1 sample numbers."""
    part_s = max(window_s / PARTS_PER_WINDOW, min(window_s, LEAST_PART_S))
    num_parts = min(MOST_PARTS, max(1, round(num_samples / rate_hz / part_s)), num_samples)
    return [num_samples * number // num_parts for number in range(num_parts + 1)]


def read(path: Path, rate_hz: int) -> tuple[Waveform, Path]:
    """The waveform of a file, and the file that a browser can play.

    Args:
        path: any audio file.
        rate_hz: of the waveform.

    Returns:
        The waveform (num_samples,), as :func:`mstag.data.audio.load_audio` gives it; and the path
        itself, or that of a WAV file written beside it if browsers do not play its kind.

    Raises:
        ValueError: not audio, or more than :data:`MOST_HOURS` of it.
    """
    blocks: list[Waveform] = []
    with open_audio(path) as audio:
        file_rate_hz = audio.rate_hz
        most = int(MOST_HOURS * 3600 * file_rate_hz)
        num_samples = 0
        for block in audio.blocks():
            num_samples += len(block)
            if num_samples > most:
                raise ValueError(
                    f"holds more than {MOST_HOURS:g} hours of audio: cut it into parts"
                )
            blocks.append(block)
    waveform = joined(blocks)
    del blocks
    return resample(waveform, file_rate_hz, rate_hz), _playable(path, waveform, file_rate_hz)


def _playable(path: Path, waveform: Waveform, rate_hz: int) -> Path:
    with path.open("rb") as file:
        kind = headers.kind_of(file.read(headers.HEAD_BYTES))
    copy = path.with_name(f"{path.name}.to-play.wav")
    if kind in PLAYED_BY_BROWSERS:
        return path
    if not copy.exists():
        import soundfile

        copy_rate_hz = min(rate_hz, MOST_COPY_HZ)
        samples = resample(waveform, rate_hz, copy_rate_hz).clip(-1, 1)
        with files.atomic_path(copy) as unfinished:
            soundfile.write(unfinished, samples, copy_rate_hz, format="WAV", subtype="PCM_16")
    return copy
