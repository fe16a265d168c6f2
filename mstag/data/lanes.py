"""Vectors of float32 numbers for loops that numba compiles.

LLVM's own vectoriser gives up on loops that read and write several places of one array, as an
FFT's do. Here a variable is a whole vector: ``load`` and ``store`` move ``WIDTH`` neighbours
at once, ``+ - *`` work lane by lane. 16 lanes are one register with AVX-512, two with AVX2
(as fast as its own 8, measured) and four on ARM.

numba keeps compiled functions on disk and looks at their own file alone: after a change of
this one, touch those that import it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

WIDTH = 16
_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)


class Lanes(types.Type):
    """numba's type of a vector."""

    def __init__(self) -> None:
        super().__init__(name=f"Lanes({WIDTH})")


_LANES = Lanes()


def _intrinsic(function: Callable[..., Any]) -> Any:
    return intrinsic(function)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _VECTOR)  # type: ignore[no-untyped-call]


@_intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """Numbers ``index`` to ``index + WIDTH - 1`` of a contiguous float32 array."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], *args), align=4)

    return _LANES(array, types.intp), generate


@_intrinsic
def store(typing: Any, array: Any, index: Any, lanes: Any) -> Any:
    """Writes a vector to numbers ``index`` to ``index + WIDTH - 1`` of an array."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], *args[:2])
        builder.store(args[2], address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _LANES), generate


@_intrinsic
def store_halves(typing: Any, array: Any, index: Any, lanes: Any) -> Any:
    """Rounds a vector to float16, and writes it as bits to a uint16 array."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        halves = ir.VectorType(ir.HalfType(), WIDTH)
        address = builder.bitcast(builder.gep(data, [args[1]]), halves.as_pointer())
        builder.store(builder.fptrunc(args[2], halves), address, align=2)
        return context.get_dummy_value()

    return types.void(array, types.intp, _LANES), generate


@_intrinsic
def splat(typing: Any, number: Any) -> Any:
    """A vector of one and the same float32 number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        empty, first = ir.Constant(_VECTOR, ir.Undefined), ir.IntType(32)(0)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
        one = builder.insert_element(empty, args[0], first)
        return builder.shuffle_vector(one, empty, everywhere)

    return _LANES(types.float32), generate


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())


def _give_operator(symbol: Callable[[Any, Any], Any], instruction: str) -> None:
    """Teaches numba what ``+``, ``-`` or ``*`` does to two vectors."""

    @_intrinsic
    def operate(typing: Any, left: Any, right: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            # No flags: nothing is fused or reordered, so that numpy gives the same bits.
            return getattr(builder, instruction)(*args)

        return _LANES(_LANES, _LANES), generate

    def apply(left: Any, right: Any) -> Any:
        return operate(left, right)

    @overload(symbol)
    def choose(left: Any, right: Any) -> Any:
        return apply if isinstance(left, Lanes) and isinstance(right, Lanes) else None


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
):
    _give_operator(_symbol, _instruction)
