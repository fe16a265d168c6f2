"""Many files -> their results, in order; a file that fails does not stop the rest.

Some threads decode and make spectrograms, others run the network, each of them on one core:
libsndfile, numpy and torch let go of the interpreter while they work. What is decoded waits in
few places, so that decoding never runs far ahead of the network, whatever the files' length.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mstag.models.predict import full_float32
from mstag.runtime import available_cores, one_thread
from mstag.tagging.find import FOREIGN_SUFFIXES
from mstag.tagging.listening import listen
from mstag.tagging.results import Result

if TYPE_CHECKING:
    from mstag.tagging.tagger import Tagger

MOST_READERS = 32
"""Each holds up to a minute of sound: 40 MB at CD quality."""
GPU_SCORERS = 2
"""One copies while the other computes."""
FILES_AHEAD = 1000
"""Files that may be done before a long one that comes first: their results are small."""
POLL_S = 0.1

Step = Callable[[Result], Result]


def tag_files(
    tagger: Tagger,
    found: Sequence[Result],
    *,
    every_s: float | None = None,
    before: Step | None = None,
    after: Step | None = None,
    num_cores: int | None = None,
) -> Iterator[Result]:
    """Completes what :func:`mstag.tagging.find.find_files` found, in its order.

    Args:
        tagger: who tags.
        found: of these, those without an error.
        every_s: length of a stretch of ``Result.over_time``; None: none is wanted.
        before: is asked, in a thread, before a file is opened; a result that it returns with
            scores stands, and the file is left alone.
        after: is given each result with scores, in a thread, as soon as it is there and
            before it is yielded. What it raises is an error of that file, as for ``before``.
        num_cores: cores to use; None: all that this process may use.
    """
    work = _Work(tagger, every_s, before, after, num_cores or available_cores())
    # The settings of the process that scoring needs, held around all threads' scoring.
    with one_thread(), full_float32(), work:
        rest = iter(found)
        ahead: deque[tuple[Result, Future[Result] | None]] = deque()
        while True:
            for item in itertools.islice(rest, FILES_AHEAD - len(ahead)):
                ahead.append((item, None if item.error else work.start(item)))
            if not ahead:
                return
            item, future = ahead.popleft()
            yield item if future is None else future.result()


class _Work:
    """The threads, and the places between them."""

    def __init__(
        self,
        tagger: Tagger,
        every_s: float | None,
        before: Step | None,
        after: Step | None,
        num_cores: int,
    ) -> None:
        on_cpu = tagger.device.type == "cpu"
        num_scorers = num_cores if on_cpu else GPU_SCORERS
        self._tagger = tagger
        self._every_s = every_s
        self._before, self._after = before, after
        # More than cores: some wait for a disk, or for the scores of their last window.
        self._readers = ThreadPoolExecutor(min(MOST_READERS, num_cores + 2), "read")
        self._scorers = ThreadPoolExecutor(num_scorers, "score")
        self._places = threading.BoundedSemaphore(2 * num_scorers)
        self._stopped = threading.Event()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        # After an interruption nothing is waited for: what runs ends at its next block.
        self._stopped.set()
        for pool in (self._readers, self._scorers):
            pool.shutdown(wait=error[0] is None, cancel_futures=True)

    def start(self, item: Result) -> Future[Result]:
        """Begins with a file as soon as a reader is free."""
        return self._readers.submit(self._tag, item)

    def _tag(self, item: Result) -> Result:
        try:
            if self._before is not None:
                item = self._before(item)
            if item.scores is None:
                heard = listen(
                    self._tagger,
                    Path(item.path),
                    every_s=self._every_s,
                    submit=self._submit,
                )
                item = dataclasses.replace(
                    item,
                    duration_s=heard.duration_s,
                    scores=heard.scores,
                    over_time=heard.over_time,
                    every_s=self._every_s,
                    truncated=heard.truncated,
                )
            return self._after(item) if self._after is not None else item
        except CancelledError:
            return Result(item.path, error="interrupted")
        except ValueError as error:
            suffix = Path(item.path).suffix.lower()
            hint = "; convert it to flac, mp3 or wav" if suffix in FOREIGN_SUFFIXES else ""
            return Result(item.path, error=f"{error}{hint}")
        except OSError as error:
            return Result(item.path, error=(error.strerror or str(error)).lower())
        except MemoryError:
            return Result(item.path, error="takes more memory than there is; cut it into parts")
        except Exception as error:
            # A defect, of ours or of a decoder, must not cost the others their tags.
            if os.environ.get("MSTAG_TRACEBACK"):
                raise
            words = f"{type(error).__name__}: {error}".split("\n")[0]
            return Result(item.path, error=f"defect ({words}); MSTAG_TRACEBACK=1 shows more")

    def _submit(self, chunks: Sequence[NDArray[np.float16]]) -> Future[NDArray[np.float32]]:
        while not self._places.acquire(timeout=POLL_S):
            if self._stopped.is_set():
                break
        if self._stopped.is_set():
            raise CancelledError
        try:
            future = self._scorers.submit(self._tagger.score_chunks, chunks)
        except RuntimeError:  # the pool was shut down meanwhile
            raise CancelledError from None
        future.add_done_callback(lambda _: self._places.release())
        return future
