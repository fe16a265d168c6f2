"""Who is there, which pieces they dropped, and what became of them: one is heard at a time.

However many visitors there are, one thread listens, so memory is that of one piece. It takes the
visitors' pieces in turn: each visitor has one in line, and hands in the next when that is done.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillWorking
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mstag.show import piece as show
from mstag.tagging import hearing, results
from mstag.tagging.results import Result, Shown

if TYPE_CHECKING:
    from mstag.tagging.tagger import Tagger

LOOK_S = 0.4
"""Seconds from one look at a piece that is being heard to the next."""


@dataclass(slots=True, eq=False)
class Piece:
    """A file that somebody dropped, and the card that shows it."""

    card_id: str
    name: str
    files: list[Path]
    """The upload, and the copy that browsers play, if there is one."""
    card: str
    result: Result | None = None
    """None until it is tagged, or found to be no audio."""
    line: str = ""
    """Its result as JSON."""
    is_taken: bool = False


@dataclass(slots=True)
class Visit:
    """One open page."""

    pieces: list[Piece] = field(default_factory=list)
    num_seen: int = 0
    """Of pieces, with those that were cleared away: ids are not used twice."""


class Desk:
    """Takes files in and hands cards out; see the top of this room.

    Args:
        tagger: who listens.
        folder: where all uploads are; files elsewhere are neither read nor removed.

    Attributes:
        visits: per session of a browser, until it leaves.
        on_copy: told of each file that was written to be played.
    """

    def __init__(self, tagger: Tagger, folder: Path) -> None:
        self.visits: dict[str, Visit] = {}
        self.on_copy: Callable[[Path], object] = lambda path: None
        self._tagger = tagger
        self._folder = folder.resolve()
        self._lock = threading.Lock()
        self._is_closed = False
        self._listener = ThreadPoolExecutor(1, thread_name_prefix="listener")

    def tag(self, session: str, uploads: Sequence[tuple[str, Path]]) -> Iterator[dict[str, Any]]:
        """Takes (name, file) pairs in, and yields what the page shows until all are done.

        Raises:
            ValueError: a file that is no upload, which only a forged request can name.
        """
        for _, path in uploads:
            if not path.resolve().is_relative_to(self._folder):
                raise ValueError("only files that were uploaded can be tagged")
        with self._lock:
            visit = self.visits.setdefault(session, Visit())
            for name, path in uploads:
                card_id = f"piece{visit.num_seen}"
                visit.num_seen += 1
                card = show.waiting_card(name, card_id, None)
                visit.pieces.append(Piece(card_id, name, [path], card))
        yield shown(visit)
        while piece := self._next(session):
            for _ in self._hear(session, piece):
                yield shown(visit)
        yield shown(visit)

    def clear(self, session: str) -> dict[str, Any]:
        """Forgets a visitor's pieces and removes their files; returns what the page shows then."""
        with self._lock:
            visit = self.visits.get(session, Visit())
            gone = [path for piece in visit.pieces for path in piece.files]
            visit.pieces.clear()
        self._remove(gone)
        return shown(visit)

    def leave(self, session: str) -> None:
        """The page was closed."""
        self.clear(session)
        self.visits.pop(session, None)

    def close(self) -> None:
        """Stops listening; what is being heard is given up at its next part."""
        self._is_closed = True
        self._listener.shutdown(cancel_futures=True)

    def _next(self, session: str) -> Piece | None:
        """The visitor's next piece that nobody has taken on, now taken."""
        with self._lock:
            visit = self.visits.get(session, Visit())
            piece = next((piece for piece in visit.pieces if not piece.is_taken), None)
            if piece:
                piece.is_taken = True
            return None if self._is_closed else piece

    def _remove(self, paths: Sequence[Path]) -> None:
        """Removes those that nobody holds: a file dropped by two visitors is stored once."""
        with self._lock:
            pieces = [piece for visit in self.visits.values() for piece in visit.pieces]
            held = {path for piece in pieces for path in piece.files}
        for path in paths:
            if path not in held:
                with suppress(OSError):
                    path.unlink()

    def _is_wanted(self, session: str, piece: Piece) -> bool:
        visit = self.visits.get(session)
        return not self._is_closed and visit is not None and piece in visit.pieces

    def _hear(self, session: str, piece: Piece) -> Iterator[None]:
        """Has a piece heard; yields whenever its card has changed."""
        so_far: list[float] = []

        def progress(share: float) -> None:
            if not self._is_wanted(session, piece):
                raise hearing.Stopped
            so_far[:] = [share]

        try:
            future = self._listener.submit(self._result, piece, progress)
        except RuntimeError:  # the desk was closed meanwhile
            return
        while not future.done():
            with suppress(StillWorking):
                future.exception(LOOK_S)
            if not self._is_wanted(session, piece):
                future.cancel()
                return
            if so_far and not future.done():
                card = show.waiting_card(piece.name, piece.card_id, so_far[0])
                if card != piece.card:
                    piece.card = card
                    yield
        if self._is_wanted(session, piece):
            self._finish(piece, future)
            yield

    def _finish(self, piece: Piece, future: Future[str]) -> None:
        """Puts the result on the piece's card."""
        try:
            piece.card = future.result()
        except (ValueError, OSError) as error:
            why = str(error) if isinstance(error, ValueError) else "its copy here cannot be read"
            piece.result = Result(piece.name, error=why)
        except MemoryError:
            why = "holds more audio than fits into memory; cut it into parts"
            piece.result = Result(piece.name, error=why)
        except Exception:
            # A defect of ours. Its traceback goes to the terminal, and the page goes on.
            traceback.print_exc()
            why = "mstag failed on it, which is a defect; the terminal it runs in says more"
            piece.result = Result(piece.name, error=why)
        assert piece.result is not None
        if piece.result.error is not None:
            piece.card = show.failed_card(piece.name, piece.card_id, piece.result.error)
            piece.line = results.as_json(piece.result, Shown([]))

    def _result(self, piece: Piece, progress: Callable[[float], None]) -> str:
        """The card of a piece that is heard here and now, in the listener's thread."""
        progress(0.0)
        tagger, path = self._tagger, piece.files[0]
        waveform, to_play = hearing.read(path, tagger.sample_rate_hz)
        if to_play != path:
            piece.files.append(to_play)
            self.on_copy(to_play)
        try:
            heard = hearing.hear(tagger, path, waveform, progress)
        except hearing.Stopped:
            # What was written, or could not be removed, while it was being heard.
            self._remove(piece.files)
            raise
        piece.result = Result(piece.name, duration_s=heard.duration_s)
        piece.line = results.as_json(piece.result, Shown(tagger.ranked(heard.scores)))
        tagged = show.Tagged(
            piece.name,
            heard.duration_s,
            tagger.tag_names,
            heard.scores,
            heard.over_time,
            tagger.thresholds,
            show.file_url(to_play),
            f"{piece.line}\n",
        )
        return show.card(tagged, piece.card_id)


def shown(visit: Visit) -> dict[str, Any]:
    """What the page shows of a visit: how far it is, and a card a piece."""
    pieces = list(visit.pieces)
    done = [piece.result for piece in pieces if piece.result is not None]
    num_failed = sum(result.error is not None for result in done)
    lines = [piece.line for piece in pieces if piece.line]
    is_done = len(done) == len(pieces)
    return {
        "summary": show.summary(
            len(done) - num_failed, num_failed, len(pieces) - len(done), lines if is_done else []
        ),
        "cards": [{"id": piece.card_id, "html": piece.card} for piece in pieces],
    }
