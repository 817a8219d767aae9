"""Which nodes of a float32 graph stay float32 in a lower precision, and what they are called.

The rules stand at the top of `lowering.py`; this is 2, 3 and 7 of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from onnxscript import ir

from mega_deploy.errors import OptionError
from mega_deploy.plugins.laplace import NAME as LAPLACE

SUMS = frozenset({"LogSoftmax", "Pow", "ReduceMean", "ReduceSum"})
IN_FLOAT32 = frozenset({"LayerNormalization", "Softmax", LAPLACE, "Add", "Where", "Cast"}) | SUMS
PRODUCTS = frozenset({"Gemm", "MatMul"})
MOVEMENT = frozenset(
    {
        "Concat",
        "Gather",
        "Identity",
        "Pad",
        "Reshape",
        "ScatterND",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
LAYER_CONSTANTS = ("weight", "gamma", "weight_and_bias")
MOVING_AVERAGE = "ema"


def has(model: ir.Model, name: str) -> bool:
    """Whether something in a model is called so, and may be kept in float32."""
    return any(_called(node, name) for node in model.graph)


def label(node: ir.Node) -> str:
    """What a node is called in lists of float32 nodes: its layer if it has weights, otherwise its scope and operator.

    "blocks.0.ffn.down", "final_norm", "blocks.0.attention.Softmax"; the nodes of a kind in a scope share a label.
    """
    for value in node.inputs:
        if value is not None and value.is_initializer():
            layer, _, constant = (value.name or "").rpartition(".")
            if layer and constant in LAYER_CONSTANTS:
                return layer
    return ".".join((*_scope(node), node.op_type))


def layers(model: ir.Model) -> tuple[str, ...]:
    """The numbered parts of a model, such as "blocks.0" or "decoder.layers.0": any of them may be kept in float32."""
    return tuple(part for part in _parts(labels(model.graph)) if part[-1].isdigit())


def _parts(names: Iterable[str]) -> tuple[str, ...]:
    """Without what stands behind a number."""
    return tuple(dict.fromkeys(re.sub(r"(\.\d+)\..*", r"\1", name) for name in names))


def _scope(node: ir.Node) -> list[str]:
    return (node.name or "").split("/")[:-1]


def labels(nodes: Iterable[ir.Node]) -> tuple[str, ...]:
    """What several nodes are called, each name once."""
    return tuple(dict.fromkeys(label(node) for node in nodes))


def is_float(value: ir.Value) -> bool:
    """Whether a value is of numbers that a precision applies to; sizes and indices are not."""
    assert value.dtype is not None, value.name
    return value.dtype.is_floating_point()


def has_numbers(node: ir.Node) -> bool:
    """Whether a precision applies to what a node reads, such as a comparison, or to what it gives."""
    return any(map(is_float, (*filter(None, node.inputs), *node.outputs)))


class Float32Nodes:
    """Which nodes of a graph stay float32: rules 2, 3 and 7.

    Raises:
        OptionError: nothing in the graph is called as something in `keep_float32`.
    """

    def __init__(self, graph: ir.Graph, keep_float32: Collection[str] = ()) -> None:
        self.nodes = [node for node in graph if node.op_type not in MOVEMENT and any(map(is_float, node.outputs))]
        """All that compute with floating-point numbers, in the graph's order."""
        self._keep_float32 = tuple(keep_float32)
        self._raw: set[ir.Value] = set(graph.inputs)
        for node in graph:
            if node.op_type in MOVEMENT and node.inputs[0] in self._raw:
                self._raw.update(node.outputs)
        for name in self._keep_float32:
            if not any(_called(node, name) for node in self.nodes):
                named = labels(self.nodes)
                raise OptionError(
                    f"the graph has nothing called {name!r} to keep in float32; it has {', '.join(_parts(named))}, "
                    f"and what is in them, such as {max(named, key=len)}"
                )

    def kept(self, node: ir.Node) -> bool:
        """Whether the caller keeps it."""
        return any(_called(node, name) for name in self._keep_float32)

    def holds(self, node: ir.Node) -> bool:
        """Whether a node stays float32, or may: what only moves numbers follows its inputs all the same."""
        if node.op_type in IN_FLOAT32 or self.kept(node):
            return True
        if node.op_type in PRODUCTS and any(value in self._raw for value in node.inputs):
            return True
        return MOVING_AVERAGE in _scope(node) and node.op_type != "Gemm"


def _called(node: ir.Node, name: str) -> bool:
    return f"{label(node)}.".startswith(f"{name}.") or ".".join((*_scope(node), "")).startswith(f"{name}.")
