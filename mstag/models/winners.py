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
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mstag.compiling import compiled

VECTOR = 32
"""Floats that LLVM's unrolled loops take at once on AVX2 and AVX-512."""
NARROW = 8
"""Taps of one row of a kernel that sees one channel; a loop of their own."""
CELLS_IN_CACHE = 8
"""Pooled cells whose stretch of the input's gradient stays in a core's first cache."""
CELLS_AT_ONCE = 80
"""Pooled cells whose inputs, gradients and winners stay in its second."""

Floats = npt.NDArray[np.float32]


def cell_of(num_in: int) -> int:
    """Numbers that a cell of ``num_in`` channels takes: aligned, unless there is but one."""
    return 1 if num_in == 1 else -(-num_in // 8) * 8


def run_of(num_taps: int) -> int:
    """How many numbers the loops take for each row of a kernel with ``num_taps`` taps."""
    return NARROW if num_taps <= NARROW else -(-num_taps // VECTOR) * VECTOR


class Geometry(NamedTuple):
    """Where the cells of a clip lie."""

    num_frames: int
    """Cells of a row before pooling, without padding: how winners are counted."""
    cell: int
    """The distance between two cells in ``x_L``: the channels, rounded up by :func:`cell_of`."""
    row_stride: int
    """The distance between two rows in ``x_L``."""
    pool_rows: int
    pool_columns: int
    pooled_columns: int
    """Cells of a row after pooling."""


def weight_grad(
    x_BL: Floats,
    winner_BPC: Any,
    grad_BPC: Floats,
    geometry: Geometry,
    taps: tuple[int, int],
    num_threads: int,
) -> Floats:
    """The weights' gradient, (C, R, run).

    Args:
        x_BL: padded inputs, with at least ``VECTOR`` numbers behind each clip's last.
        winner_BPC: int64, numbers of the cells that won, as max_pool2d gives them.
        grad_BPC: the gradients that arrive there.
        geometry: of the cells.
        taps: R and run.
        num_threads: the sums' order, and so their last bits, depend on it.
    """
    parts = np.zeros((num_threads, grad_BPC.shape[2], *taps), np.float32)

    def work(part: int, clips: slice) -> None:
        _sum_weight_grad(x_BL[clips], winner_BPC[clips], grad_BPC[clips], geometry, parts[part])

    _on_threads(work, len(x_BL), num_threads)
    total: Floats = parts.sum(axis=0)
    return total


def input_grad(
    weight_CRrun: Floats,
    winner_BPC: Any,
    grad_BPC: Floats,
    geometry: Geometry,
    out_BL: Floats,
    num_threads: int,
) -> None:
    """Adds the inputs' gradient to ``out_BL``, which is laid out like ``x_BL`` above."""

    def work(part: int, clips: slice) -> None:
        _add_input_grad(weight_CRrun, winner_BPC[clips], grad_BPC[clips], geometry, out_BL[clips])

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


@compiled
def _add_row(total: Any, x_L: Any, at: Any, grads: Any, count: int, offset: int) -> None:
    run = len(total)
    eights = count - count % 8
    # Eight at once: the total is read and written once for eight rows of taps.
    for n in range(0, eights, 8):
        a, b, c, d = at[n] + offset, at[n + 1] + offset, at[n + 2] + offset, at[n + 3] + offset
        e, f, g, h = at[n + 4] + offset, at[n + 5] + offset, at[n + 6] + offset, at[n + 7] + offset
        xa, xb, xc, xd = x_L[a : a + run], x_L[b : b + run], x_L[c : c + run], x_L[d : d + run]
        xe, xf, xg, xh = x_L[e : e + run], x_L[f : f + run], x_L[g : g + run], x_L[h : h + run]
        ga, gb, gc, gd = grads[n], grads[n + 1], grads[n + 2], grads[n + 3]
        ge, gf, gg, gh = grads[n + 4], grads[n + 5], grads[n + 6], grads[n + 7]
        for i in range(run):
            first = (ga * xa[i] + gb * xb[i]) + (gc * xc[i] + gd * xd[i])
            total[i] += first + ((ge * xe[i] + gf * xf[i]) + (gg * xg[i] + gh * xh[i]))
    for n in range(eights, count):
        start, grad = at[n] + offset, grads[n]
        row = x_L[start : start + run]
        for i in range(run):
            total[i] += grad * row[i]


@compiled
def _add_narrow_row(total: Any, x_L: Any, at: Any, grads: Any, count: int, offset: int) -> None:
    # ``NARROW`` sums that stay in registers; unsigned indices cannot be negative, which
    # spares a test each.
    a, b, c, d, e, f, g, h = total
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
    four, five, six, seven = np.uint64(4), np.uint64(5), np.uint64(6), np.uint64(7)
    for number in range(count):
        grad, start = grads[number], np.uint64(at[number] + offset)
        a += grad * x_L[start]
        b += grad * x_L[start + one]
        c += grad * x_L[start + two]
        d += grad * x_L[start + three]
        e += grad * x_L[start + four]
        f += grad * x_L[start + five]
        g += grad * x_L[start + six]
        h += grad * x_L[start + seven]
    total[0], total[1], total[2], total[3] = a, b, c, d
    total[4], total[5], total[6], total[7] = e, f, g, h


@compiled
def _gather(
    winner_PC: Any, grad_PC: Any, channel: int, cells: Any, geometry: Any, at: Any, grads: Any
) -> int:
    """Where in x_L the winners' first taps are, and their gradients; returns how many.

    No division and no branch on the data: what wins is as good as random.
    """
    begin, end = cells
    pooled_row = begin // geometry.pooled_columns
    left = geometry.pooled_columns * (pooled_row + 1) - begin
    first_row = pooled_row * geometry.pool_rows
    count = 0
    for cell in range(begin, end):
        if left == 0:
            left = geometry.pooled_columns
            first_row += geometry.pool_rows
        left -= 1
        row, column = first_row, winner_PC[cell, channel] - first_row * geometry.num_frames
        for _ in range(geometry.pool_rows - 1):
            below = column >= geometry.num_frames
            row += below
            column -= below * geometry.num_frames
        at[count] = row * geometry.row_stride + column * geometry.cell
        grads[count] = grad_PC[cell, channel]
        count += grads[count] != 0  # ReLU lets none through where the winner is negative
    return count


@compiled
def _sum_weight_grad(
    x_BL: Any, winner_BPC: Any, grad_BPC: Any, geometry: Any, total_CRrun: Any
) -> None:
    num_channels, num_rows, run = total_CRrun.shape
    num_cells = grad_BPC.shape[1]
    at = np.empty(CELLS_AT_ONCE, np.int64)
    grads = np.empty(CELLS_AT_ONCE, np.float32)
    for clip in range(len(x_BL)):
        x_L, winner_PC, grad_PC = x_BL[clip], winner_BPC[clip], grad_BPC[clip]
        for begin in range(0, num_cells, CELLS_AT_ONCE):
            cells = begin, min(begin + CELLS_AT_ONCE, num_cells)
            for channel in range(num_channels):
                count = _gather(winner_PC, grad_PC, channel, cells, geometry, at, grads)
                for row in range(num_rows):
                    total, offset = total_CRrun[channel, row], row * geometry.row_stride
                    if run == NARROW:
                        _add_narrow_row(total, x_L, at, grads, count, offset)
                    else:
                        _add_row(total, x_L, at, grads, count, offset)


@compiled
def _add_input_grad(
    weight_CRrun: Any, winner_BPC: Any, grad_BPC: Any, geometry: Any, out_BL: Any
) -> None:
    num_channels, num_rows, run = weight_CRrun.shape
    num_cells = grad_BPC.shape[1]
    at = np.empty(CELLS_IN_CACHE, np.int64)
    grads = np.empty(CELLS_IN_CACHE, np.float32)
    for clip in range(len(out_BL)):
        out_L, winner_PC, grad_PC = out_BL[clip], winner_BPC[clip], grad_BPC[clip]
        for begin in range(0, num_cells, CELLS_IN_CACHE):
            cells = begin, min(begin + CELLS_IN_CACHE, num_cells)
            for channel in range(num_channels):
                count = _gather(winner_PC, grad_PC, channel, cells, geometry, at, grads)
                for number in range(count):
                    grad = grads[number]
                    # A loop of its own for all this takes a third longer.
                    for row in range(num_rows):
                        start = at[number] + row * geometry.row_stride
                        out, taps = out_L[start : start + run], weight_CRrun[channel, row]
                        for i in range(run):
                            out[i] += grad * taps[i]
