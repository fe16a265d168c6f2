"""What somebody at the keyboard sees of a running training, and how its time is measured."""

from __future__ import annotations

import logging
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeVar

import torch

log = logging.getLogger("mstag")

T = TypeVar("T")


class Clock:
    """Times the steps of a loop over batches, and how much of it is waiting for data.

    On a GPU the loop runs ahead of the device, so a wait that the device's queue hides
    still counts: the share is an upper bound.

    Args:
        waiting_s: what the loader has waited so far, as it counts it itself; None: all time that
            asking it for a batch takes.
    """

    def __init__(self, waiting_s: Callable[[], float] | None = None) -> None:
        self._waiting_s = waiting_s or time.perf_counter
        self._mark = 0.0
        self._seconds = self._waited_s = 0.0
        self._num_steps = 0

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Passes batches on; only the time inside this loop counts."""
        iterator = iter(batches)
        self._mark = time.perf_counter()
        while True:
            asked = self._waiting_s()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited_s += self._waiting_s() - asked
            self._num_steps += 1
            yield batch
            self._count_up()

    def lap(self) -> tuple[float, float]:
        """(steps per second, share of the time spent waiting for data) since the last lap."""
        self._count_up()
        seconds = max(self._seconds, 1e-9)
        result = self._num_steps / seconds, min(1.0, self._waited_s / seconds)
        self._seconds = self._waited_s = 0.0
        self._num_steps = 0
        return result

    def _count_up(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._mark = now


class Display:
    """A progress bar on a terminal, a line per logging step elsewhere, nothing on other ranks."""

    def __init__(self, *, total_steps: int, done_steps: int, shown: bool) -> None:
        self.total_steps = total_steps
        self._first_step = self._step = done_steps
        self._started = time.monotonic()
        self._shown = shown
        self._bar: Any = None
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total_steps,
                initial=done_steps,
                unit="step",
                dynamic_ncols=True,
                smoothing=0.05,
            )

    def step(self) -> None:
        """One more step is done."""
        self._step += 1
        if self._bar is not None:
            self._bar.update()

    def line(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Says where the training of ``epoch`` (from 1) stands, in W&B's keys."""
        text = (
            f"epoch {epoch}  loss {metrics['train/loss']:.4f}  lr {metrics['train/lr']:.3g}  "
            f"{metrics['train/clips_per_s']:.1f} clips/s  "
            f"data wait {metrics['train/data_wait']:.1%}"
        )
        if self._bar is not None:
            self._bar.set_description_str(text)
        elif self._shown:
            log.info(f"step {self._step}/{self.total_steps}  {text}  {self.eta()}")

    def eta(self) -> str:
        """The time that is left, from the pace of this process, validation included."""
        done = self._step - self._first_step
        if done == 0:
            return "ETA unknown"
        pace_s = (time.monotonic() - self._started) / done
        return f"ETA {duration(pace_s * (self.total_steps - self._step))}"

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()


DRIVER_PERIOD_S = 1.0
"""Between two questions to a GPU's driver, which takes its time and seldom has a new answer."""


class Busy:
    """How much of the device is in use: of a GPU as its driver says, of CPUs by this process.

    A loader's own processes do not count.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._mark = self._now()
        self._share: float | None = None
        self._asked_s = -math.inf

    def lap(self) -> float | None:
        """A share, 0 to 1: of all cores since the last lap, or of a GPU's time a moment ago.

        None: the package nvidia-ml-py, which asks the driver, is not there, or it does not know.
        """
        if self._device.type == "cuda":
            now = time.perf_counter()
            if now - self._asked_s >= DRIVER_PERIOD_S:
                self._asked_s = now
                try:
                    self._share = torch.cuda.utilization(self._device) / 100
                except Exception:  # of its library, which knows errors of its own (MIG)
                    self._share = None
            return self._share
        (used_s, at), self._mark = self._mark, self._now()
        seconds = max(1e-9, self._mark[1] - at)
        return min(1.0, (self._mark[0] - used_s) / (seconds * (os.cpu_count() or 1)))

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.process_time(), time.perf_counter()


def peak_memory_gb(device: torch.device) -> float:
    """The most memory that was in use, in GB (10**9 bytes).

    Of a GPU's, since the last call, what tensors took. On a CPU, what this process had in
    RAM since it started.
    """
    if device.type == "cuda":
        num_bytes = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return num_bytes / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def duration(seconds: float) -> str:
    """Seconds in words: "50 s", "12 min", "3 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
