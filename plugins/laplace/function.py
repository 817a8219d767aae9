"""LaplaceAttention as an ONNX function: the body that serves wherever no native kernel is registered."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnxscript
from onnxscript import ir

from mega_deploy.plugins.laplace import DOMAIN, EPSILON, MU, NAME, SIGMA

# Elements of the [M, N, channels] difference that the body holds at once: 8 MB in float32. Measured on onnxruntime 1.32
# with 2 cores: fewer make 60 x 60 x 256 slower than one piece, more make 256 x 256 x 256 slower (8 pieces were best).
PIECE_ELEMENTS = 1 << 21
# Fewer channels in a piece leave the reduction too short to vectorise.
PIECE_CHANNELS = 8


def l1_function(
    queries: int,
    keys: int,
    channels: int,
    *,
    dtype: ir.DataType,
    opset: int,
    causal: bool = False,
    overload: str = "",
) -> ir.Function:
    """The op with kernel="l1" for the given sizes; they choose how many pieces the channels are summed in.

    A body that forms all differences at once holds [B, M, N, D]: 268 MB for 1024 x 1024 x 64. This one adds up the
    distance over pieces of the channels and holds [B, M, N, D / pieces].

    Args:
        queries: M, rows of q.
        keys: N, rows of k and v.
        channels: D, columns of q and k.
        dtype: of the inputs and the output.
        opset: version of the standard operators.
        causal: query i sees the keys 0..i.
        overload: tells apart several bodies of the op in one model (IR version 10).
    """
    per_piece = max(PIECE_CHANNELS, PIECE_ELEMENTS // (queries * keys))
    pieces = min(math.ceil(channels / per_piece), channels)

    def body(op: onnxscript.OpBuilder, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        def distance(q: ir.Value, k: ir.Value) -> ir.Value:
            difference = op.Sub(op.Unsqueeze(q, [2]), op.Unsqueeze(k, [1]))  # [B, M, N, D / pieces]
            return op.ReduceSum(op.Abs(difference), [-1], keepdims=0)

        if pieces == 1:
            total = distance(q, k)  # [B, M, N]
        else:
            q_pieces, k_pieces = (op.Split(x, axis=2, num_outputs=pieces, _outputs=pieces) for x in (q, k))
            first, *rest = (distance(q_piece, k_piece) for q_piece, k_piece in zip(q_pieces, k_pieces, strict=True))
            total = first
            for part in rest:
                total = op.Add(total, part)
        weights = op.Reciprocal(op.Add(total, 1.0))
        if causal:
            weights = op.Trilu(weights, upper=0)
        norm = op.Add(op.ReduceSum(weights, [-1], keepdims=1), EPSILON)
        return op.Div(op.MatMul(weights, v), norm)

    attributes: list[ir.Attr] = [ir.AttrString("kernel", "l1"), ir.AttrInt64("causal", int(causal))]
    return _function(body, {"q": 3, "k": 3, "v": 3}, attributes, dtype=dtype, opset=opset, overload=overload)


def erf_function(
    *,
    dtype: ir.DataType,
    opset: int,
    causal: bool = False,
    bias: bool = False,
    row_scale: bool = False,
    mu: float = MU,
    sigma: float = SIGMA,
    overload: str = "",
) -> ir.Function:
    """The op with kernel="erf", for any sizes; it holds [B, M, N].

    Args:
        dtype: of the inputs and the output.
        opset: version of the standard operators.
        causal: query i sees the keys 0..i.
        bias: whether the fourth input is given.
        row_scale: whether the fifth input is given; the fourth is then there as well, and may be left empty.
        mu: as the node has it.
        sigma: as the node has it.
        overload: tells apart several bodies of the op in one model (IR version 10).
    """

    def body(op: onnxscript.OpBuilder, q: ir.Value, k: ir.Value, v: ir.Value, *optional: ir.Value) -> ir.Value:
        scores = op.MatMul(q, op.Transpose(k, perm=[0, 2, 1]))  # [B, M, N]
        if row_scale:
            scores = op.Mul(scores, op.Unsqueeze(optional[1], [2]))
        if bias:
            scores = op.Add(scores, optional[0])
        step = op.Erf(op.Mul(op.Sub(scores, mu), 1 / (sigma * math.sqrt(2))))
        weights = op.Mul(op.Add(step, 1.0), 0.5)
        if causal:
            weights = op.Trilu(weights, upper=0)
        return op.MatMul(weights, v)

    axes = {"q": 3, "k": 3, "v": 3}
    if bias or row_scale:
        axes["bias"] = 3
    if row_scale:
        axes["row_scale"] = 2
    attributes: list[ir.Attr] = [ir.AttrString("kernel", "erf"), ir.AttrInt64("causal", int(causal))]
    attributes += [ir.AttrFloat32("mu", mu), ir.AttrFloat32("sigma", sigma)]
    return _function(body, axes, attributes, dtype=dtype, opset=opset, overload=overload)


def _function(
    body: Callable[..., ir.Value],
    inputs: Mapping[str, int],
    attributes: Sequence[ir.Attr],
    *,
    dtype: ir.DataType,
    opset: int,
    overload: str,
) -> ir.Function:
    """An ONNX function of a body, the number of axes of each input, and the attributes that its nodes may carry."""
    values = [ir.val(name, dtype=dtype, shape=[None] * axes) for name, axes in inputs.items()]
    function = onnxscript.build_function(
        body, values, domain=DOMAIN, name=NAME, attributes=list(attributes), opset_imports={"": opset}
    )
    function.overload = overload
    return function
