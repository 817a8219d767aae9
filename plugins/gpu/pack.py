"""Copies that bring a matrix into the form that the other kernels read fast."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pack_columns(x, out, rows, columns, padded, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Transpose x [B, rows, columns] to out [B, columns, padded] in float32, with zeros from `rows` on.

    The inner loop of `weights` then reads consecutive queries and keys, four to an instruction, without a mask.
    Grid: B * ceil(columns / BLOCK_N) * ceil(padded / BLOCK_M).
    """
    down, across = tl.cdiv(padded, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    block = tl.program_id(0)
    i = block % down * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    c = block // down % across * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    batch = (block // (down * across)).to(tl.int64)
    values = tl.load(x + batch * rows * columns + i * columns + c, mask=(i < rows) & (c < columns), other=0.0)
    place = out + batch * columns * padded + c * padded + i
    tl.store(place, values.to(tl.float32), mask=(i < padded) & (c < columns))


@triton.jit
def pack_rows(x, out, rows, columns, padded, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Copy x [rows, columns] to out [rows, padded], with zeros from `columns` on.

    Rows that begin at a multiple of 16 elements are read in whole vectors.
    Grid: ceil(rows / BLOCK_M) * ceil(padded / BLOCK_N).
    """
    across = tl.cdiv(padded, BLOCK_N)
    i = (tl.program_id(0) // across).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    c = tl.program_id(0) % across * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    values = tl.load(x + i * columns + c, mask=(i < rows) & (c < columns), other=0.0)
    tl.store(out + i * padded + c, values, mask=(i < rows) & (c < padded))
