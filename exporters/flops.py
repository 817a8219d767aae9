"""Work of one window, in floating-point operations: a multiply-add counts as two.

Counted are matrix products, convolutions and the distances of Laplace attention (a subtraction, an absolute value and
an addition for each |q - k|); element-wise work is not.
"""

from __future__ import annotations

import math

import onnx

from mega_deploy.config import EdificeConfig
from mega_deploy.errors import MegaDeployError
from mega_deploy.plugins.laplace import NAME as LAPLACE

L1_OPERATIONS = 3


def trained_flops(config: EdificeConfig) -> int:
    """Of the trained form: every row of every block, every projection by itself."""
    length, hidden, inner = config.length, config.hidden_size, config.inner_size

    def linear(features_in: int, features_out: int) -> int:
        return 2 * length * features_in * features_out

    scores = length * length * hidden * (L1_OPERATIONS if config.laplace_attention else 2)
    attention = 5 * linear(hidden, hidden) + scores + 2 * length * length * hidden
    block = linear(hidden, config.ema_dim) + linear(config.ema_dim, hidden) + attention + 3 * linear(hidden, inner)
    projection = 0 if config.embed_dim == hidden else linear(config.embed_dim, hidden)
    return projection + config.num_layers * block


def graph_flops(model: onnx.ModelProto, length: int) -> int:
    """Of a graph for one window of `length` frames, or for one frame of a stream, from the shapes that it works on."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_value = 1 if axis.dim_param == "batch" else length
    inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)
    values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in inferred.graph.initializer}
    return sum(_node_flops(node, shapes) for node in inferred.graph.node)


def _node_flops(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    if node.op_type not in ("Gemm", "MatMul", "MatMulInteger", "Conv", LAPLACE):
        return 0
    try:
        first, second, out = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    except KeyError as error:
        raise MegaDeployError(f"the shape of {error} at node {node.name} could not be inferred") from error
    if node.op_type == LAPLACE:
        pairs = math.prod(first[:2]) * second[1]
        return pairs * (L1_OPERATIONS * first[2] + 2 * out[2])
    inner = math.prod(second[1:]) if node.op_type == "Conv" else first[-1]
    return 2 * math.prod(out) * inner
