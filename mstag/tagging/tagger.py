"""A trained model -> tags for anyone's music.

Shapes: n samples of a waveform, r rows of scores over a piece, t tags, f features.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray

from mstag.data.features import LogMel, as_stored, windows
from mstag.data.resampling import Waveform, resample
from mstag.models import frames_at_once
from mstag.models.bundle import Bundle, load_bundle
from mstag.models.predict import chunk_starts, predict
from mstag.runtime import pick_device
from mstag.tagging import hub
from mstag.tagging.embeddings import embed_file, embed_waveform
from mstag.tagging.listening import listen
from mstag.tagging.requirements import require_packages

WINDOWS_PER_BATCH = 8
"""Windows scored at a time on a GPU (0.3 GB of activations with the default features)."""


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
        require_packages()
        return cls(load_bundle(Path(bundle), picked), picked)

    @classmethod
    def from_pretrained(
        cls,
        bundle: str | Path,
        device: str = "auto",
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        endpoint: str | None = None,
    ) -> Tagger:
        """Loads a bundle, or the best of a run, or what an id of the Hugging Face Hub stands for.

        Args:
            bundle: a folder that exists, or else an id such as user/name.
            device: auto, cpu or cuda.
            revision: a branch, tag or commit on the Hub.
            cache_dir: where the Hub's files are kept.
            token: for what is private.
            endpoint: another server than the Hub.

        Raises:
            ValueError: see :meth:`load` and :func:`mstag.tagging.hub.find_or_fetch`.
        """
        folder = hub.find_or_fetch(
            bundle, revision=revision, cache_dir=cache_dir, token=token, endpoint=endpoint
        )
        return cls.load(folder, device)

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

    @property
    def least_every_s(self) -> float:
        """The shortest stretch, in seconds, that scores over time can be had of: two frames."""
        return 2 * self.bundle.features.frame_s

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

    @overload
    def tag_batch(
        self, sources: Iterable[str | Path], *, on_error: Literal["raise"] = "raise"
    ) -> list[list[tuple[str, float]]]: ...

    @overload
    def tag_batch(
        self, sources: Iterable[str | Path], *, on_error: Literal["none"]
    ) -> list[list[tuple[str, float]] | None]: ...

    def tag_batch(
        self, sources: Iterable[str | Path], *, on_error: Literal["raise", "none"] = "raise"
    ) -> list[Any]:
        """Tags files, decoding some while it scores others.

        Args:
            sources: audio files.
            on_error: what becomes of one that cannot be tagged: a ValueError ("raise"), or None
                in its place ("none").

        Returns:
            For each, in order, what :meth:`tag` returns.

        Raises:
            ValueError: names the first file that cannot be tagged, and why.
        """
        from mstag.tagging.batch import tag_files
        from mstag.tagging.results import Result

        if on_error not in ("raise", "none"):
            raise ValueError(f"on_error = {on_error!r}: must be raise or none")
        found: list[Any] = []
        for result in tag_files(self, [Result(str(source)) for source in sources]):
            if result.scores is None and on_error == "raise":
                raise ValueError(f"{result.path}: {result.error}")
            found.append(None if result.scores is None else self.ranked(result.scores))
        return found

    def embeddings(
        self, source: str | Path | bytes | NDArray[Any], sample_rate_hz: int | None = None
    ) -> NDArray[np.float32]:
        """The features (f,) that the tags are read from: :meth:`embeddings_over_time`, averaged."""
        over_time = self.embeddings_over_time(source, sample_rate_hz)
        mean: NDArray[np.float32] = over_time.mean(axis=0)
        return mean

    def embeddings_over_time(
        self, source: str | Path | bytes | NDArray[Any], sample_rate_hz: int | None = None
    ) -> NDArray[np.float32]:
        """What the network's last layer hears of each window, or of each chunk of each window.

        Args:
            source: an audio file, the bytes of one, or a waveform as for :meth:`scores`.
            sample_rate_hz: of a waveform; a file brings its own.

        Returns:
            (r, f): a row per :attr:`step_s` seconds; for mscnn f is ``model.hidden_units``, and
            features are 0 or more. Of a file, windows of silence are left out.

        Raises:
            ValueError: not audio, or not such a waveform.
        """
        if isinstance(source, np.ndarray):
            if sample_rate_hz is None:
                raise ValueError("a waveform without its sample_rate_hz: give it as well")
            audio = resample(_checked(source), sample_rate_hz, self.sample_rate_hz)
            return embed_waveform(self.bundle, audio, self.device)
        path = Path(source) if isinstance(source, str) else source
        return embed_file(self.bundle, path, self.device)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        endpoint: str | None = None,
        message: str = "",
    ) -> str:
        """Uploads the bundle to the Hugging Face Hub; see :func:`mstag.tagging.hub.push`.

        Returns:
            The address of the commit.
        """
        return hub.push(
            self.bundle,
            repo_id,
            private=private,
            revision=revision,
            token=token,
            endpoint=endpoint,
            message=message,
        )

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
        """Chunks that are scored at a time.

        On a CPU those of one window: its activations stay in the cache, and its scores do not
        depend, in their last bits, on what else is scored with it.
        """
        num_windows = 1 if self.device.type == "cpu" else WINDOWS_PER_BATCH
        return num_windows * len(self._starts)

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
