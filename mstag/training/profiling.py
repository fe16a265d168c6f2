"""--profile: what a few training steps spend their time on, written into the run folder."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Any, Self

log = logging.getLogger("mstag")

NUM_WAITING, NUM_WARMING, NUM_STEPS = 3, 2, 5
"""Steps that pass before, steps during which the profiler warms up, steps that are recorded."""
FOLDER = "profile"


class Profile:
    """Records a few steps with torch's profiler; without a folder it does nothing.

    Writes ``trace-rank0.json.gz`` (for Perfetto or chrome://tracing) and ``steps-rank0.txt``, the
    operators by the time that they took.
    """

    def __init__(self, run: Path | None, rank: int) -> None:
        self._folder = None if run is None else run / FOLDER
        self._rank = rank
        self._profiler: Any = None
        self._num_steps = 0

    def step(self) -> None:
        """A training step is done."""
        if self._profiler is not None:
            self._num_steps += 1
            self._profiler.step()

    def __enter__(self) -> Self:
        if self._folder is None:
            return self
        from torch import cuda, profiler

        self._folder.mkdir(parents=True, exist_ok=True)
        steps = profiler.schedule(wait=NUM_WAITING, warmup=NUM_WARMING, active=NUM_STEPS, repeat=1)
        kinds = profiler.ProfilerActivity
        self._profiler = profiler.profile(
            activities=[kinds.CPU, *[kinds.CUDA] * cuda.is_available()],
            schedule=steps,
            on_trace_ready=self._write,
            record_shapes=True,
            profile_memory=True,
            acc_events=True,  # there is but one cycle; without, torch warns of others
        )
        self._profiler.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._profiler is not None:
            self._profiler.__exit__(kind, error, traceback)
            if self._num_steps < NUM_WAITING + NUM_WARMING + NUM_STEPS:
                log.warning(
                    f"--profile: the training ended after {self._num_steps} steps, before "
                    f"{NUM_STEPS} could be recorded: it takes "
                    f"{NUM_WAITING + NUM_WARMING + NUM_STEPS}"
                )

    def _write(self, profiler: Any) -> None:
        assert self._folder is not None
        order = "self_cuda_time_total" if _has_cuda_times(profiler) else "self_cpu_time_total"
        trace = self._folder / f"trace-rank{self._rank}.json.gz"
        table = self._folder / f"steps-rank{self._rank}.txt"
        profiler.export_chrome_trace(str(trace))
        table.write_text(
            profiler.key_averages().table(sort_by=order, row_limit=40) + "\n", encoding="utf-8"
        )
        log.info(f"profile of training steps: {table}, {trace}")


def _has_cuda_times(profiler: Any) -> bool:
    import torch

    return torch.profiler.ProfilerActivity.CUDA in profiler.activities
