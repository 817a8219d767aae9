"""Work of one window, in floating-point operations: a multiply-add counts as two.

Counted are matrix products, convolutions and the distances of Laplace attention (a subtraction, an absolute value and
an addition for each |q - k|); element-wise work is not.
"""

from __future__ import annotations

import copy
import math

import onnx
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mega_deploy.config import EdificeConfig
from mega_deploy.errors import MegaDeployError
from mega_deploy.plugins.laplace import NAME as LAPLACE
from mega_deploy.signature import Signature, TensorSpec, usual

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


def counted_flops(model: nn.Module, signature: Signature) -> int:
    """Of a trained form for one row of the usual length: its matrix products, as torch counts them.

    The Fourier transforms in which the paper's moving average is trained are not counted.
    """
    shaped = copy.deepcopy(model).to("meta")
    dtypes = {"float32": torch.float32, "int64": torch.int64}
    inputs = {
        spec.name: torch.ones(_one_row(spec), dtype=dtypes[spec.dtype], device="meta") for spec in signature.inputs
    }
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shaped(**inputs)
    total: int = counter.get_total_flops()
    return total


def _one_row(spec: TensorSpec) -> list[int]:
    return [1 if axis == "batch" else usual(dim) for axis, dim in zip(spec.axes, spec.dims, strict=True)]


def graph_flops(model: onnx.ModelProto, signature: Signature) -> int:
    """Of a graph for one row of the usual length, from the shapes that it works on."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    specs = {spec.name: spec for spec in signature.inputs}
    for value in fixed.graph.input:
        spec = specs[value.name]
        for dim, size in zip(value.type.tensor_type.shape.dim, _one_row(spec), strict=True):
            dim.dim_value = size
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
