"""How a command ends: real processes, their exit codes and what they print."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import click, time
from mstag.console import importing, main_guard

@click.command()
@click.argument("what")
def command(what):
    if what == "value":
        raise ValueError("first line\\n  second line")
    if what == "file":
        open("no/such/file")
    if what == "usage":
        raise click.UsageError("wrong use")
    if what == "defect":
        raise AssertionError("a defect")
    if what == "import":
        with importing("torch"):
            raise RuntimeError("torch and torchaudio do not match")
    if what == "three":
        return 3
    if what == "wait":
        print("ready", flush=True)
        time.sleep(60)
    if what == "flood":
        for _ in range(100_000):
            print("line")

main_guard(command, "prog")
"""


def start(what: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("what", "code", "line"),
    [
        ("value", 1, "prog: error: first line; second line"),
        ("file", 1, "prog: error: no/such/file: No such file or directory"),
        (
            "import",
            1,
            "prog: error: torch cannot be imported (torch and torchaudio do not match): "
            "run `mstag doctor`",
        ),
    ],
)
def test_users_mistake_is_one_line(what: str, code: int, line: str) -> None:
    process = start(what)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (code, "", line + "\n")


def test_exit_codes_of_success_usage_and_defects() -> None:
    codes = {}
    for what in ("fine", "three", "usage", "defect"):
        process = start(what)
        stderr = process.communicate(timeout=60)[1]
        codes[what] = process.returncode
        assert ("Traceback" in stderr) == (what == "defect")
    assert codes == {"fine": 0, "three": 3, "usage": 2, "defect": 1}


def test_traceback_on_request() -> None:
    assert "Traceback" in start("value", MSTAG_TRACEBACK="1").communicate(timeout=60)[1]


def test_interrupt_exits_130_without_traceback() -> None:
    process = start("wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_reader_that_leaves_early_is_no_error() -> None:
    process = start("flood")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1
    process.stderr.close()


@pytest.mark.parametrize(
    ("body", "code"), [("pass", 0), ("raise SystemExit(143)", 143), ("raise ValueError('no')", 1)]
)
def test_a_rank_of_several_ends_with_its_code_and_without_the_interpreters_end(
    body: str, code: int
) -> None:
    script = (
        "import atexit, click; from mstag.console import main_guard\n"
        "atexit.register(print, 'the end of the interpreter')\n"
        f"@click.command()\ndef main():\n    print('work'); {body}\n"
        "main_guard(main, 'x')\n"
    )
    for world_size in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "WORLD_SIZE": world_size},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code
        assert done.stdout.startswith("work\n")
        assert ("the end" in done.stdout) == (world_size == "1")
