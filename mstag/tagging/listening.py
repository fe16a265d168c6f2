"""A file -> the tagger's scores of it, as a whole and over time, in bounded memory.

The whole is heard as packing hears it: the same windows (see :mod:`mstag.data.clip_windows`),
the same float16, and so the same scores as eval.py gives the same clip.

Shapes: t tags, r stretches, M mel bands, C frames that the network hears at once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mstag.data.audio import open_audio
from mstag.data.clip_windows import SILENT, as_window, clip_pieces
from mstag.data.features import as_stored
from mstag.tagging.timeline import Timeline

if TYPE_CHECKING:
    from mstag.tagging.tagger import Tagger

Scores = NDArray[np.float32]
Chunk = NDArray[np.float16]
Submit = Callable[[Sequence[Chunk]], Future[Scores]]


@dataclass(frozen=True, slots=True)
class Heard:
    """What the tagger says of one file."""

    scores: Scores
    """(t,): the mean over the windows that are not silent."""
    duration_s: float
    truncated: bool
    """Less came than the file promises: these are the scores of what came."""
    over_time: Scores | None = None
    """(r, t): see :mod:`mstag.tagging.timeline`; NaN where there is silence."""


def listen(
    tagger: Tagger,
    source: Path | bytes,
    *,
    every_s: float | None = None,
    submit: Submit | None = None,
) -> Heard:
    """Decodes a file block by block and scores it.

    Args:
        tagger: who listens.
        source: a file, or the bytes of one.
        every_s: length of a stretch of ``over_time``, in seconds; None: none is wanted.
        submit: gives chunks (M, C) to whom scores them, and may wait before it returns; None:
            they are scored here and now.

    Raises:
        ValueError: not usable audio, or silent; the message does not repeat the path.
    """
    send = _Sender(submit or _here(tagger), tagger.chunks_at_once)
    features = tagger.bundle.features
    timeline = None
    if every_s is not None:
        frame_s = features.hop_length / features.sample_rate_hz
        timeline = Timeline(every_s / frame_s, tagger.chunk_frames, features.hop_length)
    with open_audio(source) as reader:
        for piece in clip_pieces(reader, tagger.log_mel):
            window = as_window(piece, features.num_frames)
            if window is not None:
                for chunk in tagger.chunks(as_stored(window.mel)):
                    send(WHOLE, chunk)
            if timeline is not None:
                for stretch, chunk in timeline.feed(piece):
                    send(stretch, chunk)
        if timeline is not None:
            for stretch, chunk in timeline.finish(reader.decoded_s * features.sample_rate_hz):
                send(stretch, chunk)
        duration_s, truncated = reader.decoded_s, reader.truncated
    means = send.means()
    if WHOLE not in means:
        raise ValueError(SILENT)
    over_time = None
    if timeline is not None:
        over_time = np.full((timeline.num_stretches, len(means[WHOLE])), np.nan, np.float32)
        for stretch, mean in means.items():
            if stretch != WHOLE:
                over_time[stretch] = mean
    return Heard(means[WHOLE], duration_s, truncated, over_time)


WHOLE = -1
"""Stands for the whole piece where others are numbers of stretches."""


class _Sender:
    """Sends chunks, a few at a time, and averages what comes back.

    Scores are added up as soon as they are there, in the order in which their chunks were sent.
    """

    def __init__(self, submit: Submit, at_once: int) -> None:
        self._submit = submit
        self._at_once = at_once
        self._waiting: list[tuple[int, Chunk]] = []
        self._sent: deque[tuple[list[int], Future[Scores]]] = deque()
        self._sums: dict[int, NDArray[np.float64]] = {}
        self._counts: Counter[int] = Counter()

    def __call__(self, owner: int, chunk: Chunk) -> None:
        self._waiting.append((owner, chunk))
        if len(self._waiting) == self._at_once:
            self._send()

    def means(self) -> dict[int, Scores]:
        """The mean scores (t,) of each owner's chunks."""
        self._send()
        while self._sent:
            self._add_up()
        return {
            owner: (total / self._counts[owner]).astype(np.float32)
            for owner, total in self._sums.items()
        }

    def _send(self) -> None:
        if self._waiting:
            owners, chunks = zip(*self._waiting, strict=True)
            self._sent.append((list(owners), self._submit(chunks)))
            self._waiting = []
        # What is kept from each of the scorers' threads for long holds on to their memory:
        # 1 MB of it for each 200 bytes of scores, measured over some hours of sound.
        while self._sent and self._sent[0][1].done():
            self._add_up()

    def _add_up(self) -> None:
        owners, future = self._sent.popleft()
        for owner, row in zip(owners, future.result(), strict=True):
            self._counts[owner] += 1
            self._sums[owner] = self._sums.get(owner, 0) + row.astype(np.float64)


def _here(tagger: Tagger) -> Submit:
    def submit(chunks: Sequence[Chunk]) -> Future[Scores]:
        future: Future[Scores] = Future()
        future.set_result(tagger.score_chunks(chunks))
        return future

    return submit
