"""LaplaceAttention in numpy, the plainest way: what every other implementation is compared with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mega_deploy.plugins.laplace import EPSILON

Array = npt.NDArray[np.floating]


def l1_attention(q: Array, k: Array, v: Array) -> Array:
    """Attention with the weights 1 / (1 + |q_i - k_j|_1), in the precision of its inputs; holds [B, M, N, D] at once.

    Args:
        q: queries [B, M, D].
        k: keys [B, N, D].
        v: values [B, N, Dv].

    Returns:
        [B, M, Dv].
    """
    distance = np.abs(q[:, :, None, :] - k[:, None, :, :]).sum(-1)  # [B, M, N]
    weights = 1 / (1 + distance)
    result: Array = (weights @ v) / (weights.sum(-1, keepdims=True) + EPSILON)
    return result
