"""How a command ends: every command and script of this repository runs through here.

0: done. 1: the work failed, one line on stderr says what, where, why and what to do.
2: bad usage. 130: interrupted. ``MSTAG_TRACEBACK=1`` shows the traceback behind a line.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

import click


def main_guard(command: click.Command, prog: str) -> NoReturn:
    """Runs a click command and exits the process with its exit code.

    A ValueError, OSError or ImportError is the user's business and becomes one line. Any other
    exception is a defect of this program and keeps its traceback. A command may return its exit
    code as a whole number.
    """
    try:
        code = _exit_code(command, prog)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        # A rank must be seen to die: taking NCCL down would wait for the others, who wait for it.
        traceback.print_exc()
        code = 1
    end_process(code)


def end_process(exit_code: int) -> NoReturn:
    """Ends this process; a rank of several does so without the interpreter's own end.

    gloo's threads outlive their group, because torch 2.11's DDP leaks references to it. One
    that wants the interpreter while it is being taken down aborts the process: seen once in
    some forty runs, a SIGABRT after all work was done, which torchrun reports as a failure.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


@contextlib.contextmanager
def importing(package: str) -> Iterator[None]:
    """Turns a failing import of a heavy package into one line.

    A broken torch or torchaudio raises OSError or RuntimeError as often as ImportError.

    Raises:
        ValueError: the package cannot be imported; says where to look next.
    """
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:
        if os.environ.get("MSTAG_TRACEBACK"):
            raise
        raise ValueError(
            f"{package} cannot be imported ({one_line(error)}): run `mstag doctor`"
        ) from None


def one_line(error: BaseException) -> str:
    """What an exception says, on one line; the name of its class if it says nothing."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines) or type(error).__name__


def _exit_code(command: click.Command, prog: str) -> int:
    try:
        result = command.main(prog_name=prog, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        # Click raises it for Ctrl-C.
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python's flush at exit would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("MSTAG_TRACEBACK"):
            raise
        print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
        return 1
    return result if isinstance(result, int) else 0
