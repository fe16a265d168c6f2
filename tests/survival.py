"""Training processes that tests kill, and what may be left of a run afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tiny_run
from shared_data import REPOSITORY

from mstag.training import checkpoint


class Forks:
    """Starts train.py again and again, in a process of its own each time (forked_train.py)."""

    def __init__(self) -> None:
        env = tiny_run.environment(PYTHONPATH=os.pathsep.join([str(REPOSITORY), str(TESTS)]))
        self._server = subprocess.Popen(
            [sys.executable, str(TESTS / "forked_train.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=env,
        )
        assert self._answer() == "ready"

    def start(self, argv: list[str], log: Path) -> int:
        """Starts a process; returns its id."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({"argv": argv, "log": str(log)}) + "\n")
        self._server.stdin.flush()
        return int(self._answer())

    def wait(self) -> int:
        """Waits for the process that was started last; returns its exit code."""
        return int(self._answer())

    def close(self) -> None:
        """Ends the server."""
        self._server.communicate()

    def _answer(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()


TESTS = REPOSITORY / "tests"


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended, and what it said."""

    exit_code: int
    stderr: str


class Trainings:
    """The same command, started as often as it takes."""

    def __init__(self, forks: Forks, argv: list[str], run: Path) -> None:
        self.forks, self.argv, self.run = forks, argv, run
        self.num_starts = 0

    def end(self, number: int = 0, *, after_s: float = 0.0, step: int | None = None) -> End:
        """Starts the command, sends signal ``number`` (0: none), and waits for its end.

        The signal comes after some seconds, or once there is a checkpoint of ``step`` or later.
        """
        self.num_starts += 1
        log = self.run.with_name(f"{self.run.name}-{self.num_starts}.log")
        pid = self.forks.start(self.argv, log)
        if number:
            if step is None:
                time.sleep(after_s)
            else:
                wait_for_checkpoint(self.run, step)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        end = End(self.forks.wait(), Path(f"{log}.err").read_text())
        assert_nothing_lives(pid)
        return end

    def check(self, end: End, number: int) -> None:
        """What holds after every end: an exit code that says why, and whole checkpoints."""
        allowed = {0} if number == 0 else {-9, 0} if number == 9 else {128 + number, -number, 0}
        assert end.exit_code in allowed, end
        assert end.exit_code or (self.run / "finished.json").exists(), end
        assert "Traceback" not in end.stderr, end.stderr
        for path in checkpoint.paths(self.run / "checkpoints"):
            checkpoint.load(path)
        if number != signal.SIGKILL:
            assert leftovers(self.run) == []


def leftovers(run: Path) -> list[Path]:
    """Temporary files in a run folder."""
    return [path for path in run.rglob("*") if path.name.endswith(".tmp")]


def wait_for_checkpoint(run: Path, step: int) -> None:
    """Waits until a run has a checkpoint of ``step`` or later."""
    for _ in range(6000):
        newest = next(iter(checkpoint.paths(run / "checkpoints")), None)
        if newest is not None and checkpoint.step_of(newest) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"{run} never came to step {step}")


def assert_nothing_lives(session: int) -> None:
    """All processes of a session end within seconds of its first."""
    for _ in range(1000):
        if not (living := list(members(session))):
            return
        time.sleep(0.01)
    raise AssertionError(f"outlived their training: {living}")


def members(session: int) -> Iterator[str]:
    """The command lines of a session's processes that live (Linux; elsewhere none)."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # Behind the name, in parentheses: state, parent, group, session.
            state, _, _, own = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                yield (folder / "cmdline").read_text().replace("\0", " ")
