"""LaplaceAttention in operators of PyTorch and its gradients in closed form: what `torch_op` registers as one operator.

Shapes: B batch, M queries, N keys, D channels of q and k, Dv channels of v. Nothing here holds [B, M, N, D].
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mega_deploy.plugins.laplace import EPSILON

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Gradients of q, k, v, bias and row_scale; None for those that are not needed."""


def composite(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    row_scale: Tensor | None,
    *,
    kind: str,
    causal: bool,
    mu: float,
    sigma: float,
) -> Tensor:
    """The op, [B, M, Dv] in the dtype of v; the arguments are those of `torch_op.laplace_attention`."""
    with without_autocast(q):
        q, k, values, bias, row_scale = widened(q, k, v, bias, row_scale)
        if kind == "l1":
            weights = 1 / (1 + torch.cdist(q, k, p=1.0))  # [B, M, N]
        else:
            scores = _scores(q @ k.transpose(1, 2), bias, row_scale)
            weights = (1 + torch.erf((scores - mu) / (sigma * math.sqrt(2)))) / 2
        if causal:
            weights = weights.tril()
        output = weights @ values
        if kind == "l1":
            output = output / (weights.sum(-1, keepdim=True) + EPSILON)
        return output.to(v.dtype)


def l1_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    gradient: Tensor,
    needed: tuple[bool, ...],
    causal: bool,
) -> Gradients:
    """Gradients of the l1 form, given the `gradient` of the output [B, M, Dv]; `needed` says of which inputs."""
    # torch's own gradient of the distance, which is what autograd calls, sums the signs without holding [B, M, N, D].
    q, k = q.contiguous(), k.contiguous()
    distance = torch.cdist(q, k, p=1.0)
    weights = 1 / (1 + distance)
    if causal:
        weights = weights.tril()
    norm = weights.sum(-1, keepdim=True) + EPSILON
    shares = weights / norm
    of_shares = gradient @ v.transpose(1, 2)  # [B, M, N]
    of_weights = (of_shares - (shares * of_shares).sum(-1, keepdim=True)) / norm
    of_distance = -of_weights * weights.square()
    return (
        _of_first(of_distance, q, k, distance) if needed[0] else None,
        _of_first(of_distance.mT, k, q, distance.mT) if needed[1] else None,
        shares.mT @ gradient if needed[2] else None,
        None,
        None,
    )


def _of_first(of_distance: Tensor, first: Tensor, second: Tensor, distance: Tensor) -> Tensor:
    """The gradient of torch.cdist(first, second, p=1) in `first`."""
    result: Tensor = torch.ops.aten._cdist_backward(of_distance.contiguous(), first, second, 1.0, distance.contiguous())
    return result


def erf_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    row_scale: Tensor | None,
    *,
    gradient: Tensor,
    needed: tuple[bool, ...],
    causal: bool,
    mu: float,
    sigma: float,
) -> Gradients:
    """Gradients of the erf form, given the `gradient` of the output [B, M, Dv]; `needed` says of which inputs."""
    products = q @ k.transpose(1, 2)  # [B, M, N]
    steps = (_scores(products, bias, row_scale) - mu) / (sigma * math.sqrt(2))
    weights, density = (1 + torch.erf(steps)) / 2, torch.exp(-steps.square()) / (sigma * math.sqrt(2 * math.pi))
    if causal:
        weights, density = weights.tril(), density.tril()
    of_scores = gradient @ v.transpose(1, 2) * density
    of_products = of_scores if row_scale is None else row_scale[:, :, None] * of_scores
    return (
        of_products @ k if needed[0] else None,
        of_products.mT @ q if needed[1] else None,
        weights.mT @ gradient if needed[2] else None,
        of_scores.sum_to_size(bias.shape) if bias is not None and needed[3] else None,
        (of_scores * products).sum(-1).sum_to_size(row_scale.shape) if row_scale is not None and needed[4] else None,
    )


def _scores(products: Tensor, bias: Tensor | None, row_scale: Tensor | None) -> Tensor:
    scores = products if row_scale is None else row_scale[:, :, None] * products
    return scores if bias is None else scores + bias


def widened(*tensors: Tensor | None) -> Any:
    """The tensors in the dtype of the arithmetic: float32, or float64 where one of them is."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if wide else torch.float32
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast, which would take products back to half precision; "meta" devices have none."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
