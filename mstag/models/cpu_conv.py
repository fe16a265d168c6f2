"""The same convolutions with a cheaper backward pass, for training on CPUs, float32 or bfloat16.

Forward values are those of torch's own operators, bit for bit. Gradients differ in the order of
their sums alone; under bfloat16's autocast the winners' are summed in float32, from what the
forward pass rounded, and are no farther from the truth than torch's. Nothing here runs on a GPU,
or without gradients.

Shape suffixes: B clips, C channels, M mel bands, T frames; P pooled cells.
"""

from __future__ import annotations

import functools
import importlib
import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

log = logging.getLogger("mstag")

Pair = tuple[int, int]

SPARSE_WEIGHT_GRAD, SPARSE_INPUT_GRAD = 4, 8
"""Cells of a pooling window from which on visiting the winners alone is faster, in float32."""
SPARSE_IN_BFLOAT16 = 8
"""The same for both gradients where there are units for bfloat16, which sum over all cells twice as
fast; and only where both are wanted (2 cores, AVX-512: 130 ms instead of 175 for 10 clips)."""


def pays_off(x_BCMT: Tensor, weight: Tensor, pool: Pair | None) -> bool:
    """Whether this is a case that this file is for."""
    if (
        x_BCMT.device.type != "cpu"
        or not torch.is_grad_enabled()
        or not (weight.requires_grad or x_BCMT.requires_grad)  # in a frozen backbone
        or torch.compiler.is_compiling()
    ):
        return False
    arithmetic = _arithmetic(x_BCMT)
    if arithmetic == torch.bfloat16:
        return (
            x_BCMT.requires_grad
            and _size(pool) >= SPARSE_IN_BFLOAT16
            and not _has_amx()
            and _has_winners()
        )
    return arithmetic == torch.float32


def conv_pool(x_BCMT: Tensor, weight: Tensor, bias: Tensor, pool: Pair | None) -> Tensor:
    """Convolution with odd kernels that keeps the size, then max-pooling where asked for."""
    if _size(pool) >= SPARSE_WEIGHT_GRAD and _has_winners():
        y_BCP: Tensor = _ConvPool.apply(x_BCMT, weight, bias, pool)  # type: ignore[no-untyped-call]
        return y_BCP
    y_BCMT: Tensor = _Conv.apply(x_BCMT, weight, bias)  # type: ignore[no-untyped-call]
    return functional.max_pool2d(y_BCMT, pool) if pool else y_BCMT


@functools.cache
def _has_amx() -> bool:
    """Whether bfloat16 is multiplied in tiles, 8 times as fast as by AVX-512: then all cells win.

    By the peak rates alone; no such machine was at hand. The name is torch's private one.
    """
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def _size(pool: Pair | None) -> int:
    return pool[0] * pool[1] if pool else 1


def _arithmetic(x_BCMT: Tensor) -> torch.dtype:
    """What convolutions compute in here: autocast's type, else that of their input."""
    is_autocast = torch.is_autocast_enabled("cpu")
    return torch.get_autocast_dtype("cpu") if is_autocast else x_BCMT.dtype


@functools.cache
def _has_winners() -> bool:
    """Whether the loops over winners can be compiled here; without, torch's operators do."""
    try:
        importlib.import_module("mstag.models.winners")
    except Exception as error:  # no numba, one that does not fit numpy, no place to keep code
        log.warning(f"training on this CPU is slower than it could be: numba: {error}")
        return False
    return True


class _Conv(torch.autograd.Function):
    """Takes the weights' gradient in the plain memory layout.

    oneDNN 3.10 needs 0.62 times the time for it there (50 -> 100 channels, 3 x 5 kernel, 20
    clips, AVX2), copies included, whereas everything else is faster with channels last: 15%
    of a whole training step. Measured on AVX2 alone; with AVX-512 it may be a draw.
    """

    @staticmethod
    def forward(ctx: Any, x_BCMT: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x_BCMT, weight)
        return functional.conv2d(x_BCMT, weight, bias, padding=_padding(weight))

    @staticmethod
    def backward(ctx: Any, grad_BCMT: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x_BCMT, weight = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _conv_backward(grad_BCMT, x_BCMT, weight, (True, False, False))[0]
        _, grad_weight, grad_bias = _conv_backward(
            grad_BCMT.contiguous(), x_BCMT.contiguous(), weight.contiguous(), (False, True, True)
        )
        return grad_x, _laid_out_like(weight, grad_weight), grad_bias


class _ConvPool(torch.autograd.Function):
    """The backward pass visits only the cells that won their pooling window."""

    @staticmethod
    def forward(ctx: Any, x_BCMT: Tensor, weight: Tensor, bias: Tensor, pool: Pair) -> Tensor:
        full_BCMT = functional.conv2d(x_BCMT, weight, bias, padding=_padding(weight))
        y_BCP, winner_BCP = functional.max_pool2d(full_BCMT, pool, return_indices=True)
        ctx.save_for_backward(x_BCMT, weight, winner_BCP)
        ctx.pool, ctx.arithmetic = pool, full_BCMT.dtype
        return y_BCP

    @staticmethod
    def backward(ctx: Any, grad_BCP: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        from mstag.models import winners

        x_BCMT, weight, winner_BCP = ctx.saved_tensors
        num_in, num_rows, num_columns = weight.shape[1:]
        num_bands, num_frames = x_BCMT.shape[2:]
        pad_rows, pad_columns = _padding(weight)
        cell = winners.cell_of(num_in)
        row_stride = (num_frames + 2 * pad_columns) * cell
        pool: Pair = ctx.pool
        geometry = winners.Geometry(
            num_frames, cell, row_stride, pool[0], pool[1], winner_BCP.shape[3]
        )
        num_taps = num_columns * cell
        run = winners.run_of(num_taps)
        num_threads = torch.get_num_threads()
        winner_BPC = _channels_inside(winner_BCP).numpy()
        grad_BPC = _channels_inside(grad_BCP).float().numpy()

        size = (num_bands + 2 * pad_rows) * row_stride
        inside = slice(pad_rows, -pad_rows or None), slice(pad_columns, -pad_columns or None)

        def cells(flat_BL: Tensor) -> Tensor:
            rows = flat_BL[:, :size].view(len(flat_BL), -1, row_stride // cell, cell)
            return rows[:, *inside, :num_in].permute(0, 3, 1, 2)

        x_BL = torch.zeros(len(x_BCMT), size + winners.VECTOR)
        cells(x_BL).copy_(x_BCMT.to(ctx.arithmetic))  # as the forward pass rounded it
        grad_CRrun = torch.from_numpy(
            winners.weight_grad(
                x_BL.numpy(), winner_BPC, grad_BPC, geometry, (num_rows, run), num_threads
            )
        )
        shape = len(weight), num_rows, num_columns, cell
        grad_weight = grad_CRrun[:, :, :num_taps].reshape(shape)[..., :num_in].permute(0, 3, 1, 2)

        grad_x = None
        if ctx.needs_input_grad[0] and _size(pool) < SPARSE_INPUT_GRAD:
            grad_BCMT = _unpooled(grad_BCP, winner_BCP, pool, (num_bands, num_frames))
            grad_x = _conv_backward(grad_BCMT, x_BCMT, weight, (True, False, False))[0]
        elif ctx.needs_input_grad[0]:
            weight_CRrun = torch.zeros(len(weight), num_rows, run)
            taps = weight_CRrun[:, :, :num_taps].view(shape)
            taps[..., :num_in] = weight.to(ctx.arithmetic).permute(0, 2, 3, 1)
            out_BL = x_BL.zero_()
            winners.input_grad(
                weight_CRrun.numpy(), winner_BPC, grad_BPC, geometry, out_BL.numpy(), num_threads
            )
            grad_x = cells(out_BL).to(x_BCMT.dtype)
        # A matrix product, which takes a fifth of sum()'s time.
        grad_rows = torch.from_numpy(grad_BPC).flatten(0, 1)
        grad_bias = torch.ones(1, len(grad_rows)).mm(grad_rows)[0]
        return grad_x, _laid_out_like(weight, grad_weight), grad_bias, None


def _unpooled(grad_BCP: Tensor, winner_BCP: Tensor, pool: Pair, size: tuple[int, int]) -> Tensor:
    """The gradient before max-pooling: zeros but for the winners."""
    shape = *grad_BCP.shape[:2], *size
    # Asked for its shape alone.
    like = torch.empty(shape, memory_format=torch.channels_last)
    grad_BCMT: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
        grad_BCP, like, list(pool), list(pool), [0, 0], [1, 1], False, winner_BCP
    )
    return grad_BCMT


def _channels_inside(x_BCP: Tensor) -> Tensor:
    """(B, C, rows, columns) -> contiguous (B, rows * columns, C)."""
    return x_BCP.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def _laid_out_like(weight: Tensor, grad: Tensor) -> Tensor:
    """The gradient in its weights' memory layout, which DDP's buckets have too."""
    return torch.empty_like(weight).copy_(grad)


def _padding(weight: Tensor) -> Pair:
    return weight.shape[2] // 2, weight.shape[3] // 2


def _conv_backward(
    grad_BCMT: Tensor, x_BCMT: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias, as far as wanted."""
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad_BCMT,
        x_BCMT,
        weight,
        [len(weight)],
        [1, 1],
        list(_padding(weight)),
        [1, 1],
        False,
        [0, 0],
        1,
        list(wanted),
    )
    return gradients
