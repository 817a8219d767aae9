"""The weight of every pair of a query and a key, from transposed float32 copies.

A thread owns RM x RN neighbouring pairs and reads RM queries and RN keys for them per channel. The block of pairs is a
tensor [RM, RN, TM, TN] whose last two axes have as many elements as the block has threads: so Triton lays the first two
along registers, no value crosses threads, and the loop is two FADD a pair and channel (or one FFMA), few wide loads
and their addresses. The weights are stored transposed, as `product` reads them.
"""

from __future__ import annotations

import triton
import triton.language as tl

HALF_SCALE = tl.constexpr(1024.0)
"""Half-precision weights are stored times this: far keys' weights, 1 / (1 + distance), would else be subnormal."""


@triton.jit
def _block(M, N, D, causal, RM: tl.constexpr, RN: tl.constexpr, TM: tl.constexpr, TN: tl.constexpr):
    """This program's batch, queries [RM, 1, TM, 1], keys [1, RN, 1, TN], and how many channels it adds up.

    The channels are none where every key of the block lies beyond the diagonal.
    """
    down, across = tl.cdiv(M, RM * TM), tl.cdiv(N, RN * TN)
    block = tl.program_id(0)
    first_i, first_j = block % down * (RM * TM), block // down % across * (RN * TN)
    i = first_i + tl.arange(0, TM)[None, None, :, None] * RM + tl.arange(0, RM)[:, None, None, None]
    j = first_j + tl.arange(0, TN)[None, None, None, :] * RN + tl.arange(0, RN)[None, :, None, None]
    channels = tl.where((causal != 0) & (first_j >= first_i + RM * TM), 0, D)
    return (block // (down * across)).to(tl.int64), i, j, channels


@triton.jit
def l1_weights(
    qt, kt, w, M, N, D, MP, NP, causal,
    RM: tl.constexpr, RN: tl.constexpr, TM: tl.constexpr, TN: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """w[b, j, i] = 1 / (1 + sum_c |q[b, i, c] - k[b, j, c]|), 0 where masked.

    qt [B, D, MP] and kt [B, D, NP] float32, zero from M and N on; w [B, N, MP], in half precision times HALF_SCALE.
    Grid: B * ceil(M / (RM * TM)) * ceil(N / (RN * TN)).
    """
    batch, i, j, channels = _block(M, N, D, causal, RM, RN, TM, TN)
    q, k = qt + batch * D * MP + i, kt + batch * D * NP + j
    distance = tl.zeros([RM, RN, TM, TN], tl.float32)
    for _ in tl.range(0, channels, loop_unroll_factor=UNROLL):
        distance += tl.abs(tl.load(q) - tl.load(k))
        q += MP
        k += NP
    value = tl.where((causal != 0) & (j > i), 0.0, 1.0 / (1.0 + distance))
    if w.dtype.element_ty != tl.float32:
        value *= HALF_SCALE
    tl.store(w + batch * N * MP + j.to(tl.int64) * MP + i, value.to(w.dtype.element_ty), mask=j < N)


@triton.jit
def erf_weights(
    qt, kt, bias, row_scale, w, M, N, D, MP, NP, bias_batches, scale_batches, causal, mu, inverse,
    RM: tl.constexpr, RN: tl.constexpr, TM: tl.constexpr, TN: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """w[b, j, i] = (1 + erf((row_scale[b, i] (q[b, i] . k[b, j]) + bias[b, i, j] - mu) inverse)) / 2, 0 where masked.

    All float32, w [B, N, MP]; bias [1|B, M, N], row_scale [1|B, M]; their batches are 0 where there are none; inverse
    is 1 / (sigma sqrt(2)). The rest as `l1_weights`.
    """
    batch, i, j, channels = _block(M, N, D, causal, RM, RN, TM, TN)
    q, k = qt + batch * D * MP + i, kt + batch * D * NP + j
    score = tl.zeros([RM, RN, TM, TN], tl.float32)
    for _ in tl.range(0, channels, loop_unroll_factor=UNROLL):
        score += tl.load(q) * tl.load(k)
        q += MP
        k += NP
    if scale_batches > 0:
        score *= tl.load(row_scale + batch % scale_batches * M + i, mask=i < M, other=0.0)
    if bias_batches > 0:
        place = bias + batch % bias_batches * M * N + i.to(tl.int64) * N + j
        score += tl.load(place, mask=(i < M) & (j < N), other=0.0)
    value = tl.where((causal != 0) & (j > i), 0.0, 0.5 + 0.5 * tl.erf((score - mu) * inverse))
    tl.store(w + batch * N * MP + j.to(tl.int64) * MP + i, value, mask=j < N)
