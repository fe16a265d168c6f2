"""Several downloads at once: one bar for all of them, and one way to stop them."""

from __future__ import annotations

import threading

from tqdm import tqdm


class StoppedError(Exception):
    """Another one of several downloads failed, or the user interrupted them all."""


class Together:
    """What downloads at the same time share: one bar, and one way to stop them all.

    Safe to use from several threads.
    """

    def __init__(
        self, what: str, *, num_bytes: int | None = None, progress: bool = True, have: int = 0
    ) -> None:
        """Show a bar when stderr is a terminal.

        Args:
            what: said before the bar.
            num_bytes: of all files, when known.
            progress: False: no bar in any case.
            have: how many of these bytes have arrived before.
        """
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._bar = tqdm(
            total=num_bytes,
            initial=have,
            desc=what,
            unit="B",
            unit_scale=True,
            disable=None if progress else True,
        )

    def check(self) -> None:
        """Raise StoppedError when all shall stop."""
        if self._stopped.is_set():
            raise StoppedError("another download failed, or all were stopped")

    def wait(self, seconds: float) -> None:
        """Pause; a stop ends the pause with StoppedError."""
        self._stopped.wait(seconds)
        self.check()

    def moved(self, num_bytes: int) -> None:
        """Count bytes that have arrived, or (negative) that were thrown away."""
        with self._lock:
            self._bar.update(num_bytes)

    def say(self, text: str) -> None:
        """Put a few words behind the bar."""
        with self._lock:
            self._bar.set_postfix_str(text)

    def stop(self) -> None:
        """End every download at its next block, and every pause now."""
        self._stopped.set()

    def close(self) -> None:
        """Leave the bar as it stands."""
        with self._lock:
            self._bar.close()
