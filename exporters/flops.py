"""Work of one window, in floating-point operations: a multiply-add counts as two.

Counted are matrix products, convolutions and the distances of Laplace attention (a subtraction, an absolute value and
an addition for each |q - k|); element-wise work is not.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mega_deploy.config.common import Precision
from mega_deploy.plugins.laplace import NAME as LAPLACE
from mega_deploy.runtime import Session, SessionOptions
from mega_deploy.runtime.onnxruntime.emulation import emulated
from mega_deploy.signature import Signature, TensorSpec, usual

L1_OPERATIONS = 3
COUNTED = frozenset({"Gemm", "MatMul", "MatMulInteger", "Conv", LAPLACE})


def counted_flops(model: nn.Module, signature: Signature) -> int:
    """Floating-point operations of a trained form for one row of the usual length: its matrix products, by torch.

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


def graph_flops(path: Path, signature: Signature, precision: Precision = "float32") -> int:
    """Floating-point operations of a graph for one row of the usual length: it is run once, for its shapes.

    Args:
        path: its ONNX file.
        signature: of the model.
        precision: of the graph.
    """
    model = onnx.load(path, load_external_data=False)
    if precision == "bfloat16":
        model = emulated(model)
    nodes = [node for node in model.graph.node if node.op_type in COUNTED]
    names = sorted({name for node in nodes for name in (*node.input[:2], node.output[0])})
    for name in names:
        shape = f"{name}.shape"
        model.graph.node.append(onnx.helper.make_node("Shape", [name], [shape]))
        model.graph.output.append(onnx.helper.make_tensor_value_info(shape, onnx.TensorProto.INT64, None))
    inputs = tuple(replace(spec, dims=tuple(_one_row(spec))) for spec in signature.inputs)
    outputs = tuple(TensorSpec(f"{name}.shape", "int64", ()) for name in names)
    options = SessionOptions(config={"session.model_external_initializers_file_folder_path": str(path.parent)})
    session = Session(model.SerializeToString(), Signature(inputs, outputs), options)
    lowest = {spec.name: 0 if spec.values is None else spec.values[0] for spec in inputs}
    feeds = {spec.name: np.full(_one_row(spec), lowest[spec.name], spec.dtype) for spec in inputs}
    shapes = {name.removesuffix(".shape"): shape.tolist() for name, shape in session.run_named(feeds).items()}
    return sum(_node_flops(node, shapes) for node in nodes)


def _node_flops(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    first, second, out = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    if node.op_type == LAPLACE:
        kernel = next(attribute.s for attribute in node.attribute if attribute.name == "kernel")
        pairs = math.prod(first[:2]) * second[1]
        return pairs * ((L1_OPERATIONS if kernel == b"l1" else 2) * first[2] + 2 * out[2])
    inner = math.prod(second[1:]) if node.op_type == "Conv" else first[-1]
    return 2 * math.prod(out) * inner
