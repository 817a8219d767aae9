"""int8: matrix products with 7-bit weights per channel and dynamically quantised activations.

    x w + b   ->   (q(x) @ q(w)) * (scale_x * scale_w) + b        MatMulInteger, summed in int32

q(x) is uint8 with the scale and zero point of the whole tensor, taken anew in every call (DynamicQuantizeLinear), so
that a window's result depends a little on what shares its batch. q(w) is symmetric, a scale for each output channel.
The nodes stand in the order that onnxruntime's optimiser knows, and fuses.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from onnxscript import ir

# A processor without VNNI adds pairs of uint8 * int8 in int16 and saturates: 2 * 255 * 64 is the most that fits.
LARGEST = 64


def quantise(model: ir.Model, is_island: Callable[[ir.Node], bool]) -> set[ir.Node]:
    """Replace, in place, each product of a variable with a constant matrix; returns the nodes that were replaced.

    Args:
        model: float32.
        is_island: whether to leave a node alone.
    """
    graph = model.graph
    activations: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
    replaced = set()
    for node in list(graph):
        if node.op_type not in ("Gemm", "MatMul") or is_island(node) or not _is_constant(node.inputs[1]):
            continue
        x, weight = node.inputs[0], node.inputs[1]
        assert x is not None and weight is not None and weight.const_value is not None
        assert x.producer() is not None, "a layer that reads an input is an island"
        if x not in activations:
            activations[x] = _dynamic(graph, x)
        _replace(graph, node, activations[x], weight)
        replaced.add(node)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
    return replaced


def quantise_weight(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """[in, out] -> the whole numbers from -64 to 64 that stand for it, and the scale of each column [out]."""
    largest = np.abs(weight).max(axis=0)
    scale = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    return np.clip(np.rint(weight / scale), -LARGEST, LARGEST).astype(np.int8), scale


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def _dynamic(graph: ir.Graph, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The uint8 values, scale and zero point of x."""
    node = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=f"{x.name}.quantise")
    for value, part in zip(node.outputs, ("quantised", "scale", "zero_point"), strict=True):
        value.name = f"{x.name}.{part}"
        value.dtype = ir.DataType.FLOAT if part == "scale" else ir.DataType.UINT8
    producer = x.producer()
    assert producer is not None
    graph.insert_after(producer, node)
    values, scale, zero_point = node.outputs
    return values, scale, zero_point


def _replace(graph: ir.Graph, node: ir.Node, activation: tuple[ir.Value, ir.Value, ir.Value], weight: ir.Value) -> None:
    assert weight.const_value is not None
    whole, scale = quantise_weight(weight.const_value.numpy())
    q_weight = _constant(graph, f"{weight.name}.quantised", whole)
    w_scale = _constant(graph, f"{weight.name}.scale", scale)
    values, x_scale, x_zero = activation
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    total = ir.node("MatMulInteger", [values, q_weight, x_zero], name=f"{node.name}.integer")
    number = ir.node("Cast", [total.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{node.name}.cast")
    scales = ir.node("Mul", [x_scale, w_scale], name=f"{node.name}.scales")
    product = ir.node("Mul", [number.outputs[0], scales.outputs[0]], name=f"{node.name}.scale")
    nodes = [total, number, scales, product]
    if bias is not None:
        nodes.append(ir.node("Add", [product.outputs[0], bias], name=f"{node.name}.bias"))
    for new in nodes:
        new.outputs[0].name = f"{new.name}.output"
        new.outputs[0].dtype = ir.DataType.INT32 if new is total else ir.DataType.FLOAT
    old, result = node.outputs[0], nodes[-1].outputs[0]
    graph.insert_after(node, nodes)
    result.shape = old.shape
    name = old.name
    for user, index in list(old.uses()):
        user.replace_input_with(index, result)
    graph.remove(node, safe=True)
    old.name, result.name = f"{name}.replaced", name


def _constant(graph: ir.Graph, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]
