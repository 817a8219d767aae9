"""The weights times the values in float32; for l1 divided by the weights' sum."""

from __future__ import annotations

import triton
import triton.language as tl

from mega_deploy.plugins.laplace import EPSILON

SMALLEST_SUM = tl.constexpr(EPSILON)


@triton.jit
def product(
    w, v, o, M, N, Dv, MP, VP, normalize,
    RM: tl.constexpr, RN: tl.constexpr, TM: tl.constexpr, TN: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """o[b, i] = sum_j w[b, j, i] v[b, j], over (sum_j w[b, j, i] + 1e-8) if `normalize`; float32, without tensor cores.

    w [B, N, MP], v [B, N, VP] of which Dv columns count, o [B, M, Dv]. A thread owns RM x RN outputs, as in `weights`.
    Grid: B * ceil(M / (RM * TM)) * ceil(Dv / (RN * TN)).
    """
    down, across = tl.cdiv(M, RM * TM), tl.cdiv(Dv, RN * TN)
    block = tl.program_id(0)
    batch = (block // (down * across)).to(tl.int64)
    i = block % down * (RM * TM) + tl.arange(0, TM)[None, None, :, None] * RM + tl.arange(0, RM)[:, None, None, None]
    c = block // down % across * (RN * TN) + tl.arange(0, TN)[None, None, None, :] * RN
    c += tl.arange(0, RN)[None, :, None, None]
    weight_row, value_row = w + batch * N * MP + i, v + batch * N * VP + c
    total = tl.zeros([RM, 1, TM, 1], tl.float32)
    result = tl.zeros([RM, RN, TM, TN], tl.float32)
    for _ in tl.range(0, N, loop_unroll_factor=UNROLL):
        weight = tl.load(weight_row)
        result += weight * tl.load(value_row, mask=c < VP, other=0.0)
        total += weight
        weight_row += MP
        value_row += VP
    if normalize != 0:
        result /= total + SMALLEST_SUM
    tl.store(o + batch * M * Dv + i.to(tl.int64) * Dv + c, result, mask=(i < M) & (c < Dv))
