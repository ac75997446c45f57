"""The inner loops of the scorer in vector instructions: sums of the table rows that an index names.

    sums[at] += table[index[0]] + table[stride + index[1]] + table[2 * stride + index[2]] + ...

A row is 32 numbers of 4 bytes: two vector registers of a recent processor. The
sum stays in registers until it is complete. A plain Numba loop computes the
same, but LLVM cannot know that the sums do not overlap the table, so it stores
and reloads them at every step: measured, four to six times slower. So these
loops are Numba *intrinsics*, which emit LLVM instructions. On a processor with
narrower registers LLVM uses more of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WIDTH = 32
_CACHE_LINE_BYTES = 64


def _intrinsic(function: Callable[..., Any]) -> Callable[..., None]:
    """Apply Numba's decorator; callers do not pass the first argument, Numba's typing context."""
    return cast(Callable[..., None], intrinsic(function))


def aligned(shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """Allocate an array that starts at a cache line; sums of rows that cross lines take twice as long."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _CACHE_LINE_BYTES, dtype=np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE_BYTES
    array: npt.NDArray[Any] = memory[start : start + size].view(dtype).reshape(shape)
    return array


@_intrinsic
def set_sum_of_rows(
    typing: Any, table: Any, stride: Any, index: Any, start: Any, count: Any, sums: Any, at: Any
) -> Any:
    """Set row `at` of the sums to the sum of `count` rows of the table; parameters as of `sum_rows`."""
    return _sum_rows(table, stride, index, start, count, sums, at, add=False)


@_intrinsic
def sum_rows(
    typing: Any, table: Any, stride: Any, index: Any, start: Any, count: Any, sums: Any, at: Any
) -> Any:
    """Add `count` rows of the table to row `at` of the sums.

    Parameters
    ----------
    table, sums
        (rows, 32) int32, C order.
    stride, index, start, count
        The i-th row is `i * stride + index[start + i]`, with the index
        flattened: unsigned integers, C order.
    """
    return _sum_rows(table, stride, index, start, count, sums, at, add=True)


def _sum_rows(
    table: Any, stride: Any, index: Any, start: Any, count: Any, sums: Any, at: Any, *, add: bool
) -> Any:
    def emit(
        builder: Any, table: Any, stride: Any, index: Any, start: Any, count: Any, sums: Any, at: Any
    ) -> None:
        vector = ir.VectorType(ir.IntType(32), WIDTH)

        def add_row(sum_: Any, i: Any) -> Any:
            offset = builder.zext(builder.load(builder.gep(index, [builder.add(start, i)])), start.type)
            row = builder.add(builder.mul(i, stride), offset)
            return builder.add(sum_, _load(builder, table, row, vector))

        first = _load(builder, sums, at, vector) if add else ir.Constant(vector, None)
        _store(builder, sums, at, _accumulate(builder, first, count, add_row))

    return types.void(table, stride, index, start, count, sums, at), _with_pointers(emit)


@_intrinsic
def dot_rows(typing: Any, left: Any, start: Any, right: Any, count: Any, sums: Any) -> Any:
    """Set the first row of the sums to the sum of `count` rows, each times a number of `left`.

    Each step is one fused multiply-add, which rounds once, in the order of the rows: the sums have the same
    bits on every processor. A processor without that instruction computes it by the C library, exactly.

    Parameters
    ----------
    left, start
        float32 of any shape, C order; the numbers begin at index `start` of the flattened array.
    right, sums
        (rows, 32) float32, C order.
    """

    def emit(builder: Any, left: Any, start: Any, right: Any, count: Any, sums: Any) -> None:
        vector, lane = ir.VectorType(ir.FloatType(), WIDTH), ir.IntType(32)
        kind = ir.FunctionType(vector, [vector] * 3)
        name = f"llvm.fma.v{WIDTH}f32"
        fused = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]

        def add(sum_: Any, i: Any) -> Any:
            number = builder.load(builder.gep(left, [builder.add(start, i)]))
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, lane(0))
            splat = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(lane, WIDTH), None))
            return builder.call(fused, [splat, _load(builder, right, i, vector), sum_])

        _store(builder, sums, start.type(0), _accumulate(builder, ir.Constant(vector, None), count, add))

    return types.void(left, start, right, count, sums), _with_pointers(emit)


@_intrinsic
def copy_bytes(typing: Any, source: Any, start: Any, target: Any, at: Any, count: Any) -> Any:
    """Copy `count` bytes from index `start` of one uint8 array to index `at` of another.

    If the count is a constant at compile time, LLVM emits no loop.
    """

    def emit(builder: Any, source: Any, start: Any, target: Any, at: Any, count: Any) -> None:
        pointers = builder.gep(target, [at]), builder.gep(source, [start])
        cgutils.raw_memcpy(builder, *pointers, count, 1)  # type: ignore[no-untyped-call]

    return types.void(source, start, target, at, count), _with_pointers(emit)


def _with_pointers(emit: Callable[..., None]) -> Callable[..., Any]:
    """Adapt a code generator that takes pointers to the first elements of arrays to Numba's interface."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        plain = [
            context.make_array(kind)(context, builder, argument).data
            if isinstance(kind, types.Array)
            else context.cast(builder, argument, kind, types.intp)
            for kind, argument in zip(signature.args, arguments, strict=True)
        ]
        emit(builder, *plain)
        return context.get_dummy_value()

    return generate


def _accumulate(builder: Any, first: Any, count: Any, add: Callable[[Any, Any], Any]) -> Any:
    """Emit a loop of `count` steps sum = add(sum, i), from the first sum."""
    sum_ = cgutils.alloca_once(builder, first.type)  # type: ignore[no-untyped-call]
    builder.store(first, sum_)
    with cgutils.for_range(builder, count) as loop:
        builder.store(add(builder.load(sum_), loop.index), sum_)
    return builder.load(sum_)


def _row(builder: Any, table: Any, row: Any, vector: Any) -> Any:
    return builder.gep(builder.bitcast(table, vector.as_pointer()), [row])


def _load(builder: Any, table: Any, row: Any, vector: Any) -> Any:
    # `aligned` arrays are aligned to 64 bytes, but arrays from elsewhere may not be.
    return builder.load(_row(builder, table, row, vector), align=4)


def _store(builder: Any, table: Any, row: Any, sum_: Any) -> None:
    builder.store(sum_, _row(builder, table, row, sum_.type), align=4)
