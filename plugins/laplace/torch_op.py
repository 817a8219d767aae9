"""LaplaceAttention in PyTorch: the operator `mega_deploy::laplace_attention`, with gradients, and its naive form.

The operator is opaque to torch.compile and torch.export, which keep it as one node. Importing this module registers it.

Shapes: B batch, M queries, N keys, D channels of q and k, Dv channels of v.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any, get_args

import torch
from torch import Tensor

from mega_deploy.errors import InputError
from mega_deploy.plugins.laplace import EPSILON, MU, SIGMA, Kind
from mega_deploy.plugins.laplace.torch_formulas import composite, erf_gradients, l1_gradients, widened, without_autocast


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


# `kind` is the attribute `kernel`: torch.compile's code generator takes no operator with an argument of that name. Each
# of the functions below repeats the defaults, for torch leaves out of a call what has its default.
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
    """The operator on every device that has no kernel of its own."""
    _check(q, k, v, bias, row_scale, kind=kind, sigma=sigma)
    return composite(q, k, v, bias, row_scale, kind=kind, causal=causal, mu=mu, sigma=sigma)


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
        return composite(q, k, v, bias, row_scale, kind=kind, causal=causal, mu=mu, sigma=sigma)
    from mega_deploy.plugins.gpu import launch

    with torch.cuda.device(q.device):
        return launch.laplace_attention(q, k, v, bias, row_scale, kernel=kind, causal=causal, mu=mu, sigma=sigma)


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
    """Keep what `_backward` needs; torch passes the arguments by these names."""
    ctx.save_for_backward(*inputs)
    ctx.options = keyword_only_inputs


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients that are needed; the weights are computed anew rather than kept, [B, M, N] at a time."""
    inputs, options = ctx.saved_tensors, ctx.options
    causal, needed = options["causal"], ctx.needs_input_grad
    with without_autocast(gradient):
        *wide, gradient = widened(*inputs, gradient)
        if options["kind"] == "l1":
            gradients = l1_gradients(*wide[:3], gradient=gradient, needed=needed, causal=causal)
        else:
            mu, sigma = options["mu"], options["sigma"]
            gradients = erf_gradients(*wide, gradient=gradient, needed=needed, causal=causal, mu=mu, sigma=sigma)
    pairs = zip(inputs, gradients, strict=True)
    return tuple(None if gradient is None else gradient.to(given.dtype) for given, gradient in pairs)


operator.register_autograd(_backward, setup_context=_setup_context)


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
