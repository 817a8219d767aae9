"""What a layer makes of each step by itself: norms, activations, the gated residual, what cross attention reads."""

from __future__ import annotations

import numpy as np
from onnxscript import ir

from mega_deploy.config.norm import NORM_EPSILON
from mega_deploy.config.paper import Activation, MegaConfig
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.linear import Linear
from mega_deploy.exporters.paper.fold import FoldedCross, Norm


def activation(graph: Graph, x: ir.Value, name: Activation) -> ir.Value:
    """The activation by its name in MegaConfig."""
    op = graph.op
    match name:
        case "silu":
            return graph.silu(x)
        case "relu":
            return op.Relu(x)
        case "gelu":
            return op.Gelu(x)
        case "gelu_accurate":
            return op.Gelu(x, approximate="tanh")
        case "tanh":
            return op.Tanh(x)
        case "linear":
            return x


def normalise(graph: Graph, x: ir.Value, norm: Norm | None, name: str = "norm") -> ir.Value:
    """The norm of x [rows, D]; x itself for none."""
    if norm is None:
        return x
    op = graph.op
    weight = graph.constant(f"{name}.gamma", norm.weight)
    if norm.kind == "layer":
        return graph.normalise(x, len(norm.weight), weight, graph.constant(f"{name}.beta", norm.bias))
    if norm.kind == "rms":  # in the order of nodes that onnxruntime knows, and makes one of
        two = graph.shared("two", lambda: np.array(2.0))
        epsilon = graph.shared("epsilon", lambda: np.array(NORM_EPSILON))
        size = op.Sqrt(op.Add(op.ReduceMean(op.Pow(x, two), [-1], keepdims=1), epsilon))
        return op.Mul(op.Div(x, size), weight)
    scaled = op.Mul(x, weight)
    return op.Add(scaled, graph.constant(f"{name}.beta", norm.bias)) if norm.bias.any() else scaled


def affine(graph: Graph, z: ir.Value, layer: Linear, name: str) -> ir.Value:
    """z * weight + bias, element by element: [rows, Z] -> [rows, Z]."""
    weight, bias = graph.constant(f"{name}.weight", layer.weight), graph.constant(f"{name}.bias", layer.bias)
    return graph.op.Add(graph.op.Mul(z, weight), bias)


def update(
    graph: Graph, x: ir.Value, u: ir.Value, hidden: ir.Value, post_norm: Norm | None, *, act: Activation
) -> ir.Value:
    """x + sigmoid(u) (act(hidden) - x), and a norm of that or not: all [rows, D]."""
    op = graph.op
    change = op.Sub(activation(graph, hidden, act), x)
    return normalise(graph, op.Add(x, op.Mul(op.Sigmoid(u), change)), post_norm, "post_norm")


def memory_keys_and_values(
    graph: Graph, x: ir.Value, layer: FoldedCross, config: MegaConfig
) -> tuple[ir.Value, ir.Value]:
    """Keys and values of what cross attention reads: x [rows, D] -> [rows, Z], [rows, D]."""
    key, value = layer.memory.parts(config.z_dim, config.embed_dim)
    return graph.linear(x, key, "key"), activation(graph, graph.linear(x, value, "value"), config.activation)
