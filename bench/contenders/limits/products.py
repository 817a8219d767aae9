"""The matrix products of a graph as onnxruntime optimised it, as a graph of their own, and what they must read."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mega_deploy.arrays import Array
from mega_deploy.bench.contenders.limits.profile import Node
from mega_deploy.runtime.onnxruntime.session import OPTIMISED

FLOOR = "floor.onnx"
# onnxruntime's matrix products, its own among them; an activation that it fused to one is left out of the floor.
PRODUCTS = (
    "Gemm",
    "MatMul",
    "FusedGemm",
    "FusedMatMul",
    "MatMulInteger",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "MatMulNBits",
)
PLAIN = {"FusedGemm": "Gemm"}
BYTES = {"float": 4, "double": 8, "float16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1}
Shapes = dict[str, tuple[str, tuple[int, ...]]]


def write_products(
    onnx: Any, nodes: Sequence[Node], inputs: Mapping[str, Array], folder: Path
) -> tuple[Any, list[Any], Shapes]:
    """Write FLOOR to the folder of a profile; the graph as onnxruntime ran it, and which of its nodes are products."""
    model = onnx.load(os.fspath(folder / OPTIMISED))
    shapes = _shapes(model, nodes, inputs)
    products = [node for node in model.graph.node if node.op_type in PRODUCTS]
    onnx.save(_products_only(onnx, model, products, shapes), os.fspath(folder / FLOOR))
    return model, products, shapes


def _shapes(model: Any, nodes: Sequence[Node], feeds: Mapping[str, Array]) -> Shapes:
    """Type and shape of every value: constants, inputs, and what each node was seen to give."""
    from onnx import TensorProto

    named = {getattr(TensorProto, kind.upper()): kind for kind in BYTES}
    shapes: Shapes = {
        tensor.name: (named.get(tensor.data_type, "float"), tuple(tensor.dims)) for tensor in model.graph.initializer
    }
    shapes |= {name: (named[_elem_type(array)], array.shape) for name, array in feeds.items()}
    seen = {node.name: node.outputs for node in nodes}
    for node in model.graph.node:
        shapes |= dict(zip([name for name in node.output if name], seen.get(node.name, ()), strict=False))
    return shapes


def _elem_type(array: Array) -> int:
    from onnx.helper import np_dtype_to_tensor_dtype

    return int(np_dtype_to_tensor_dtype(array.dtype))


def _products_only(onnx: Any, model: Any, products: Sequence[Any], shapes: Shapes) -> Any:
    """A model of the products alone: their constants stay constants, what else they take becomes an input of the graph.

    Inputs of one type and shape are one, so that they are as warm as what a graph computes just before.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs: dict[str, Any] = {}
    outputs, nodes, kept = [], [], {}
    for node in products:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if plain := PLAIN.get(node.op_type):
            copy.op_type, copy.domain = plain, ""
            del copy.attribute[:]
            copy.attribute.extend(a for a in node.attribute if not a.name.startswith("activation"))
        for index, name in enumerate(node.input):
            if name in constants:
                kept[name] = constants[name]
            elif name:
                kind, shape = shapes[name]
                copy.input[index] = f"{kind} {' x '.join(map(str, shape))}"
                inputs.setdefault(copy.input[index], value_info(onnx, copy.input[index], kind, shape))
        nodes.append(copy)
        outputs += [value_info(onnx, name, *shapes[name]) for name in node.output if name]
    graph = onnx.helper.make_graph(nodes, "products", list(inputs.values()), outputs, list(kept.values()))
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def value_info(onnx: Any, name: str, kind: str, shape: Sequence[int]) -> Any:
    """An input or output of a graph, of one of the types in BYTES."""
    return onnx.helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind.upper()), shape)


def flop(node: Any, shapes: Shapes) -> int:
    """Operations of a product; a multiply-add counts as two."""
    first, out = shapes[node.input[0]][1], shapes[node.output[0]][1]
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * math.prod(out) * first[-2 if transposed else -1]


def bytes_to_read(model: Any, products: Sequence[Any], shapes: Shapes, state: Mapping[str, Array]) -> int:
    """The graph's constants, once, and what the products take besides: of a stream its state, once as well."""

    def size(name: str) -> int:
        kind, shape = shapes[name]
        return BYTES.get(kind, 4) * math.prod(shape)

    constants = {tensor.name for tensor in model.graph.initializer}
    used = {name for node in model.graph.node for name in node.input} & constants
    taken = list(state) or [name for node in products for name in node.input if name and name not in constants]
    return sum(map(size, used)) + sum(map(size, taken))
