"""LaplaceAttention in PyTorch: the operator `mega_deploy::laplace_attention`, with gradients, and its naive form.

The operator is opaque to torch.compile and torch.export, which keep it as one node. Importing this module registers it.

Shapes: B batch, M queries, N keys, D channels of q and k, Dv channels of v.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any, get_args

import torch
from torch import Tensor

from mega_deploy.errors import InputError
from mega_deploy.plugins.laplace import EPSILON, MU, SIGMA, Kind

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def laplace_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    row_scale: Tensor | None = None,
    *,
    kernel: Kind = "l1",
    causal: bool = False,
    mu: float = MU,
    sigma: float = SIGMA,
) -> Tensor:
    """The op as its specification has it, differentiable in all its tensors once; it holds [B, M, N].

    Arithmetic is in float32, also under autocast, or in float64 where an input is; the floating dtypes may be mixed.

    Args:
        q: queries [B, M, D].
        k: keys [B, N, D].
        v: values [B, N, Dv].
        bias: added to the scores, [1|B, M, N]; erf only.
        row_scale: factor of each row's scores, [1|B, M]; erf only.
        kernel: "l1" or "erf".
        causal: query i sees the keys 0..i.
        mu: where the weight is one half; erf only.
        sigma: width of the step from 0 to 1, above 0; erf only.

    Returns:
        [B, M, Dv], the dtype of v.

    Raises:
        InputError: shapes, dtypes, devices or options do not fit (torch.compile and torch.export wrap it in theirs).
    """
    output: Tensor = operator(q, k, v, bias, row_scale, kind=kernel, causal=causal, mu=mu, sigma=sigma)
    return output


def naive_laplace_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    row_scale: Tensor | None = None,
    *,
    kernel: Kind = "l1",
    causal: bool = False,
    mu: float = MU,
    sigma: float = SIGMA,
) -> Tensor:
    """As `laplace_attention`, in the plainest way and in the precision of its inputs; l1 holds [B, M, N, D]."""
    if kernel == "l1":
        weights = 1 / (1 + (q[:, :, None] - k[:, None]).abs().sum(-1))  # [B, M, N]
    else:
        scores = q @ k.transpose(1, 2)
        if row_scale is not None:
            scores = row_scale[:, :, None] * scores
        if bias is not None:
            scores = scores + bias
        weights = (1 + torch.erf((scores - mu) / (sigma * math.sqrt(2)))) / 2
    if causal:
        weights = weights.tril()
    return weights @ v / (weights.sum(-1, keepdim=True) + EPSILON) if kernel == "l1" else weights @ v


# `kind` is the attribute `kernel`: torch.compile's code generator takes no operator with an argument of that name.
@torch.library.custom_op("mega_deploy::laplace_attention", mutates_args=())
def operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    row_scale: Tensor | None = None,
    *,
    kind: str = "l1",
    causal: bool = False,
    mu: float = MU,
    sigma: float = SIGMA,
) -> Tensor:
    """What serves every device that has no kernel of its own."""
    _check(q, k, v, bias, row_scale, kind=kind, sigma=sigma)
    return _composite(q, k, v, bias, row_scale, kind=kind, causal=causal, mu=mu, sigma=sigma)


@operator.register_kernel("cuda")
def _on_gpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    row_scale: Tensor | None = None,
    *,
    kind: str = "l1",
    causal: bool = False,
    mu: float = MU,
    sigma: float = SIGMA,
) -> Tensor:
    """The Triton kernels, where triton is installed and takes the tensors; else what serves every device."""
    _check(q, k, v, bias, row_scale, kind=kind, sigma=sigma)
    dtypes = {tensor.dtype for tensor in (q, k, v, bias, row_scale) if tensor is not None}
    if len(dtypes) > 1 or dtypes == {torch.float64} or find_spec("triton") is None:
        return _composite(q, k, v, bias, row_scale, kind=kind, causal=causal, mu=mu, sigma=sigma)
    from mega_deploy.plugins.gpu import launch

    with torch.cuda.device(q.device):
        return launch.laplace_attention(q, k, v, bias, row_scale, kernel=kind, causal=causal, mu=mu, sigma=sigma)


def _composite(
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
    with _without_autocast(q):
        q, k, values, bias, row_scale = _widened(q, k, v, bias, row_scale)
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


@operator.register_fake
def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    row_scale: Tensor | None = None,
    *,
    kind: str = "l1",
    causal: bool = False,
    mu: float = MU,
    sigma: float = SIGMA,
) -> Tensor:
    _check(q, k, v, bias, row_scale, kind=kind, sigma=sigma)
    return v.new_empty(q.shape[0], q.shape[1], v.shape[2])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    """Its arguments are named as torch passes them."""
    ctx.save_for_backward(*inputs)
    ctx.options = keyword_only_inputs


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients that are needed; the weights are computed anew rather than kept, [B, M, N] at a time."""
    inputs, options = ctx.saved_tensors, ctx.options
    causal, needed = options["causal"], ctx.needs_input_grad
    with _without_autocast(gradient):
        *wide, gradient = _widened(*inputs, gradient)
        if options["kind"] == "l1":
            gradients = _l1_gradients(*wide[:3], gradient=gradient, needed=needed, causal=causal)
        else:
            mu, sigma = options["mu"], options["sigma"]
            gradients = _erf_gradients(*wide, gradient=gradient, needed=needed, causal=causal, mu=mu, sigma=sigma)
    pairs = zip(inputs, gradients, strict=True)
    return tuple(None if gradient is None else gradient.to(given.dtype) for given, gradient in pairs)


operator.register_autograd(_backward, setup_context=_setup_context)


def _l1_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    gradient: Tensor,
    needed: tuple[bool, ...],
    causal: bool,
) -> Gradients:
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


def _erf_gradients(
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


def _widened(*tensors: Tensor | None) -> Any:
    """All in the dtype of the arithmetic: float32, or float64 where one of them is."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if wide else torch.float32
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


def _without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Autocast would take the products back to half precision; devices such as "meta" have none to switch off."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    row_scale: Tensor | None,
    *,
    kind: str,
    sigma: float,
) -> None:
    optional = {"bias": bias, "row_scale": row_scale}
    given = {name: tensor for name, tensor in optional.items() if tensor is not None}
    if kind not in get_args(Kind):
        raise InputError(f"kernel must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if kind == "l1" and given:
        raise InputError(f'kernel "l1" takes neither bias nor row_scale, got {" and ".join(given)}; "erf" takes them')
    if not sigma > 0:
        raise InputError(f"sigma must be above 0, got {sigma}")
    for name, tensor in {"q": q, "k": k, "v": v, **given}.items():
        if not tensor.dtype.is_floating_point:
            raise InputError(f"{name} must be of a floating dtype, got {tensor.dtype}")
        if tensor.device != q.device:
            raise InputError(f"{name} is on {tensor.device}, but q on {q.device}; move them to one device")
    for name, tensor in {"q": q, "k": k, "v": v}.items():
        if tensor.ndim != 3:
            raise InputError(f"{name} must have 3 axes, [batch, rows, channels], got {list(tensor.shape)}")
    batch, queries, channels = q.shape
    keys = k.shape[1]
    if k.shape[0] != batch or k.shape[2] != channels:
        raise InputError(f"k must be [{batch}, keys, {channels}] to go with q {list(q.shape)}, got {list(k.shape)}")
    if v.shape[0] != batch or v.shape[1] != keys:
        raise InputError(f"v must be [{batch}, {keys}, channels] to go with k {list(k.shape)}, got {list(v.shape)}")
    for name, tensor in given.items():
        rest = (queries, keys) if name == "bias" else (queries,)
        if tuple(tensor.shape[1:]) != rest or tensor.shape[0] not in (1, batch):
            wanted = ", ".join(map(str, (f"1 or {batch}", *rest)))
            raise InputError(f"{name} must be [{wanted}], got {list(tensor.shape)}")
