"""int8: matrix products with 7-bit weights per output channel and 8-bit activations, both scaled anew for each row.

    x w + b   ->   (q(x / r) @ q(w)) * (r * scale) + b        MatMulInteger, summed in int32

r is the largest absolute value of each row of x, taken in every call, so that no row is rounded by the measure of
another one in its window or batch. q(x / r) is uint8 around 128, q(w) int8 around 0 with a scale for each column.

One scale for all rows (DynamicQuantizeLinear, whose nodes onnxruntime 1.32 fuses) was tried: a quarter faster on a core
with AVX-512 VNNI, but the error of the default configuration was 2.9e-2 instead of 1.8e-2 (softmax; Laplace attention
2.1e-2 instead of 1.7e-2), and what a window gives depended on the others in its batch.

A step of a stream has a single row for each matrix and is bound by reading weights; ten nodes for a product would take
longer than the product. There the weights alone are quantised, in blocks (`quantise_in_blocks`).

What takes the source of a stream runs once for many steps, each of which reads what it gives: there an error costs most
and time least, and the weights are stored in float16 (`store_in_half`). Of 18 random translation models, most with
weights of the size 1 / sqrt(features), 7 were beyond int8's limit of 0.05 when the encoder was lowered like a window,
at 0.102 in the worst case, 6 with its weights in blocks (0.088), and 4 so (0.063, of which the encoder made 0.001).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from onnxscript import ir

from mega_deploy.errors import MegaDeployError

# A processor without VNNI adds pairs of uint8 * int8 in int16 and saturates: 2 * 255 * 64 is the most that fits.
LARGEST = 64
ACTIVATION_STEPS, ACTIVATION_ZERO = 127, 128
# Of weights in blocks. Powers of two from 16 on are what onnxruntime fuses; 128 took a fifth less time than 32 in
# products of one row by 256 x 256 to 688 x 256.
BLOCK, BLOCK_LARGEST = 128, 127
# Takes the place of a row's size where that is 0.
SMALLEST = float(np.finfo(np.float32).tiny)


def quantise(model: ir.Model, stays_float32: Callable[[ir.Node], bool]) -> set[ir.Node]:
    """Replace, in place, each product of a variable with a constant matrix; returns the nodes that were replaced.

    Args:
        model: float32.
        stays_float32: whether to leave a node alone.
    """
    graph = model.graph
    rows: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    replaced = set()
    for node in list(graph):
        weight = node.inputs[1] if node.op_type in ("Gemm", "MatMul") else None
        if weight is None or not weight.is_initializer() or stays_float32(node):
            continue
        x = node.inputs[0]
        assert x is not None and x.producer() is not None, "a layer that reads an input stays float32"
        if x not in rows:
            rows[x] = _quantise_rows(graph, x)
        _replace(graph, node, *rows[x], weight)
        replaced.add(node)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
    return replaced


def quantise_weight(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """[in, out] -> the whole numbers from -64 to 64 that stand for it, and the scale of each column [out]."""
    scale = (np.abs(weight).max(axis=0) / LARGEST).astype(np.float32)
    scale[scale == 0] = 1
    return np.clip(np.rint(weight / scale), -LARGEST, LARGEST).astype(np.int8), scale


def quantise_in_blocks(model: ir.Model, stays_float32: Callable[[ir.Node], bool]) -> set[ir.Node]:
    """As `quantise`, but of the weights alone, with a scale for each column and every BLOCK of its numbers.

        x w + b   ->   x @ DequantizeLinear(q(w), scale) + b

    That is standard ONNX, of opset 21. onnxruntime makes one node of it, which on a CPU also takes x as 8-bit numbers,
    block by block, where the session sets ACCURACY_LEVEL: no row is rounded by the measure of another one.
    """
    graph = model.graph
    replaced = set()
    for node in list(graph):
        weight = node.inputs[1] if node.op_type in ("Gemm", "MatMul") else None
        if weight is None or not weight.is_initializer() or stays_float32(node):
            continue
        whole, scale = quantise_blocks(_matrix(node, weight))
        chain = _Chain(graph, node, f"{node.name}")
        numbers = [_constant(graph, f"{weight.name}.quantised", whole), _constant(graph, f"{weight.name}.scale", scale)]
        dequantised = chain.add("DequantizeLinear", numbers, "dequantised", axis=0, block_size=BLOCK)
        x = node.inputs[0]
        assert x is not None
        _finish(graph, node, chain, chain.add("MatMul", [x, dequantised], "product"))
        replaced.add(node)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
    return replaced


def store_in_half(model: ir.Model, stays_float32: Callable[[ir.Node], bool]) -> set[ir.Node]:
    """Store, in place, the constant matrices of products as float16, for float32 arithmetic; returns those products.

    A runtime casts them once, when it loads the model. Those that float16 cannot hold stay as they are.
    """
    graph, replaced = model.graph, set()
    cast: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        weight = node.inputs[1] if node.op_type in ("Gemm", "MatMul") else None
        if weight is None or not weight.is_initializer() or stays_float32(node):
            continue
        assert weight.const_value is not None
        array = weight.const_value.numpy()
        if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
            continue
        if weight not in cast:
            half = _constant(graph, f"{weight.name}.float16", array.astype(np.float16))
            raised = ir.node("Cast", [half], {"to": ir.DataType.FLOAT}, name=f"{weight.name}.float32")
            raised.outputs[0].name, raised.outputs[0].type = f"{weight.name}.float32", ir.TensorType(ir.DataType.FLOAT)
            graph.insert_before(node, raised)
            cast[weight] = raised.outputs[0]
        node.replace_input_with(1, cast[weight])
        replaced.add(node)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
    return replaced


def quantise_blocks(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """[in, out] -> whole numbers from -127 to 127 [in, out], and the scales [in / BLOCK, out], rounded up."""
    blocks = -(-len(weight) // BLOCK)
    padded = np.pad(weight, ((0, blocks * BLOCK - len(weight)), (0, 0))).reshape(blocks, BLOCK, -1)
    scale = (np.abs(padded).max(axis=1) / BLOCK_LARGEST).astype(np.float32)
    scale[scale == 0] = 1
    whole = np.clip(np.rint(padded / scale[:, None]), -BLOCK_LARGEST, BLOCK_LARGEST)
    return whole.reshape(blocks * BLOCK, -1)[: len(weight)].astype(np.int8), scale


class _Chain:
    """Nodes that are put one behind the other into a graph."""

    def __init__(self, graph: ir.Graph, behind: ir.Node, name: str) -> None:
        self.graph, self.last, self.name = graph, behind, name

    def add(
        self,
        kind: str,
        inputs: list[ir.Value],
        step: str,
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: int | ir.DataType,
    ) -> ir.Value:
        """The result of a new node, which is called by the chain and the step."""
        node = ir.node(kind, inputs, attributes, name=f"{self.name}.{step}")
        node.outputs[0].name, node.outputs[0].type = f"{self.name}.{step}", ir.TensorType(dtype)
        self.graph.insert_after(self.last, node)
        self.last = node
        return node.outputs[0]


def _quantise_rows(graph: ir.Graph, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The uint8 values of x [rows, features], and the size of each row [rows, 1]."""
    producer = x.producer()
    assert producer is not None
    chain = _Chain(graph, producer, f"{x.name}")
    size = chain.add(
        "ReduceMax",
        [chain.add("Abs", [x], "absolute"), _constant(graph, "last_axis", np.array([-1]))],
        "largest",
        keepdims=1,
    )
    size = chain.add("Max", [size, _constant(graph, "smallest", np.float32(SMALLEST))], "size")
    step = _constant(graph, "activation_step", np.float32(1 / ACTIVATION_STEPS))
    zero = _constant(graph, "activation_zero", np.uint8(ACTIVATION_ZERO))
    whole = chain.add(
        "QuantizeLinear", [chain.add("Div", [x, size], "normalised"), step, zero], "quantised", ir.DataType.UINT8
    )
    return whole, size


def _replace(graph: ir.Graph, node: ir.Node, x: ir.Value, size: ir.Value, weight: ir.Value) -> None:
    whole, scale = quantise_weight(_matrix(node, weight))
    chain = _Chain(graph, node, f"{node.name}")
    q_weight = _constant(graph, f"{weight.name}.quantised", whole)
    w_scale = _constant(graph, f"{weight.name}.scale", scale / np.float32(ACTIVATION_STEPS))
    zero = graph.initializers["activation_zero"]
    total = chain.add("MatMulInteger", [x, q_weight, zero], "integer", ir.DataType.INT32)
    number = chain.add("Cast", [total], "number", to=ir.DataType.FLOAT)
    result = chain.add("Mul", [chain.add("Mul", [number, w_scale], "column_scale"), size], "row_scale")
    _finish(graph, node, chain, result)


def _matrix(node: ir.Node, weight: ir.Value) -> npt.NDArray[np.float32]:
    """The constant factor of a product: [in, out]."""
    assert weight.const_value is not None
    matrix: npt.NDArray[np.float32] = weight.const_value.numpy()
    turned = node.attributes.get("transB")
    return matrix.T if turned is not None and turned.as_int() else matrix


def _finish(graph: ir.Graph, node: ir.Node, chain: _Chain, result: ir.Value) -> None:
    """Let a product, with the bias that `node` has, stand for what `node` gave."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        result = chain.add("Add", [result, node.inputs[2]], "biased")
    old = node.outputs[0]
    name, result.shape = old.name, old.shape
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    old.name, result.name = f"{name}.replaced", name


def _constant(graph: ir.Graph, name: str, array: npt.NDArray[np.generic] | np.generic) -> ir.Value:
    """A constant of the graph, made where it is not there yet.

    Raises:
        MegaDeployError: there is another one of that name (a defect of the exporter).
    """
    if name in graph.initializers:
        there = graph.initializers[name].const_value
        if there is None or not np.array_equal(there.numpy(), array):
            raise MegaDeployError(f"the graph has two constants called {name}: a weight is quantised in two ways")
    else:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]
