"""The nodes of folded layers over the next steps of streams: x [rows, D] -> the same, where a row is a step.

All that looks at other steps goes through `Past`, which carries what is needed of them: one step in
exporters.paper.step, many at once in exporters.paper.prefill. The rest is as in a whole sequence.
"""

from __future__ import annotations

from typing import Protocol

from onnxscript import ir

from mega_deploy.arrays import Float64Array
from mega_deploy.exporters.ema.kernel import DecaySum
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.paper.fold import FoldedAttention, FoldedLayer, FoldedStack
from mega_deploy.exporters.paper.ops import (
    activation,
    affine,
    cross_attention,
    feed_forward,
    normalise,
    update,
)
from mega_deploy.exporters.paper.source import Source


class Past(Protocol):
    """What the steps of a call see of the steps before them, and of each other; `name` is the layer's."""

    def average(self, n: ir.Value, ema: DecaySum, name: str) -> ir.Value:
        """The moving average at each step: [rows, D] -> [rows, D]."""

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value, distances: Float64Array, name: str) -> ir.Value:
        """The weighted values of each query, q [rows, Z], k [rows, Z], v [rows, V] -> [rows, V].

        `distances` is the bias by key - query, from 1 - window to window - 1.
        """


class LayerWriter:
    """Writes a folded stack.

    Args:
        graph: where the nodes go.
        folded: the stack.
        name: of the module in the trained form.
        past: what is carried.
        source: what cross attention reads, where the layers have it.
    """

    def __init__(self, graph: Graph, folded: FoldedStack, name: str, past: Past, source: Source | None = None) -> None:
        self.graph, self.op, self.config = graph, graph.op, folded.config
        self.folded, self.name, self.past, self.source = folded, name, past, source

    def write(self, x: ir.Value) -> ir.Value:
        """All layers and the final norm."""
        for index, layer in enumerate(self.folded.layers):
            name = f"{self.name}.layers.{index}"
            with self.graph.scope(name):
                x = self._layer(x, layer, name)
            x.name = f"{name}.output"
        with self.graph.scope(self.name):
            return normalise(self.graph, x, self.folded.final_norm, "final_norm")

    def _layer(self, x: ir.Value, layer: FoldedLayer, name: str) -> ir.Value:
        graph = self.graph
        with graph.scope("attention"):
            x = self._attention(x, layer.attention, name)
        if layer.cross is not None:
            distances = layer.cross.distances
            with graph.scope("cross_attention"):
                x = cross_attention(
                    graph, x, layer.cross, self.config, lambda query: self._read(query, distances, name)
                )
        if layer.ffn is not None:
            with graph.scope("ffn"):
                x = feed_forward(graph, x, layer.ffn, act=self.config.activation)
        return x

    def _read(self, query: ir.Value, distances: Float64Array, name: str) -> ir.Value:
        assert self.source is not None
        return self.source.attend(query, distances, name)

    def _attention(self, x: ir.Value, layer: FoldedAttention, name: str) -> ir.Value:
        graph, op, config = self.graph, self.op, self.config
        n = normalise(graph, x, layer.norm)
        with graph.scope("ema"):
            average = self.past.average(n, layer.ema.past, name)
            m = graph.silu(op.Add(average, op.Mul(n, graph.constant("omega", layer.omega))))
        # One layer, where a sequence has four: of a single row what is split is not copied, and a step has fewer nodes.
        sizes = [config.embed_dim, config.z_dim, config.hidden_dim, config.embed_dim]
        u, z, r, candidate = op.Split(graph.linear(m, layer.joint, "joint"), sizes, axis=-1, _outputs=4)
        z = graph.silu(z)
        query = affine(graph, z, layer.query, "query")
        key = z if layer.key is None else affine(graph, z, layer.key, "key")
        value = activation(graph, graph.linear(n, layer.value, "value"), config.activation)
        context = self.past.attend(query, key, value, layer.distances, name)
        hidden = op.Add(candidate, graph.linear(op.Mul(graph.silu(r), context), layer.hidden, "hidden"))
        return update(graph, x, u, hidden, layer.post_norm, act=config.activation)
