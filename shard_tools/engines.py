"""Who packs the shards: processes of this machine, or a Ray cluster.

An engine is a function of tasks that yields their receipts as they are done. It may run a
task twice (after a machine was lost): a shard is written whole or not at all, and is the
same bytes every time.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any

from mstag.runtime import available_cores, one_thread
from shard_tools.output import Output
from shard_tools.pack_shard import pack_shard
from shard_tools.plan import ShardTask
from shard_tools.receipts import Receipt

Engine = Callable[[Sequence[ShardTask], Output], Iterator[Receipt]]


def processes(num_workers: int | None = None) -> Engine:
    """Processes of this machine; None: one per core that this process may use."""
    wanted = num_workers or available_cores()

    def run(tasks: Sequence[ShardTask], output: Output) -> Iterator[Receipt]:
        if min(wanted, len(tasks)) <= 1:
            for task in tasks:
                with one_thread():
                    receipt = pack_shard(task, output)
                yield receipt
            return
        # A fork server imports what is slow once and alone, before any thread starts; plain fork
        # copies the parent's locks, spawn pays a second of imports per worker.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["shard_tools.preload"])
        with ProcessPoolExecutor(
            min(wanted, len(tasks)), mp_context=context, initializer=_settle
        ) as pool:
            rest, waiting = iter(tasks), set[Future[Receipt]]()
            try:
                while True:
                    # Few at a time: a task that waits, or is done and kept, takes memory.
                    for task in itertools.islice(rest, 2 * wanted - len(waiting)):
                        waiting.add(pool.submit(pack_shard, task, output))
                    if not waiting:
                        return
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    while done:
                        yield done.pop().result()
            except BrokenProcessPool:
                raise OSError(
                    "a packing process died (killed, or out of memory?); what was packed is kept: "
                    "run the same command again, with fewer --workers if memory is short"
                ) from None
            except BaseException:
                # What runs is not waited for: a shard that is not whole is not there.
                for process in list((pool._processes or {}).values()):
                    process.kill()
                raise

    return run


def ray(address: str | None = None) -> Engine:
    """A Ray cluster whose machines see the audio and the output under the same paths.

    Args:
        address: of a running cluster, as for ``ray.init``; None: the one that the environment
            names, else one on this machine.

    Raises:
        ValueError: the package is not there.
    """
    try:
        cluster: Any = importlib.import_module("ray")
    except ImportError:
        raise ValueError(
            "--engine ray: the package ray is not installed; install it with "
            "`pip install -e '.[ray]'`"
        ) from None

    def run(tasks: Sequence[ShardTask], output: Output) -> Iterator[Receipt]:
        cluster.init(address=address, log_to_driver=False, ignore_reinit_error=True)
        # A lost machine's tasks go to another one, however often that happens.
        remote = cluster.remote(num_cpus=1, max_retries=-1)(_pack_alone)
        # A worker of a running cluster stands in another folder than we do.
        placed = (dataclasses.replace(t, data_dir=t.data_dir.absolute()) for t in tasks)
        rest, waiting = placed, list[Any]()
        try:
            while True:
                # Few at a time, as above; machines come and go.
                room = 2 * int(cluster.cluster_resources().get("CPU", 1)) + 1
                for task in itertools.islice(rest, max(0, room - len(waiting))):
                    waiting.append(remote.remote(task, output))
                if not waiting:
                    return
                done, waiting = cluster.wait(waiting, num_returns=1)
                yield _result(cluster, done.pop())
        finally:
            for reference in waiting:
                cluster.cancel(reference, force=True)
            cluster.shutdown()

    return run


def _result(cluster: Any, reference: Any) -> Receipt:
    try:
        receipt: Receipt = cluster.get(reference)
    except cluster.exceptions.RayTaskError as error:
        raise error.as_instanceof_cause() from None
    except cluster.exceptions.RayError as error:
        reason = str(error).partition("\n")[0]
        raise OSError(
            f"the Ray cluster failed ({reason}); what was packed is kept: run the command again"
        ) from None
    return receipt


def _pack_alone(task: ShardTask, output: Output) -> Receipt:
    with one_thread():
        return pack_shard(task, output)


def _settle() -> None:
    """Makes a process fit to be a worker."""
    _ONE_THREAD.__enter__()
    # Else the collector writes to every object that the fork server imported, and what the
    # workers share with it (20 MB each) becomes their own as time goes by.
    gc.freeze()
    # Ctrl-C reaches every process of a terminal; the parent says what there is to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


_ONE_THREAD = one_thread()  # of a worker: for its whole life


def _die_with_parent() -> None:
    """A killed pack must not go on in its workers, into a folder that nobody guards."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
