"""Laplace attention of the erf kind in half precision: one pass, nothing of [M, N] in memory."""

from __future__ import annotations

import triton
import triton.language as tl

from mega_deploy.plugins.gpu.weights import HALF_SCALE


@triton.jit
def erf_fused(
    q, k, v, bias, row_scale, o, M, N, D, Dv, DP, VP, bias_batches, scale_batches, causal, mu, inverse,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """o[b, i] = sum_j (1 + erf((row_scale[b, i] (q[b, i] . k[b, j]) + bias[b, i, j] - mu) inverse)) / 2  v[b, j].

    Both products run on tensor cores and accumulate in float32. The weights are not normalised, so unlike softmax's
    they need no running maximum and no rescaling: a block of keys is done when it is added. q [B, M, DP] and
    k [B, N, DP] of which D columns count, v [B, N, VP] of which Dv count, o [B, M, Dv], bias [1|B, M, N],
    row_scale [1|B, M]; their batches are 0 where there are none; inverse is 1 / (sigma sqrt(2)).
    Grid: B * ceil(M / BLOCK_M) * ceil(Dv / BLOCK_N).
    """
    down, across = tl.cdiv(M, BLOCK_M), tl.cdiv(Dv, BLOCK_N)
    block = tl.program_id(0)
    batch = (block // (down * across)).to(tl.int64)
    first = block % down * BLOCK_M
    i = first + tl.arange(0, BLOCK_M)
    c = block // down % across * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    q += batch * M * DP + i.to(tl.int64)[:, None] * DP
    k += batch * N * DP
    v += batch * N * VP
    scale = tl.full([BLOCK_M], 1.0, tl.float32)
    if scale_batches > 0:
        scale = tl.load(row_scale + batch % scale_batches * M + i, mask=i < M, other=0.0).to(tl.float32)
    bias_rows = bias + batch % tl.maximum(bias_batches, 1) * M * N + i.to(tl.int64)[:, None] * N
    # A query sees the keys before `visible`: one comparison serves the end of the keys and the diagonal.
    visible = tl.where(causal != 0, tl.minimum(i + 1, N), N)
    end = tl.where(causal != 0, tl.minimum(first + BLOCK_M, N), N)
    result = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, end, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        score = tl.zeros([BLOCK_M, BLOCK_J], tl.float32)
        for channel in range(0, D, BLOCK_D):
            inside = channel + d < DP
            query = tl.load(q + (channel + d)[None, :], mask=(i[:, None] < M) & inside[None, :], other=0.0)
            key_place = k + j.to(tl.int64)[None, :] * DP + (channel + d)[:, None]
            key = tl.load(key_place, mask=(j[None, :] < N) & inside[:, None], other=0.0)
            score = tl.dot(query, key, score)
        score *= scale[:, None]
        if bias_batches > 0:
            score += tl.load(bias_rows + j[None, :], mask=(i[:, None] < M) & (j[None, :] < N), other=0.0).to(tl.float32)
        weight = 0.5 * HALF_SCALE + 0.5 * HALF_SCALE * tl.erf((score - mu) * inverse)
        weight = tl.where(j[None, :] < visible[:, None], weight, 0.0)
        inside_v = (j[:, None] < N) & (c[None, :] < VP)
        value = tl.load(v + j.to(tl.int64)[:, None] * VP + c[None, :], mask=inside_v, other=0.0)
        result = tl.dot(weight.to(value.dtype), value, result)
    place = o + batch * M * Dv + i.to(tl.int64)[:, None] * Dv + c[None, :]
    tl.store(place, (result / HALF_SCALE).to(o.dtype.element_ty), mask=(i[:, None] < M) & (c[None, :] < Dv))
