"""LaplaceAttention in numpy, the plainest way: what every other implementation is compared with."""

from __future__ import annotations

import math

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.plugins.laplace import EPSILON, MU, SIGMA, Kind


def laplace_attention(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    row_scale: Array | None = None,
    *,
    kernel: Kind = "l1",
    causal: bool = False,
    mu: float = MU,
    sigma: float = SIGMA,
) -> Array:
    """The op as its specification has it, in the precision of its inputs; l1 holds [B, M, N, D] at once.

    Args:
        q: queries [B, M, D].
        k: keys [B, N, D].
        v: values [B, N, Dv].
        bias: added to the scores, [1|B, M, N]; erf only.
        row_scale: factor of each row's scores, [1|B, M]; erf only.
        kernel: "l1" or "erf".
        causal: query i sees the keys 0..i.
        mu: where the weight is one half; erf only.
        sigma: width of the step from 0 to 1; erf only.

    Returns:
        [B, M, Dv].
    """
    mask = np.tri(q.shape[1], k.shape[1], dtype=bool) if causal else True
    if kernel == "l1":
        distance = np.abs(q[:, :, None, :] - k[:, None, :, :]).sum(-1)  # [B, M, N]
        weights = np.where(mask, 1 / (1 + distance), 0)
        result: Array = (weights @ v) / (weights.sum(-1, keepdims=True) + EPSILON)
        return result
    scores = q @ k.transpose(0, 2, 1)
    if row_scale is not None:
        scores = row_scale[:, :, None] * scores
    if bias is not None:
        scores = scores + bias
    step = _erf((scores - mu) / (sigma * math.sqrt(2))).astype(scores.dtype)
    weights = np.where(mask, (1 + step) / 2, 0)
    weighted: Array = weights @ v
    return weighted


def _erf(x: Array) -> Array:
    result: Array = np.vectorize(math.erf, otypes=[np.float64])(x)
    return result
