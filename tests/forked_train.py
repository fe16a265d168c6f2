"""What test_survival.py starts once: it forks a real train.py process for each line it is given.

    python forked_train.py

A line on stdin is JSON: {"argv": [...], "out": path, "err": path, "max_bytes": of a file, or
-1}. The answers are the process's id, when it has begun, and its exit code, when it has ended.
Every process is its own session, so that one can look for what it leaves behind. Forking spares
each the seconds that importing torch takes.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import sys
from typing import NoReturn

import torch

import train
from mstag.console import main_guard
from mstag.models import bundle  # noqa: F401 (see above)
from mstag.training import assembly, batch_size, rehearsal, score  # noqa: F401


def serve() -> None:
    """Forks as asked, one process at a time, until stdin ends."""
    # Each of these imports another second's worth.
    torch.optim.Adam([torch.zeros(1)], fused=True)
    with contextlib.suppress(ImportError):  # numba need not be there
        import numba

        numba.njit(lambda number: number)(0)
    gc.freeze()  # else each fork's end would copy and visit all that is there now
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            run(**order)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def run(argv: list[str], out: str, err: str, max_bytes: int) -> NoReturn:
    """Becomes ``python train.py ARGV``."""
    os.setsid()
    for descriptor, name in enumerate((os.devnull, out, err)):
        opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    sys.argv = ["train.py", *argv]
    main_guard(train.main, "train.py")


if __name__ == "__main__":
    serve()
