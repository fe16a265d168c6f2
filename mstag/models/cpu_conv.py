"""The same convolutions with a cheaper backward pass, for training on CPUs in float32.

Forward values are those of torch's own operators, bit for bit; gradients differ in the order
of their sums alone. Nothing here runs on a GPU, under autocast, or without gradients.

Shape suffixes: B clips, C channels, M mel bands, T frames; P pooled cells, K taps of a kernel.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Pair = tuple[int, int]

SPARSE_FROM = 8
"""Cells of a pooling window from which on visiting the winners alone is faster."""


def pays_off(x_BCMT: Tensor) -> bool:
    """Whether this is the case that this file is for."""
    return (
        x_BCMT.device.type == "cpu"
        and x_BCMT.dtype == torch.float32
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def conv(x_BCMT: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution with odd kernels that keeps the size."""
    y_BCMT: Tensor = _Conv.apply(x_BCMT, weight, bias)  # type: ignore[no-untyped-call]
    return y_BCMT


def first_conv_pool(x_B1MT: Tensor, weight: Tensor, bias: Tensor, pool: Pair) -> Tensor:
    """The same of one channel that needs no gradient, followed by max-pooling."""
    assert x_B1MT.shape[1] == 1 and not x_B1MT.requires_grad
    y_BCP: Tensor = _FirstConvPool.apply(  # type: ignore[no-untyped-call]
        x_B1MT, weight, bias, pool
    )
    return y_BCP


def conv_pool(x_BCMT: Tensor, weight: Tensor, bias: Tensor, pool: Pair) -> Tensor:
    """The same followed by max-pooling."""
    if pool[0] * pool[1] < SPARSE_FROM or importlib.util.find_spec("numba") is None:
        return functional.max_pool2d(conv(x_BCMT, weight, bias), pool)
    y_BCP: Tensor = _ConvPool.apply(x_BCMT, weight, bias, pool)  # type: ignore[no-untyped-call]
    return y_BCP


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
        return y_BCP

    @staticmethod
    def backward(ctx: Any, grad_BCP: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        from mstag.models import winners

        x_BCMT, weight, winner_BCP = ctx.saved_tensors
        num_in, num_rows, num_columns = weight.shape[1:]
        num_bands, num_frames = x_BCMT.shape[2:]
        pad_rows, pad_columns = _padding(weight)
        row_stride = (num_frames + 2 * pad_columns) * num_in
        taps = num_columns * num_in
        run = -(-taps // winners.VECTOR) * winners.VECTOR
        num_threads = torch.get_num_threads()

        # A winner's place among the padded cells is that of its kernel's first tap.
        column_BPC = _channels_inside(winner_BCP)
        row_BPC = torch.div(column_BPC, num_frames, rounding_mode="floor")
        column_BPC = column_BPC - row_BPC * num_frames
        winner_BPC = (row_BPC * row_stride + column_BPC * num_in).numpy()
        grad_BPC = _channels_inside(grad_BCP).numpy()

        size = (num_bands + 2 * pad_rows) * row_stride
        inside = slice(pad_rows, -pad_rows or None), slice(pad_columns, -pad_columns or None)

        def cells(flat_BL: Tensor) -> Tensor:
            rows = flat_BL[:, :size].view(len(flat_BL), -1, row_stride // num_in, num_in)
            return rows[:, *inside].permute(0, 3, 1, 2)

        x_BL = torch.zeros(len(x_BCMT), size + winners.VECTOR)
        cells(x_BL).copy_(x_BCMT)
        grad_CRrun = torch.from_numpy(
            winners.weight_grad(
                x_BL.numpy(), winner_BPC, grad_BPC, (num_rows, row_stride, run), num_threads
            )
        )
        shape = len(weight), num_rows, num_columns, num_in
        grad_weight = grad_CRrun[:, :, :taps].reshape(shape).permute(0, 3, 1, 2)

        grad_x = None
        if ctx.needs_input_grad[0]:
            weight_CRrun = torch.zeros(len(weight), num_rows, run)
            weight_CRrun[:, :, :taps] = weight.permute(0, 2, 3, 1).flatten(2)
            out_BL = x_BL.zero_()
            winners.input_grad(
                weight_CRrun.numpy(), winner_BPC, grad_BPC, row_stride, out_BL.numpy(), num_threads
            )
            grad_x = cells(out_BL)
        return grad_x, _laid_out_like(weight, grad_weight), grad_BCP.sum(dim=(0, 2, 3)), None


class _FirstConvPool(torch.autograd.Function):
    """The backward pass visits only the cells that won their pooling window.

    Max-pooling by 2 x 4 lets one gradient in eight through. The weights' gradient is then, per
    channel, a weighted sum of the input patches around the winners: what embedding_bag
    computes, in half the time of the dense gradient, and nothing need be unpooled.
    """

    @staticmethod
    def forward(ctx: Any, x_B1MT: Tensor, weight: Tensor, bias: Tensor, pool: Pair) -> Tensor:
        full_BCMT = functional.conv2d(x_B1MT, weight, bias, padding=_padding(weight))
        y_BCP, winners_BCP = functional.max_pool2d(full_BCMT, pool, return_indices=True)
        ctx.save_for_backward(x_B1MT, weight, winners_BCP)
        return y_BCP

    @staticmethod
    def backward(ctx: Any, grad_BCP: Tensor) -> tuple[None, Tensor, Tensor, None]:
        x_B1MT, weight, winners_BCP = ctx.saved_tensors
        grad_CK = torch.zeros(len(weight), weight[0].numel())
        for x_1MT, winners_CP, grad_CP in zip(x_B1MT, winners_BCP, grad_BCP, strict=True):
            grad_CK += functional.embedding_bag(
                winners_CP.flatten(1),
                _patches(x_1MT, weight),
                per_sample_weights=grad_CP.flatten(1).contiguous(),
                mode="sum",
            )
        grad_weight = _laid_out_like(weight, grad_CK.view(weight.shape))
        return None, grad_weight, grad_BCP.sum(dim=(0, 2, 3)), None


def _patches(x_1MT: Tensor, weight: Tensor) -> Tensor:
    """The taps that each output cell sees, row by row: (M * T, K)."""
    rows, columns = weight.shape[2:]
    pad_rows, pad_columns = _padding(weight)
    padded = functional.pad(x_1MT[0], (pad_columns, pad_columns, pad_rows, pad_rows))
    patches = torch.empty(*x_1MT.shape[1:], rows, columns)
    for row in range(rows):
        # Row by row: one copy of all taps takes 1.6 times as long.
        patches[:, :, row] = padded[row : row + len(patches)].unfold(1, columns, 1)
    return patches.view(-1, rows * columns)


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
