"""Convolution's gradients where only a few output cells have any: the winners of max-pooling.

Pooling by 2 x 4 lets one gradient in eight through, so the sums over all cells that torch's
operators form are mostly of zeros. These loops, compiled by numba on first use and kept on
disk, visit the winners alone: half the time for the input's gradient, a quarter for the
weights' (50 -> 100 channels, 3 x 5 kernel, 2 AVX2 cores).

Layout of every array: a row of cells is contiguous with its channels innermost, so one row of
a kernel's taps meets one run of ``run`` numbers, which is rounded up to whole vectors. What it
reads or adds to beyond its taps are zeros, or numbers that nobody looks at.

Letters: B clips, C output channels, P pooled cells, R rows of the kernel, L a clip's padded
cells and channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

VECTOR = 32
"""Floats that LLVM's unrolled loops take at once on AVX2 and AVX-512."""
CELLS_IN_CACHE = 8
"""Pooled cells whose stretch of the input's gradient stays in a core's first cache."""

# nogil: threads run them side by side. Compiled once for a machine, beside this file.
_compiled = njit(nogil=True, fastmath={"contract"}, error_model="numpy", cache=True)

Floats = npt.NDArray[np.float32]


def weight_grad(
    x_BL: Floats, winner_BPC: Any, grad_BPC: Floats, shape: tuple[int, int, int], num_threads: int
) -> Floats:
    """The weights' gradient, (C, R, run).

    Args:
        x_BL: padded inputs, with at least ``VECTOR`` numbers behind each clip's last.
        winner_BPC: int64, each winner's first tap: an index into the second axis of ``x_BL``.
        grad_BPC: the gradients that arrive there.
        shape: rows of the kernel, distance between two rows in ``x_BL``, ``run``.
        num_threads: the sums' order, and so their last bits, depend on it.
    """
    num_rows, row_stride, run = shape
    parts = np.zeros((num_threads, grad_BPC.shape[2], num_rows, run), np.float32)

    def work(part: int, clips: slice) -> None:
        _sum_weight_grad(x_BL[clips], winner_BPC[clips], grad_BPC[clips], row_stride, parts[part])

    _on_threads(work, len(x_BL), num_threads)
    total: Floats = parts.sum(axis=0)
    return total


def input_grad(
    weight_CRrun: Floats,
    winner_BPC: Any,
    grad_BPC: Floats,
    row_stride: int,
    out_BL: Floats,
    num_threads: int,
) -> None:
    """Adds the inputs' gradient to ``out_BL``, which is laid out like ``x_BL`` above."""

    def work(part: int, clips: slice) -> None:
        _add_input_grad(weight_CRrun, winner_BPC[clips], grad_BPC[clips], row_stride, out_BL[clips])

    _on_threads(work, len(out_BL), num_threads)


def _on_threads(work: Callable[[int, slice], None], num_clips: int, num_threads: int) -> None:
    """Calls ``work(part, clips)`` for equal parts of the clips, one thread each."""
    bounds = [num_clips * part // num_threads for part in range(num_threads + 1)]
    pool = _pool(num_threads)
    calls = [
        pool.submit(work, part, slice(bounds[part], bounds[part + 1]))
        for part in range(num_threads)
    ]
    for call in calls:
        call.result()


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="winners")


@_compiled
def _add_four(total: Any, x_L: Any, at: Any, grads: Any, first: int, offset: int) -> None:
    # Four at once: the total is read and written once for four rows.
    run = len(total)
    a, b = at[first] + offset, at[first + 1] + offset
    c, d = at[first + 2] + offset, at[first + 3] + offset
    row_a, row_b = x_L[a : a + run], x_L[b : b + run]
    row_c, row_d = x_L[c : c + run], x_L[d : d + run]
    grad_a, grad_b, grad_c, grad_d = grads[first : first + 4]
    for i in range(run):
        total[i] += (grad_a * row_a[i] + grad_b * row_b[i]) + (
            grad_c * row_c[i] + grad_d * row_d[i]
        )


@_compiled
def _add_scaled(total: Any, row: Any, scale: Any) -> None:
    for i in range(len(total)):
        total[i] += scale * row[i]


@_compiled
def _sum_weight_grad(
    x_BL: Any, winner_BPC: Any, grad_BPC: Any, row_stride: int, total_CRrun: Any
) -> None:
    num_channels, num_rows, run = total_CRrun.shape
    num_cells = grad_BPC.shape[1]
    at = np.empty(num_cells, np.int64)
    grads = np.empty(num_cells + 4, np.float32)
    for clip in range(len(x_BL)):
        x_L = x_BL[clip]
        for channel in range(num_channels):
            count = 0
            for cell in range(num_cells):
                grad = grad_BPC[clip, cell, channel]
                if grad != 0:  # ReLU lets none through where the winner is negative
                    at[count], grads[count] = winner_BPC[clip, cell, channel], grad
                    count += 1
            for row in range(num_rows):
                total, offset = total_CRrun[channel, row], row * row_stride
                four = count - count % 4
                for first in range(0, four, 4):
                    _add_four(total, x_L, at, grads, first, offset)
                for rest in range(four, count):
                    start = at[rest] + offset
                    _add_scaled(total, x_L[start : start + run], grads[rest])


@_compiled
def _add_input_grad(
    weight_CRrun: Any, winner_BPC: Any, grad_BPC: Any, row_stride: int, out_BL: Any
) -> None:
    num_channels, num_rows, run = weight_CRrun.shape
    num_cells = grad_BPC.shape[1]
    for clip in range(len(out_BL)):
        out_L = out_BL[clip]
        for begin in range(0, num_cells, CELLS_IN_CACHE):
            end = min(begin + CELLS_IN_CACHE, num_cells)
            for channel in range(num_channels):
                for cell in range(begin, end):
                    grad = grad_BPC[clip, cell, channel]
                    if grad != 0:
                        for row in range(num_rows):
                            start = winner_BPC[clip, cell, channel] + row * row_stride
                            taps = weight_CRrun[channel, row]
                            _add_scaled(out_L[start : start + run], taps, grad)
