"""A float32 graph -> the same graph in a lower precision, with nodes left in float32 where rounding would hurt.

The precision stands in the graph itself, as casts and constants, so that every engine computes what parity was measured
for. The rules, by operator (IN_FLOAT32, PRODUCTS and MOVEMENT in float32_nodes.py name them):

1. Matrix products take and give the lower precision; int8 (quantise.py) lowers those with a constant factor.
2. What stays float32: norms, softmax with the mask before it, Laplace attention as a whole, sums over many numbers,
   the residual stream (every Add is of a mask or of the stream, every Where makes a mask), what was no number before
   (Cast), and the moving average but for the linear layers around it, so that its sums accumulate in float32.
3. The layer that reads an input of the model stays float32 too: nobody bounds the size of what comes in, whereas all
   layers behind a normalisation read rows of norm sqrt(features). So are the products with a stream's state, which
   stays float32: they hold no weights.
4. The results of a normalisation, a softmax and a Laplace attention are rounded once, as they are made, where a product
   reads them; the residual stream and the moving average are never rounded.
5. What moves numbers or works on them one by one takes the precision of its inputs, float32 where they differ.
6. Inputs and outputs of the model stay float32, unless float16 ones are asked for.
7. So does whatever the caller keeps.

`lint` tells which constants a precision cannot hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from onnx_ir.passes.common import ShapeInferencePass
from onnxscript import ir

from mega_deploy.config.common import Precision
from mega_deploy.errors import InputError, OptionError
from mega_deploy.exporters.precision.float32_nodes import (
    MOVEMENT,
    PRODUCTS,
    Float32Nodes,
    has_numbers,
    is_float,
    label,
    labels,
)
from mega_deploy.parity import UNIT_ROUNDOFF
from mega_deploy.plugins.laplace import NAME as LAPLACE

ROUNDED_AT_ONCE = frozenset({"LayerNormalization", "Softmax", LAPLACE})
DTYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
FLOAT32 = ir.DataType.FLOAT
Part = Literal["window", "steps", "source"]
"""Whole sequences, or a part of a stream: its steps, or what takes its source."""
LARGEST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: (2 - 2.0**-7) * 2.0**127}
SMALLEST_NORMAL = {ir.DataType.FLOAT16: 2.0**-14, ir.DataType.BFLOAT16: 2.0**-126}


@dataclass(frozen=True)
class Lowered:
    """A graph in a lower precision, and what its bundle says of it."""

    model: ir.Model
    float32_nodes: tuple[str, ...] = ()
    """Nodes that compute in float32, by `label`, in the graph's order."""
    advice: tuple[str, ...] = ()
    """What `lint` found, of which parity must show whether it does harm."""


def lower(
    model: ir.Model,
    precision: Precision,
    *,
    keep_float32: Sequence[str] = (),
    half_io: bool = False,
    part: Part = "window",
) -> Lowered:
    """The model in a lower precision; `model` itself stays as it is.

    Args:
        model: float32 throughout.
        precision: of the result.
        keep_float32: what else stays float32: nodes by their `label`, or all of a scope ("blocks.1", "blocks.1.ffn").
        half_io: whether inputs and outputs are float16 as well; for that precision only.
        part: what the graph is of; int8 is for the weights alone in a stream's steps and source (quantise.py).

    Raises:
        OptionError: nothing in the model is called so, or the options contradict the precision.
        InputError: a constant exceeds the precision; the message names its node.
    """
    if half_io and precision != "float16":
        raise OptionError(f"float16 inputs and outputs are for precision float16, not {precision}")
    if keep_float32 and precision == "float32":
        raise OptionError(f"nothing needs to be kept in float32 ({keep_float32[0]}): that is the precision of all")
    model = model.clone()
    if precision == "float32":
        return Lowered(model)
    ShapeInferencePass()(model)  # in place: sizes and indices are told from numbers by their types
    float32_nodes = Float32Nodes(model.graph, keep_float32)
    if precision == "int8":
        from mega_deploy.exporters.precision.quantise import quantise, quantise_in_blocks, store_in_half

        quantised = {"window": quantise, "steps": quantise_in_blocks, "source": store_in_half}[part]
        lowered = quantised(model, float32_nodes.holds)
        return Lowered(model, labels(node for node in float32_nodes.nodes if node not in lowered))
    writer = _Casts(model.graph, DTYPES[precision], float32_nodes)
    advice = writer.run(half_io)
    return Lowered(model, labels(writer.in_float32), advice)


def lint(name: str, array: npt.NDArray[np.float32], dtype: ir.DataType, node: str) -> tuple[list[str], list[str]]:
    """What a precision cannot hold of a constant: faults that make it unusable, and losses that parity may bear.

    A fault is a finite value beyond the largest finite number; infinity itself, as in a mask, is none. A loss is when
    what lies below the smallest normal number, rounded more coarsely than the rest, is off by more than half a last
    place of the constant as a whole (L2 norm).

    Args:
        name: of the constant.
        array: its values.
        dtype: what they are stored in.
        node: the node that reads it, by `label`.
    """
    called, smallest = dtype.name.lower(), SMALLEST_NORMAL[dtype]
    size = np.abs(array[np.isfinite(array)].astype(np.float64))
    remedy = f"keep it in float32 (--float32 {node})"
    if (largest := size.max(initial=0.0)) > LARGEST[dtype]:
        what = f"{name} of node {node} reaches {largest:.3g}, beyond {called}'s {LARGEST[dtype]:.6g}"
        return [f"{what}; {remedy}, or take another precision"], []
    small = array[np.abs(array) < smallest].astype(np.float64)
    lost = float(np.linalg.norm(small.astype(dtype.numpy()).astype(np.float64) - small))
    share = lost / (float(np.linalg.norm(size)) or 1.0)
    if share > UNIT_ROUNDOFF[called]:
        what = f"{name} of node {node} loses {share:.1%} of itself below {called}'s smallest normal number"
        return [], [f"{what}, {smallest:.2g}; {remedy}"]
    return [], []


class _Casts:
    """Gives each node its precision, and puts casts where values of another one come in."""

    def __init__(self, graph: ir.Graph, dtype: ir.DataType, float32_nodes: Float32Nodes) -> None:
        self.graph, self.dtype, self.float32_nodes = graph, dtype, float32_nodes
        self.in_float32: list[ir.Node] = []
        self._rounded: dict[ir.Value, ir.Value] = {}
        """What consumers read instead of a value that is rounded as it is made."""
        self._cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._overflows: list[str] = []
        self._advice: list[str] = []

    def run(self, half_io: bool) -> tuple[str, ...]:
        """Lower the graph in place; returns the advice of `lint`."""
        if half_io:
            for given in self.graph.inputs:
                given.type = ir.TensorType(self.dtype)
        for node in [node for node in self.graph if has_numbers(node)]:
            dtype, name = self._dtype(node), label(node)
            for index, value in enumerate(node.inputs):
                if value is not None and is_float(value):
                    node.replace_input_with(index, self._as(value, dtype, name))
            for output in filter(is_float, node.outputs):
                output.type = ir.TensorType(dtype)  # a type may be shared with the model that this is a clone of
            if dtype == FLOAT32 and node.op_type not in MOVEMENT and any(map(is_float, node.outputs)):
                self.in_float32.append(node)
            if node.op_type in ROUNDED_AT_ONCE and not self.float32_nodes.kept(node) and self._feeds_products(node):
                self._rounded[node.outputs[0]] = self._convert(node.outputs[0], self.dtype)
        if self._overflows:
            raise InputError("; ".join(self._overflows))
        for index, output in enumerate(self.graph.outputs):
            if not is_float(output):
                continue
            self._give(index, output, self.dtype if half_io else FLOAT32)
        self._drop_what_nobody_reads()
        return tuple(self._advice)

    def _dtype(self, node: ir.Node) -> ir.DataType:
        if node.op_type not in MOVEMENT and self.float32_nodes.holds(node):
            return FLOAT32
        if node.op_type in PRODUCTS:
            return self.dtype
        variable = [value for value in node.inputs if value is not None and not value.is_initializer()]
        return FLOAT32 if any(self._rounded.get(value, value).dtype == FLOAT32 for value in variable) else self.dtype

    def _feeds_products(self, node: ir.Node) -> bool:
        """Whether what a node gives goes, perhaps moved, into something that computes in the lower precision."""
        return any(
            self._feeds_products(user) if user.op_type in MOVEMENT else not self.float32_nodes.holds(user)
            for output in node.outputs
            for user, _ in output.uses()
        )

    def _as(self, value: ir.Value, dtype: ir.DataType, node: str) -> ir.Value:
        value = self._rounded.get(value, value)
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self._cast:
            if value.is_initializer():
                self._cast[value, dtype] = self._constant(value, node)
            else:
                self._cast[value, dtype] = self._convert(value, dtype)
        return self._cast[value, dtype]

    def _convert(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """A cast right behind the value's producer, at the graph's start for an input."""
        name = f"{value.name}.{dtype.name.lower()}"
        cast = ir.node("Cast", [value], {"to": dtype}, name=name)
        cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = name, dtype, value.shape
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], cast)
        else:
            self.graph.insert_after(producer, cast)
        return cast.outputs[0]

    def _constant(self, value: ir.Value, node: str) -> ir.Value:
        """A constant in the lower precision; what others still read in float32 stays beside it."""
        assert value.const_value is not None
        array = value.const_value.numpy()
        overflow, advice = lint(value.name or "", array, self.dtype, node)
        self._overflows += overflow
        self._advice += advice
        with np.errstate(over="ignore"):
            tensor = ir.tensor(array.astype(self.dtype.numpy()), self.dtype)
        lowered = ir.Value(name=f"{value.name}.{self.dtype.name.lower()}", type=ir.TensorType(self.dtype))
        lowered.shape, lowered.const_value = value.shape, tensor
        self.graph.register_initializer(lowered)
        return lowered

    def _give(self, index: int, output: ir.Value, dtype: ir.DataType) -> None:
        """Makes an output of the graph one of this dtype, under the name that it has."""
        if output.dtype == dtype:
            return
        name, output.name = output.name, f"{output.name}.{output.dtype.name.lower() if output.dtype else ''}"
        converted = self._convert(output, dtype)
        converted.name = name
        self.graph.outputs[index] = converted

    def _drop_what_nobody_reads(self) -> None:
        """Constants that are lowered everywhere go, and their names to those that stand for them."""
        for (value, _), lowered in self._cast.items():
            if value.is_initializer() and not value.uses():
                name = value.name
                assert name is not None and lowered.name is not None
                del self.graph.initializers[name], self.graph.initializers[lowered.name]
                lowered.name = name
                self.graph.register_initializer(lowered)
