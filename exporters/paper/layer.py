"""The nodes of folded layers: x [rows, D] -> the same, whatever else a step sees.

A layer is the same in a whole sequence, in one step of a stream and in many. Where steps look at other steps it asks
its context: the whole sequence (exporters.paper.sequence), or what streams carry (exporters.paper.stream.context) up to
one step (stream.step) or many (stream.prefill).

Shapes: D embed_dim, Z z_dim, V hidden_dim; a row is a step of a sequence or stream.
"""

from __future__ import annotations

from typing import Literal, Protocol

from onnxscript import ir

from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.paper.fold import FoldedAttention, FoldedCross, FoldedFFN, FoldedLayer, FoldedStack
from mega_deploy.exporters.paper.ops import activation, affine, normalise, update

Gate = Literal["update", "reset", "candidate"]


class Projection(Protocol):
    """What a layer's attention is made of: the linear layers behind the moving average, at the rows that need them.

    Rows that ask are fewer than those that are seen where only the first step of each sequence is wanted.
    """

    @property
    def x(self) -> ir.Value:
        """The residual stream: [asking rows, D]."""

    @property
    def n(self) -> ir.Value:
        """The layer's normalised input, of which values are made: [seen rows, D]."""

    @property
    def z(self) -> ir.Value:
        """The shared representation, of which keys are made: [seen rows, Z]."""

    @property
    def z_of_queries(self) -> ir.Value:
        """The shared representation, of which queries are made: [asking rows, Z]."""

    def gate(self, name: Gate) -> ir.Value:
        """A gate, or the candidate state, before its activation: [asking rows, D], and "reset" [asking rows, V]."""

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """The weighted values: q [asking rows, Z], k [seen rows, Z], v [seen rows, V] -> [asking rows, V]."""


class LayerContext(Protocol):
    """What the steps of one layer see of each other, and of the steps before them."""

    def average(self, n: ir.Value, layer: FoldedAttention) -> ir.Value:
        """The moving average with its residual, EMA(n) + omega n: [rows, D] -> [rows, D]."""

    def project(self, x: ir.Value, n: ir.Value, m: ir.Value, layer: FoldedAttention) -> Projection:
        """What attention is made of: residual stream, normalised input and activated moving average, all [rows, D]."""

    def read(self, q: ir.Value, layer: FoldedCross) -> ir.Value:
        """Cross attention's weighted values of queries: [rows, Z] -> [rows, D]."""


class Context(Protocol):
    """What the steps of a call see of each other, and of the steps before them."""

    def layer(self, index: int, name: str) -> LayerContext:
        """The context of one layer, which is called `name` in the trained form."""


class LayerWriter:
    """Writes a folded stack.

    Args:
        graph: where the nodes go.
        folded: the stack.
        name: of the module in the trained form.
    """

    def __init__(self, graph: Graph, folded: FoldedStack, name: str) -> None:
        self.graph, self.op, self.config = graph, graph.op, folded.config
        self.folded, self.name = folded, name
        self.block_outputs: list[str] = []
        """Names of the values that hold the residual stream behind each layer."""

    def write(self, x: ir.Value, context: Context) -> ir.Value:
        """All layers and the final norm: [rows, D] -> [rows, D], or of the first steps alone, where `context` says so.

        Args:
            x: the first layer's input.
            context: what the steps see.
        """
        for index, layer in enumerate(self.folded.layers):
            name = f"{self.name}.layers.{index}"
            with self.graph.scope(name):
                x = self._layer(x, layer, context.layer(index, name))
            x.name = f"{name}.output"
            self.block_outputs.append(x.name)
        with self.graph.scope(self.name):
            return normalise(self.graph, x, self.folded.final_norm, "final_norm")

    def _layer(self, x: ir.Value, layer: FoldedLayer, context: LayerContext) -> ir.Value:
        with self.graph.scope("attention"):
            x = self._attention(x, layer.attention, context)
        if layer.cross is not None:
            with self.graph.scope("cross_attention"):
                x = self._cross(x, layer.cross, context)
        if layer.ffn is not None:
            with self.graph.scope("ffn"):
                x = self._feed_forward(x, layer.ffn)
        return x

    def _attention(self, x: ir.Value, layer: FoldedAttention, context: LayerContext) -> ir.Value:
        """Gated attention over the sequence itself, with the moving average inside."""
        graph, op, act = self.graph, self.op, self.config.activation
        n = normalise(graph, x, layer.norm)
        with graph.scope("ema"):
            m = graph.silu(context.average(n, layer))
        made = context.project(x, n, m, layer)
        query = affine(graph, made.z_of_queries, layer.query, "query")
        key = made.z if layer.key is None else affine(graph, made.z, layer.key, "key")
        value = activation(graph, graph.linear(made.n, layer.value, "value"), act)
        values = made.attend(query, key, value)
        gated = op.Mul(graph.silu(made.gate("reset")), values)
        hidden = op.Add(made.gate("candidate"), graph.linear(gated, layer.hidden, "hidden"))
        return update(graph, made.x, made.gate("update"), hidden, layer.post_norm, act=act)

    def _cross(self, x: ir.Value, layer: FoldedCross, context: LayerContext) -> ir.Value:
        """Gated attention over another sequence."""
        graph, op, config = self.graph, self.op, self.config
        gate, reset, query = layer.joint.parts(config.embed_dim, config.embed_dim, config.z_dim)
        n = normalise(graph, x, layer.norm)
        values = context.read(graph.linear(n, query, "query"), layer)
        gated = op.Mul(graph.silu(graph.linear(n, reset, "reset")), values)
        hidden = graph.linear(gated, layer.hidden, "hidden")
        return update(graph, x, graph.linear(n, gate, "update"), hidden, layer.post_norm, act=config.activation)

    def _feed_forward(self, x: ir.Value, layer: FoldedFFN) -> ir.Value:
        """The feed-forward network with its residual."""
        graph, act = self.graph, self.config.activation
        inner = graph.linear(normalise(graph, x, layer.norm), layer.first, "first")
        outer = graph.linear(activation(graph, inner, act), layer.second, "second")
        return normalise(graph, graph.op.Add(x, outer), layer.post_norm, "post_norm")
