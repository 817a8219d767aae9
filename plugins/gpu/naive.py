"""What each kernel computes, in plain PyTorch: the kernels' tests compare with these, and a reader may begin here.

Sizes and layouts are the kernels' own (see their modules); results are float32 or float64, as the inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mega_deploy.plugins.laplace import EPSILON


def pack_columns(x: Tensor, padded: int) -> Tensor:
    """x [B, rows, columns] transposed to [B, columns, padded], with zeros from `rows` on."""
    return torch.nn.functional.pad(x.transpose(1, 2), (0, padded - x.shape[1]))


def pack_rows(x: Tensor, padded: int) -> Tensor:
    """x [rows, columns] as [rows, padded], with zeros from `columns` on."""
    return torch.nn.functional.pad(x, (0, padded - x.shape[1]))


def l1_weights(q: Tensor, k: Tensor, *, causal: bool) -> Tensor:
    """1 / (1 + sum_c |q_c - k_c|) of every pair, transposed: q [B, M, D], k [B, N, D] -> [B, N, M]."""
    distance = (k[:, :, None, :] - q[:, None, :, :]).abs().sum(-1)
    return _masked(1 / (1 + distance), causal)


def erf_weights(
    q: Tensor, k: Tensor, bias: Tensor | None, row_scale: Tensor | None, *, causal: bool, mu: float, inverse: float
) -> Tensor:
    """(1 + erf((row_scale (q . k) + bias - mu) inverse)) / 2 of every pair, transposed: [B, N, M].

    bias [1|B, M, N], row_scale [1|B, M]; inverse is 1 / (sigma sqrt(2)).
    """
    scores = k @ q.transpose(1, 2)
    if row_scale is not None:
        scores = scores * row_scale[:, None, :]
    if bias is not None:
        scores = scores + bias.transpose(1, 2)
    return _masked((1 + torch.erf((scores - mu) * inverse)) / 2, causal)


def product(w: Tensor, v: Tensor, *, normalize: bool) -> Tensor:
    """sum_j w_ji v_j, over (sum_j w_ji + 1e-8) if `normalize`: w [B, N, M], v [B, N, Dv] -> [B, M, Dv]."""
    result = w.transpose(1, 2) @ v
    return result / (w.sum(1)[:, :, None] + EPSILON) if normalize else result


def _masked(w: Tensor, causal: bool) -> Tensor:
    """w [B, N, M] with zeros where the key comes after the query."""
    return w.triu() if causal else w
