"""A small dialect over onnxscript's graph builder: the pieces from which the graphs of all Mega forms are put together.

Values are flat, [rows, features] with rows = batch * seq_len, so that every linear layer is one Gemm with its bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxscript
from onnxscript import ir

from mega_deploy.arrays import Array, Float64Array
from mega_deploy.config.norm import FLOAT32_NORM_EPSILON
from mega_deploy.errors import InputError
from mega_deploy.exporters.linear import Linear

Length = int | ir.Value
"""Frames of a window: a number, or where it is dynamic the vector [batch, seq_len]."""
END = int(np.iinfo(np.int64).max)
"""The end of a slice that goes to the end of its axis."""
OPSET = 20
IR_VERSION = 10  # the first that knows overloads of functions


class Graph:
    """An ONNX graph under construction.

    Args:
        name: of the graph.
        dtype: of every floating-point value in it.
        opset: of its operators.
    """

    def __init__(self, name: str, dtype: ir.DataType = ir.DataType.FLOAT, opset: int = OPSET) -> None:
        self.dtype, self.opset = dtype, opset
        self._graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": opset})
        self._builder = onnxscript.GraphBuilder(self._graph)
        self.op = self._builder.op
        self._mask: ir.Value | None = None

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names of nodes, values and constants made inside begin with `name`."""
        self._builder.push_module(name)
        try:
            yield
        finally:
            self._builder.pop_module()

    def input(self, name: str, shape: Sequence[int | str], dtype: ir.DataType | None = None) -> ir.Value:
        """An input of the graph, of the graph's dtype unless another is given."""
        return self._builder.input(name, dtype=dtype or self.dtype, shape=list(shape))

    def output(self, value: ir.Value, name: str, shape: Sequence[int | str], dtype: ir.DataType | None = None) -> None:
        """Makes `value` an output of the graph, of the graph's dtype unless another one is given."""
        value.dtype, value.shape = dtype or self.dtype, ir.Shape(shape)
        self._builder.add_output(value, name)

    def constant(self, name: str, array: Float64Array) -> ir.Value:
        """A constant, cast to the graph's dtype: the one place where float64 ends."""
        return self._builder.initializer(ir.tensor(self._cast(name, array), self.dtype), name)

    def _cast(self, name: str, array: Array) -> Array:
        with np.errstate(over="ignore"):
            cast = np.asarray(array, self.dtype.numpy(), order="C")
        if (np.isinf(cast) & np.isfinite(array)).any():
            raise InputError(f"{name} of the folded model exceeds {self.dtype.name}: its weights are too large")
        return cast

    def integers(self, name: str, array: npt.NDArray[np.int64]) -> ir.Value:
        """A constant of whole numbers."""
        return self._builder.initializer(ir.tensor(array.astype(np.int64)), name)

    def linear(self, x: ir.Value, layer: Linear, name: str) -> ir.Value:
        """x @ weight + bias: [rows, in] -> [rows, out]."""
        weight, bias = self.constant(f"{name}.weight", layer.weight), self.constant(f"{name}.bias", layer.bias)
        return self.op.Gemm(x, weight, bias)

    def silu(self, x: ir.Value) -> ir.Value:
        """x sigmoid(x), element by element."""
        return self.op.Mul(x, self.op.Sigmoid(x))

    def split(self, x: ir.Value, parts: int) -> Sequence[ir.Value]:
        """Equal parts of the features: [rows, parts * F] -> parts of [rows, F]."""
        return self.op.Split(x, axis=-1, num_outputs=parts, _outputs=parts)

    def normalise(
        self, x: ir.Value, features: int, gamma: ir.Value | None = None, beta: ir.Value | None = None
    ) -> ir.Value:
        """Layer normalisation; gamma 1 and beta 0 where those went into the layer behind it.

        beta stands there even so: onnxruntime 1.32's SkipLayerNormFusion crashes where it is left out.
        """
        gamma = gamma or self.shared(f"ones.{features}", lambda: np.ones(features))
        beta = beta or self.shared(f"zeros.{features}", lambda: np.zeros(features))
        return self.op.LayerNormalization(x, gamma, beta, axis=-1, epsilon=FLOAT32_NORM_EPSILON)

    def causal_mask(self, length: Length) -> ir.Value:
        """What is added to scores [batch, seq_len, seq_len]: -infinity for the future, 0 for the rest."""
        if isinstance(length, int):
            mask = np.triu(np.full((length, length), -np.inf, np.float32), 1)
            return self.shared(f"causal_mask.{length}", lambda: mask)
        if self._mask is None:
            op = self.op
            position = op.Range(0, op.Squeeze(self.frames(length), [0]), 1)
            is_future = op.Less(op.Unsqueeze(position, [1]), op.Unsqueeze(position, [0]))  # [query, key]
            future = self.shared("mask.future", lambda: np.array(-np.inf))
            seen = self.shared("mask.seen", lambda: np.array(0.0))
            self._mask = op.Where(is_future, future, seen)
        return self._mask

    def shared(self, name: str, make: Callable[[], Array]) -> ir.Value:
        """A constant that stands once for all that ask for it by a name that no scope changes."""
        if name not in self._graph.initializers:
            self._builder.initializer(ir.tensor(self._cast(name, make()), self.dtype), name, qualify=False)
        return self._graph.initializers[name]

    def windows(self, x: ir.Value, length: Length, features: int) -> ir.Value:
        """[batch * seq_len, features] -> [batch, seq_len, features]."""
        shape = (
            [-1, length, features] if isinstance(length, int) else self.op.Concat(length, self.sizes(features), axis=0)
        )
        return self.op.Reshape(x, shape)

    def sizes(self, *values: int) -> ir.Value:
        """A vector of sizes; where all inputs of an operator are of one type, the builder casts plain lists."""
        return self.op.Constant(value_ints=list(values))

    def frames(self, length: Length) -> Any:
        """seq_len as a vector of one element."""
        return [length] if isinstance(length, int) else self.op.Slice(length, [1], [2])

    def rows(self, x: ir.Value, features: int) -> ir.Value:
        """[batch, seq_len, features] -> [batch * seq_len, features]."""
        return self.op.Reshape(x, [-1, features])

    def model(self) -> ir.Model:
        """The finished model, with the functions that its nodes call."""
        functions = list(self._builder.functions.values())
        for function in functions:
            self._graph.opset_imports[function.domain] = 1
        for node in (*self._graph, *(node for function in functions for node in function)):
            node.metadata_props.clear()  # the builder's own notes on Python classes
        return ir.Model(self._graph, ir_version=IR_VERSION, functions=functions, producer_name="mega-deploy")
