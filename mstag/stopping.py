"""SIGINT and SIGTERM: a run ends at a moment of its own choosing, with everything saved.

Before there is anything to save, a signal ends the process at once, even one that waits inside
a library for other ranks, where Python's handlers are not called. From :meth:`Stop.armed` on it
is remembered, and the training asks after it between two steps and between two batches of an
evaluation.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

from mstag import runtime
from mstag.runtime import Ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 2.0
"""How long the start has, when a signal came, to end in good order."""


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """A signal asked the run to end, and all ranks know it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, as shells count."""
        return 128 + self.number


class Stop:
    """Listens for signals inside its ``with`` block."""

    def __init__(self) -> None:
        self.number = 0
        """The first signal that came; 0: none."""
        self._is_armed = False
        self._before: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup_before = -1

    def armed(self) -> None:
        """From here on signals wait to be asked for; one that came earlier has ended all."""
        self._is_armed = True
        self._stop_watching()

    def is_due(self, ranks: Ranks, *, something_else: bool = False) -> bool:
        """Whether ``something_else`` is due on any rank.

        The same answer on every rank: their clocks and signals differ, what they do next
        must not. Costs one small gloo reduction (0.1 ms on one machine), which a GPU does
        not notice: its queue of work is longer.

        Raises:
            Stopped: a signal came to any rank.
        """
        packed = runtime.largest_over_ranks(2 * self.number + something_else, ranks)
        if packed > 1:
            raise Stopped(packed // 2)
        return bool(packed)

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._hear)
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._pipe[0],), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop_watching()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _watch(self, read_end: int) -> None:
        """Ends a start that is deaf to a signal; the interpreter writes their numbers here."""
        with os.fdopen(read_end, "rb", buffering=0) as heard:
            while number := heard.read(1):
                if number[0] in SIGNALS:
                    time.sleep(GRACE_S)
                    if not self._is_armed and self._pipe is not None:
                        os._exit(128 + number[0])

    def _stop_watching(self) -> None:
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._pipe[1])
            self._pipe = None

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self._is_armed:
            raise SystemExit(128 + number)
        # Who presses Ctrl-C twice means it. Not so under torchrun, which hands the first one
        # on, as SIGTERM, to ranks that the terminal has already told.
        twice = self.number == number == signal.SIGINT
        if twice and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise SystemExit(128 + number)
        self.number = self.number or number
