"""Files and folders -> a result per file, in order; a file that fails does not stop the rest."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mstag.data.audio import load_audio
from mstag.data.resampling import Waveform
from mstag.data.suffixes import AUDIO_SUFFIXES

if TYPE_CHECKING:
    from mstag.tagging.tagger import Tagger

FOREIGN_SUFFIXES = frozenset([".ape", ".mpc", ".wv"])
"""Audio that nothing here decodes: said, rather than passed over in silence."""
NUM_READERS = 2
"""Threads that decode ahead of the model. On GPUs decoding is what takes the time."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one path: scores, or an error."""

    path: str
    """As it was given; of a file in a folder: folder/inner path."""
    duration_s: float | None = None
    over_time: NDArray[np.float32] | None = None
    """Scores (num_windows, num_tags)."""
    error: str | None = None

    @property
    def scores(self) -> NDArray[np.float32]:
        """Scores (num_tags,) of the whole piece: the mean over its windows."""
        assert self.over_time is not None, self.error
        mean: NDArray[np.float32] = self.over_time.mean(axis=0)
        return mean


def newest_bundle(runs: Path) -> Path:
    """The bundle in ``runs/*/best`` that was written last.

    Raises:
        ValueError: there is none.
    """
    found = sorted(
        (path.stat().st_mtime_ns, path.parent) for path in runs.glob("*/best/tagger.json")
    )
    if not found:
        raise ValueError(
            f"no trained tagger in {runs}/*/best: train one (`make train`), "
            "or name one with --model"
        )
    return found[-1][1]


def find_files(paths: Iterable[str]) -> list[Result]:
    """What there is to tag: results without scores, those that cannot be with their error.

    Args:
        paths: files, which are taken whatever their names end in, and folders, of which the
            audio files are taken, also from folders within; names with a leading dot are not.
    """
    found: list[Result] = []
    for path in paths:
        if Path(path).is_dir():
            names = sorted(_audio_files(path))
            found += [Result(name) for name in names]
            if not names:
                endings = " ".join(sorted(AUDIO_SUFFIXES))
                found.append(Result(path, error=f"no audio file in this folder ({endings})"))
        elif Path(path).exists():
            found.append(Result(path))
        else:
            found.append(Result(path, error="no such file or folder"))
    return found


def tag_files(tagger: Tagger, found: Sequence[Result]) -> Iterator[Result]:
    """Completes what :func:`find_files` found, in its order."""
    rate_hz = tagger.sample_rate_hz
    ahead: deque[tuple[Result, Future[Waveform | str] | None]] = deque()
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for item in found:
            ahead.append((item, None if item.error else pool.submit(_read, item.path, rate_hz)))
            if len(ahead) > NUM_READERS:
                yield _scored(tagger, *ahead.popleft())
        while ahead:
            yield _scored(tagger, *ahead.popleft())


def _scored(tagger: Tagger, item: Result, reading: Future[Waveform | str] | None) -> Result:
    if reading is None:
        return item
    audio = reading.result()
    if isinstance(audio, str):
        return Result(item.path, error=audio)
    rate_hz = tagger.sample_rate_hz
    try:
        over_time = tagger.scores_over_time(audio, rate_hz)
    except ValueError as error:
        return Result(item.path, error=str(error))
    return Result(item.path, duration_s=len(audio) / rate_hz, over_time=over_time)


def _read(path: str, sample_rate_hz: int) -> Waveform | str:
    """The waveform of a file, or why there is none."""
    try:
        return load_audio(Path(path), sample_rate_hz)
    except ValueError as error:
        suffix = Path(path).suffix.lower()
        hint = "; convert it to flac, mp3 or wav" if suffix in FOREIGN_SUFFIXES else ""
        return f"{error}{hint}"
    except MemoryError:
        return "holds more audio than fits into memory; cut it into parts"


def _audio_files(folder: str) -> Iterator[str]:
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            suffix = Path(name).suffix.lower()
            if not name.startswith(".") and suffix in AUDIO_SUFFIXES | FOREIGN_SUFFIXES:
                # Not pathlib, which rewrites what the user gave ("./music").
                yield os.path.join(parent, name)  # noqa: PTH118
