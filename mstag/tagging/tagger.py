"""A trained model -> tags for anyone's music.

Shapes: n samples of a waveform, r rows of scores over a piece, t tags.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mstag.data.features import LogMel, as_stored, windows
from mstag.data.resampling import Waveform, resample
from mstag.models import frames_at_once
from mstag.models.bundle import Bundle, load_bundle
from mstag.models.predict import chunk_starts, predict
from mstag.runtime import pick_device
from mstag.tagging.listening import listen

WINDOWS_PER_BATCH = 8
"""Windows scored at a time (0.3 GB of activations with the default features)."""


class Tagger:
    """A trained model that tags pieces of any length.

    A piece is cut into windows as long as those of the training's shards, and these into chunks
    where the network takes less at once; its score for a tag is the mean over them. The last
    window counts if at least half of it is audio, or if it is the only one. Files are heard as
    packing hears them (:mod:`mstag.tagging.listening`): windows of silence are left out.

    Attributes:
        bundle: the trained model and what belongs to it.
        device: where it runs.
        log_mel: makes its spectrograms.
    """

    def __init__(self, bundle: Bundle, device: torch.device) -> None:
        self.bundle = bundle
        self.device = device
        self.log_mel = LogMel(bundle.features)
        if device.type == "cpu":
            # A window alone takes 0.7 times the time (2 AVX2 cores); many at once, as long.
            bundle.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._chunk_frames = frames_at_once(bundle.model)
        self._starts = chunk_starts(bundle.features.num_frames, self._chunk_frames)

    @classmethod
    def load(cls, bundle: str | Path, device: str = "auto") -> Tagger:
        """Loads a bundle, or the best bundle of a run folder.

        Args:
            bundle: a folder such as runs/demo/best, or runs/demo.
            device: auto, cpu or cuda.

        Raises:
            ValueError: no bundle, a damaged one, or no such device.
        """
        picked = pick_device(device)
        return cls(load_bundle(Path(bundle), picked), picked)

    @property
    def tag_names(self) -> list[str]:
        """Tags, in the order of the scores."""
        return self.bundle.tag_names

    @property
    def thresholds(self) -> dict[str, float]:
        """Per tag: the score from which the tag is held to fit."""
        return dict(zip(self.tag_names, self.bundle.thresholds, strict=True))

    @property
    def sample_rate_hz(self) -> int:
        """The rate at which it hears; other rates are resampled."""
        return self.bundle.features.sample_rate_hz

    @property
    def window_s(self) -> float:
        """Seconds from one window to the next."""
        return self.bundle.features.num_frames * self.bundle.features.frame_s

    @property
    def step_s(self) -> float:
        """Seconds from one row of :meth:`scores_over_time` to the next, on average."""
        return self.window_s / len(self._starts)

    def tag(self, source: str | Path | bytes) -> list[tuple[str, float]]:
        """Tags an audio file, or the bytes of one.

        Returns:
            Every tag with its score (0 to 1), highest first.

        Raises:
            ValueError: not audio, or silent; the message does not repeat the path.
        """
        source = Path(source) if isinstance(source, str) else source
        return self.ranked(listen(self, source).scores)

    def ranked(self, scores: NDArray[np.float32]) -> list[tuple[str, float]]:
        """Tags with their scores (t,), highest first; equal scores in vector order."""
        order = np.argsort(-scores, kind="stable")
        return [(self.tag_names[i], float(scores[i])) for i in order]

    def scores(self, waveform: NDArray[Any], sample_rate_hz: int) -> NDArray[np.float32]:
        """Scores (t,), 0 to 1, of a waveform; see :meth:`scores_over_time`."""
        mean: NDArray[np.float32] = self.scores_over_time(waveform, sample_rate_hz).mean(axis=0)
        return mean

    def scores_over_time(self, waveform: NDArray[Any], sample_rate_hz: int) -> NDArray[np.float32]:
        """Scores of each window of a waveform, or of each chunk of each window.

        Args:
            waveform: (n,), mono, floating point, nominally -1 to 1.
            sample_rate_hz: its rate.

        Returns:
            (r, t), 0 to 1; a row per :attr:`step_s` seconds.

        Raises:
            ValueError: the waveform is not of this kind, or holds what is not a finite number.
        """
        audio = resample(_checked(waveform), sample_rate_hz, self.sample_rate_hz)
        mel = self.log_mel(audio)
        chunks = (
            chunk
            for window in windows(mel, self.bundle.features.num_frames)
            for chunk in self.chunks(as_stored(window.mel))
        )
        found = []
        while batch := list(itertools.islice(chunks, self.chunks_at_once)):
            found.append(self.score_chunks(batch))
        return np.concatenate(found)

    @property
    def chunk_frames(self) -> int:
        """Frames that the network hears at once."""
        return self._chunk_frames

    @property
    def chunks_at_once(self) -> int:
        """Chunks that are scored at a time: no more frames than those of some windows."""
        return WINDOWS_PER_BATCH * self.bundle.features.num_frames // self._chunk_frames

    def chunks(self, window: NDArray[np.float16]) -> list[NDArray[np.float16]]:
        """What the network hears of a window (n_mels, num_frames), as shards hold it.

        In float16: the same clip then gets the same scores from eval.py.
        """
        return [window[:, start : start + self._chunk_frames] for start in self._starts]

    def score_chunks(self, chunks: Sequence[NDArray[np.float16]]) -> NDArray[np.float32]:
        """Scores (n, t) of n chunks (n_mels, chunk_frames); from any thread.

        Raises:
            ValueError: one that is not a finite number.
        """
        batch = {
            "mel": torch.from_numpy(np.stack(chunks)[:, None]),
            "tags": torch.zeros(len(chunks), len(self.tag_names), dtype=torch.uint8),
            "id": [""] * len(chunks),
        }
        scores = predict(self.bundle.model, [batch], self.device).scores
        if not np.isfinite(scores).all():
            raise ValueError("its scores are not finite numbers: it is too loud by far, or damaged")
        return scores


def _checked(waveform: NDArray[Any]) -> Waveform:
    if waveform.ndim != 1 or not waveform.size:
        raise ValueError(f"a waveform of shape {waveform.shape}: must be mono, (num_samples,)")
    if not np.issubdtype(waveform.dtype, np.floating):
        raise ValueError(
            f"a waveform of {waveform.dtype}: must be floating point, -1 to 1; divide whole "
            "numbers by their largest value"
        )
    audio = np.ascontiguousarray(waveform, dtype=np.float32)
    if not np.isfinite(audio).all():
        raise ValueError("a waveform with samples that are not finite numbers")
    return audio
