"""Streams as the context of the paper's layers: the steps of a call, and what is carried from the calls before.

Shapes: D embed_dim, Z z_dim, V hidden_dim; a row is a step of a stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from onnxscript import ir

from mega_deploy.arrays import Float64Array
from mega_deploy.config.paper import MegaConfig
from mega_deploy.exporters.ema.kernel import DecaySum
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.paper.fold import FoldedAttention, FoldedCross
from mega_deploy.exporters.paper.layer import Gate
from mega_deploy.exporters.paper.stream.source import Source


class Past(Protocol):
    """What the steps of a call see of the steps before them, and of each other; `name` is the layer's."""

    def average(self, n: ir.Value, ema: DecaySum, name: str) -> ir.Value:
        """The moving average at each step: [rows, D] -> [rows, D]."""

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value, distances: Float64Array, name: str) -> ir.Value:
        """The weighted values of each query, q [rows, Z], k [rows, Z], v [rows, V] -> [rows, V].

        `distances` is the bias by key - query, from 1 - window to window - 1.
        """


@dataclass(frozen=True)
class StreamContext:
    """The steps of a call of streams, over what they carry and the source that cross attention reads."""

    graph: Graph
    config: MegaConfig
    """The stack's."""
    past: Past
    source: Source | None
    """None for layers without cross attention."""

    def layer(self, index: int, name: str) -> StreamLayer:
        """The context of one layer."""
        del index
        return StreamLayer(self, name)


@dataclass(frozen=True)
class StreamLayer:
    """The steps of a call of streams in one layer."""

    context: StreamContext
    name: str

    def average(self, n: ir.Value, layer: FoldedAttention) -> ir.Value:
        """EMA(n) + omega n, where padding enters no other step."""
        graph, op = self.context.graph, self.context.graph.op
        average = self.context.past.average(n, layer.ema.past, self.name)
        return op.Add(average, op.Mul(n, graph.constant("omega", layer.omega)))

    def project(self, x: ir.Value, n: ir.Value, m: ir.Value, layer: FoldedAttention) -> StreamProjection:
        """One linear layer of m: of few rows what is split is hardly copied, and a step has fewer nodes."""
        graph, config = self.context.graph, self.context.config
        sizes = [config.embed_dim, config.z_dim, config.hidden_dim, config.embed_dim]
        joint = graph.linear(m, layer.joint, "joint")
        u, z, r, candidate = graph.op.Split(joint, sizes, axis=-1, _outputs=4)
        return StreamProjection(
            x, n, graph.silu(z), {"update": u, "reset": r, "candidate": candidate}, self, layer.distances
        )

    def read(self, q: ir.Value, layer: FoldedCross) -> ir.Value:
        """The weighted values of the source: [rows, Z] -> [rows, D]."""
        assert self.context.source is not None
        return self.context.source.attend(q, layer.distances, self.name)


@dataclass(frozen=True)
class StreamProjection:
    """What attention of the steps of streams is made of; see exporters.paper.layer.Projection."""

    x: ir.Value
    n: ir.Value
    z: ir.Value
    gates: dict[Gate, ir.Value]
    layer: StreamLayer
    distances: Float64Array

    @property
    def z_of_queries(self) -> ir.Value:
        """The shared representation of all rows: every step asks."""
        return self.z

    def gate(self, name: Gate) -> ir.Value:
        """A gate, or the candidate state, before its activation: [rows, D], and "reset" [rows, V]."""
        return self.gates[name]

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """The weighted values of what the streams carry and of the call's own steps: [rows, V]."""
        return self.layer.context.past.attend(q, k, v, self.distances, self.layer.name)
