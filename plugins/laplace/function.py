"""LaplaceAttention as an ONNX function: the body that serves wherever no native kernel is registered."""

from __future__ import annotations

import math

import onnxscript
from onnxscript import ir

from mega_deploy.plugins.laplace import DOMAIN, EPSILON, NAME

# Elements of the [M, N, channels] difference that the body holds at once: 8 MB in float32. Measured on onnxruntime 1.32
# with 2 cores: fewer make 60 x 60 x 256 slower than one piece, more make 256 x 256 x 256 slower (8 pieces were best).
PIECE_ELEMENTS = 1 << 21
# Fewer channels in a piece leave the reduction too short to vectorise.
PIECE_CHANNELS = 8


def l1_function(
    queries: int, keys: int, channels: int, *, dtype: ir.DataType, opset: int, overload: str = ""
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
        norm = op.Add(op.ReduceSum(weights, [-1], keepdims=1), EPSILON)
        return op.Div(op.MatMul(weights, v), norm)

    inputs = [ir.val(name, dtype=dtype, shape=[None, None, None]) for name in ("q", "k", "v")]
    attributes = [ir.AttrString("kernel", "l1"), ir.AttrInt64("causal", 0)]
    function = onnxscript.build_function(
        body, inputs, domain=DOMAIN, name=NAME, attributes=attributes, opset_imports={"": opset}
    )
    function.overload = overload
    return function
