"""The weights times the values in half precision, on tensor cores, accumulated in float32."""

from __future__ import annotations

import triton
import triton.language as tl

from mega_deploy.plugins.gpu.weights import HALF_SCALE
from mega_deploy.plugins.laplace import EPSILON

SMALLEST_SUM = tl.constexpr(EPSILON)


@triton.jit
def product(
    w, v, o, M, N, Dv, MP, VP, normalize,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """o[b, i] = sum_j w[b, j, i] v[b, j], over (sum_j w[b, j, i] + 1e-8) if `normalize`.

    w [B, N, MP] times HALF_SCALE, v [B, N, VP] of which Dv columns count, o [B, M, Dv].

    Grid: B * ceil(M / BLOCK_M) * ceil(Dv / BLOCK_N).
    """
    down, across = tl.cdiv(M, BLOCK_M), tl.cdiv(Dv, BLOCK_N)
    block = tl.program_id(0)
    batch = (block // (down * across)).to(tl.int64)
    i = block % down * BLOCK_M + tl.arange(0, BLOCK_M)
    c = block // down % across * BLOCK_N + tl.arange(0, BLOCK_N)
    w += batch * N * MP
    v += batch * N * VP
    weights = tl.zeros([BLOCK_K, BLOCK_M], tl.float32)  # summed after the loop: across threads only once
    result = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, N, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        weight = tl.load(w + j.to(tl.int64)[:, None] * MP + i[None, :], mask=j[:, None] < N, other=0.0)
        inside = (j[:, None] < N) & (c[None, :] < VP)
        value = tl.load(v + j.to(tl.int64)[:, None] * VP + c[None, :], mask=inside, other=0.0)
        result = tl.dot(tl.trans(weight), value, result)
        weights += weight.to(tl.float32)
    result /= HALF_SCALE
    if normalize != 0:
        result /= (tl.sum(weights, 0) / HALF_SCALE + SMALLEST_SUM)[:, None]
    place = o + batch * M * Dv + i.to(tl.int64)[:, None] * Dv + c[None, :]
    tl.store(place, result.to(o.dtype.element_ty), mask=(i[:, None] < M) & (c[None, :] < Dv))
