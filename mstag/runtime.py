"""Device, precision, ranks, seeds, logging: functions that are called, nothing at import.

A rank is one process of a run: ``torchrun`` starts several, anything else is rank 0 of 1.
torch is imported inside the functions, so that light commands may import this module.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

log = logging.getLogger("mstag")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of the run's processes this is."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Number among the processes of this machine; chooses the GPU."""
    local_world_size: int = 1
    """How many of them share this machine."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files, logs and shows progress."""
        return self.rank == 0


def read_ranks() -> Ranks:
    """Reads torchrun's environment; without it, this is the only process."""
    return Ranks(
        rank=int(os.environ.get("RANK", 0)),
        world_size=int(os.environ.get("WORLD_SIZE", 1)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
    )


def start_ranks(device: torch.device) -> Ranks:
    """Joins the process group, if there is more than one rank, and sets the CPU threads.

    Raises:
        ValueError: the ranks do not find each other.
    """
    import torch

    ranks = read_ranks()
    torch.set_num_threads(num_cpu_threads(ranks))
    if ranks.world_size > 1 and not torch.distributed.is_initialized():
        from torch.distributed.rendezvous import rendezvous

        # gloo beside nccl: whole numbers and Python objects are agreed on without the GPU.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            store, rank, world_size = next(rendezvous("env://"))
            torch.distributed.init_process_group(
                backend, store=_fresh_store(store, ranks), rank=rank, world_size=world_size
            )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"rank {ranks.rank} of {ranks.world_size}: the ranks do not find each other "
                f"({reason}); look at MASTER_ADDR and MASTER_PORT, or let torchrun set them "
                "(--standalone on one machine)"
            ) from None
    return ranks


def _fresh_store(store: Any, ranks: Ranks) -> Any:
    """A corner of the ranks' store in which no earlier attempt has left anything.

    torchrun keeps one store for all its restarts, which torch 2.11 takes for a new one each
    time: a second attempt would find the addresses of the first's ranks, and wait for them.
    Rank 0 draws a name, and tells it to whoever asks: an earlier attempt's question may lie
    there too, and is answered in vain. Restarts are not numbered alike on all machines.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    drawn = secrets.token_hex(8)
    if not ranks.is_first:
        store.set(f"mstag/question/{ranks.rank}", drawn)
        name = store.get(f"mstag/answer/{drawn}").decode()
        store.set(f"mstag/met/{name}/{ranks.rank}", "")
        return PrefixStore(f"mstag/{name}", store)
    for rank in range(1, ranks.world_size):
        while not store.check([f"mstag/met/{drawn}/{rank}"]):
            if store.check([f"mstag/question/{rank}"]):
                question = store.get(f"mstag/question/{rank}").decode()
                store.set(f"mstag/answer/{question}", drawn)
            time.sleep(0.01)
    return PrefixStore(f"mstag/{drawn}", store)


def stop_ranks() -> None:
    """Leaves the process group, if there is one."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def largest_over_ranks(number: int, ranks: Ranks) -> int:
    """The largest of the ranks' numbers, known to all; also serves as a barrier."""
    if ranks.world_size == 1:
        return number
    import torch

    tensor = torch.tensor(number)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return int(tensor)


def sum_over_ranks(number: int, ranks: Ranks) -> int:
    """The sum of the ranks' numbers, known to all."""
    return sum(gather_over_ranks(number, ranks))


def gather_over_ranks(value: Any, ranks: Ranks) -> list[Any]:
    """Every rank's value, in the order of ranks, on every rank.

    torch pickles them on the way between processes of one run; nothing comes from outside.
    """
    if ranks.world_size == 1:
        return [value]
    import torch

    values: list[Any] = [None] * ranks.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def on_first_rank(action: Callable[[], None], ranks: Ranks) -> None:
    """Runs ``action`` on rank 0 while the others wait; if it fails, all end, and one says why."""
    try:
        if ranks.is_first:
            action()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # another rank is gone: that is not the reason
            largest_over_ranks(1, ranks)
        raise
    if largest_over_ranks(0, ranks):
        sys.exit(1)


def from_first_rank(make: Callable[[], T], ranks: Ranks) -> T:
    """What ``make`` returns on rank 0, known to all; if it fails, all end, and one says why.

    The other ranks may be on machines that do not see rank 0's disk.
    """
    made: list[Any] = [None]

    def act() -> None:
        made[0] = make()

    on_first_rank(act, ranks)
    if ranks.world_size > 1:
        import torch

        torch.distributed.broadcast_object_list(made, 0)
    result: T = made[0]
    return result


def is_lost_rank(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone; gloo has no class for that."""
    import torch

    text = str(error)
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError)
        and ("gloo" in text.lower() or "Connection closed by peer" in text)
    )


def is_restart() -> bool:
    """Whether torchrun or Slurm has started this by itself, after an earlier attempt."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(os.environ.get(name, "0") != "0" for name in counts)


def num_cpu_threads(ranks: Ranks) -> int:
    """Threads for this rank's arithmetic: what the user says, else its share of the cores."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    # torchrun sets OMP_NUM_THREADS=1 by itself when nobody has, and a user's own 1 looks
    # the same; a rank on one thread of many is never what somebody training on CPUs wants.
    by_torchrun = said == "1" and "TORCHELASTIC_RUN_ID" in os.environ
    if said.isdigit() and int(said) > 0 and not by_torchrun:
        return int(said)
    return max(1, available_cores() // ranks.local_world_size)


def available_cores() -> int:
    """Processors that this process may use; fewer than the machine has inside a container."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keeps the pools of numpy's libraries to one thread, and torch's where it is loaded.

    For work that is shared out by the caller. Threads that are started inside, and use torch for
    the first time there, are kept to it too.
    """
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    try:
        if torch:
            torch.set_num_threads(1)
        with threadpool_limits(1):
            yield
    finally:
        if torch:
            torch.set_num_threads(before)


def prepare_device(device: torch.device) -> None:
    """Settings of this process that make steps of one shape, again and again, faster."""
    import torch

    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = True  # tries its algorithms once for each shape


def keep_freed_memory() -> None:
    """Lets a CPU training reuse its large buffers instead of taking them anew from the kernel.

    glibc maps every large allocation afresh and hands it back when it is freed; the page
    faults cost a step of the 2017 network 40 to 70% more time (2 AVX2 cores). Peak memory
    rises by about 0.4 GB. Other C libraries do as they please.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """``train.device`` as a device: "auto" is CUDA where there is one.

    Raises:
        ValueError: no such device on this machine, or fewer GPUs than ranks.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name != "cuda":
        raise ValueError(f"device {name!r}: must be auto, cpu or cuda")
    if not torch.cuda.is_available():
        raise ValueError(
            "device cuda: torch sees no GPU here; take device cpu or auto, or run `mstag doctor`"
        )
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"rank {local_rank} of this machine has no GPU: there are "
            f"{torch.cuda.device_count()}; start that many ranks or take device cpu"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """``train.precision`` resolved to fp32, bf16 or fp16; "auto" is the fastest safe one.

    On CPUs bf16 pays only where there are units for it: on 2 cores with AVX2 alone the
    2017 network trained at 1.2 clips/s under bf16 autocast and at 6.3 in fp32.

    Raises:
        ValueError: the device cannot train in this precision.
    """
    import torch

    if device.type == "cpu":
        if name == "fp16":
            raise ValueError(
                "train.precision = fp16: CPUs have no fast fp16 arithmetic, and training would "
                "crawl; take auto, fp32 or bf16"
            )
        return ("bf16" if _cpu_has_bf16_units() else "fp32") if name == "auto" else name
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bf16" and not has_bf16:
        raise ValueError(
            "train.precision = bf16: this GPU has no bf16 arithmetic; take auto, fp16 or fp32"
        )
    return ("bf16" if has_bf16 else "fp16") if name == "auto" else name


def _cpu_has_bf16_units() -> bool:
    import torch

    # Private names of torch, hence guarded: AMX tiles, or AVX-512's bf16 dot products.
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in names)


def seed_everything(seed: int, *key: int) -> None:
    """Seeds Python, NumPy and torch with a mixture of ``seed`` and ``key``.

    Training calls it before every step with (step, rank): dropout is then a function of
    these alone, and a resumed run needs no stored generator state to draw the same.
    """
    import torch

    mixed = int(np.random.SeedSequence((seed, *key)).generate_state(1, np.uint64)[0])
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    # torch.manual_seed() draws the same, and formats the stack for each kind of device that is not
    # in use, in case it should be: 0.3 ms a step.
    generators = [torch.default_generator]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        generators += torch.cuda.default_generators
    for generator in generators:
        generator.manual_seed(mixed)


def set_up_logging(ranks: Ranks) -> None:
    """Plain lines on stderr: everything from rank 0, warnings from the others."""
    handler = _LineHandler()
    handler.setFormatter(
        logging.Formatter("%(message)s" if ranks.is_first else f"rank {ranks.rank}: %(message)s")
    )
    log.handlers = [handler]
    log.setLevel(logging.INFO if ranks.is_first else logging.WARNING)


class _LineHandler(logging.Handler):
    """Prints above a progress bar, where there is one, without tearing it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)
