"""Training processes that tests kill, and what may be left of a run afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tiny_run
from shared_data import REPOSITORY

from mstag.training import checkpoint

TESTS = REPOSITORY / "tests"


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

    def start(self, argv: list[str], out: Path, err: Path, max_bytes: int = -1) -> int:
        """Starts a process, whose files may not grow beyond ``max_bytes``; returns its id."""
        order = {"argv": argv, "out": str(out), "err": str(err), "max_bytes": max_bytes}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order) + "\n")
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


class Processes:
    """The same with whole processes: their first seconds are among what can be cut short."""

    def start(self, argv: list[str], out: Path, err: Path, max_bytes: int = -1) -> int:
        """Starts a process; returns its id."""
        assert max_bytes < 0, "not needed so far"
        with out.open("a") as stdout, err.open("a") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, str(REPOSITORY / "train.py"), *argv],
                stdout=stdout,
                stderr=stderr,
                cwd=REPOSITORY,
                env=tiny_run.environment(),
                start_new_session=True,
            )
        return self._process.pid

    def wait(self) -> int:
        """Waits for the process that was started last; returns its exit code."""
        return self._process.wait()


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended, and what it said."""

    exit_code: int
    stderr: str


class Training:
    """One run, whose command is started as often as it takes."""

    def __init__(self, starter: Forks | Processes, argv: list[str], run: Path) -> None:
        self.starter, self.argv, self.run = starter, argv, run
        self.num_starts = 0

    @property
    def is_finished(self) -> bool:
        """Whether the run is over."""
        return (self.run / "finished.json").exists()

    def start(
        self,
        number: int = 0,
        *,
        after_s: float = 0.0,
        step: int | None = None,
        whole_group: bool = False,
        max_bytes: int = -1,
    ) -> End:
        """Starts the command, sends signal ``number`` (0: none), and waits for the end.

        Args:
            number: of the signal.
            after_s: when it comes, unless
            step: says that it comes once there is a checkpoint of this step or a later one.
            whole_group: it goes to the reading processes as well.
            max_bytes: of a file that it may write.
        """
        self.num_starts += 1
        names = (f"{self.run.name}-{self.num_starts}.{end}" for end in ("out", "err"))
        out, err = (self.run.with_name(name) for name in names)
        pid = self.starter.start(self.argv, out, err, max_bytes)
        if number:
            if step is None:
                time.sleep(after_s)
            else:
                wait_for_checkpoint(self.run, step)
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if whole_group else os.kill)(pid, number)
        end = End(self.starter.wait(), err.read_text())
        assert_nothing_lives(pid)
        self._check(end, number)
        return end

    def _check(self, end: End, number: int) -> None:
        """What holds after every end: an exit code that says why, and whole checkpoints."""
        if number:
            # By the signal itself: in Python's own first moments, and in its last.
            by_signal = {128 + number, -number} if number != signal.SIGKILL else {-number}
            assert end.exit_code in by_signal or (end.exit_code == 0 and self.is_finished), end
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
        if not (living := [process for process in processes() if process.session == session]):
            return
        time.sleep(0.01)
    raise AssertionError(f"outlived their training: {living}")


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine."""

    pid: int
    parent: int
    session: int
    command: str


def processes() -> list[Process]:
    """Those that live (Linux; elsewhere none)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # Behind the name, in parentheses: state, parent, group, session.
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            state, parent, _, session = stat[:4]
            command = (folder / "cmdline").read_text().replace("\0", " ")
            if state != "Z":
                found.append(Process(int(folder.name), int(parent), int(session), command))
    return found
