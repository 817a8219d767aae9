"""Whole sequences as the context of the paper's layers: every step is there at once, chunk by chunk.

Shapes: D embed_dim, Z z_dim, V hidden_dim; rows are the steps of all sequences, one after the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnxscript import ir

from mega_deploy.arrays import Float64Array
from mega_deploy.config.paper import MegaConfig
from mega_deploy.exporters.ema.kernel import Kernel
from mega_deploy.exporters.ema.lowering import Lowered
from mega_deploy.exporters.ema.nodes import moving_average
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.linear import Linear
from mega_deploy.exporters.paper.chunks import Bias, ChunkedAttention
from mega_deploy.exporters.paper.fold import FoldedAttention, FoldedCross
from mega_deploy.exporters.paper.layer import Gate
from mega_deploy.exporters.paper.ops import memory_keys_and_values
from mega_deploy.exporters.paper.sequence_layout import SequenceLayout


@dataclass(frozen=True)
class Memory:
    """The sequence that cross attention reads."""

    x: ir.Value
    """[rows * steps, D]."""
    layout: SequenceLayout


@dataclass(frozen=True, kw_only=True)
class WholeSequence:
    """The steps of whole sequences."""

    config: MegaConfig
    """The stack's."""
    lowered: Sequence[Lowered]
    """The moving average of each layer."""
    layout: SequenceLayout
    memory: Memory | None = None
    """None for layers without cross attention."""
    first_only: bool = False
    """Whether of the last layer, and behind it, only the first step is computed."""

    def layer(self, index: int, name: str) -> SequenceLayer:
        """The context of one layer."""
        del name
        last = index == len(self.lowered) - 1
        return SequenceLayer(self, self.lowered[index], first_only=self.first_only and last)


@dataclass(frozen=True)
class SequenceLayer:
    """The steps of whole sequences in one layer."""

    sequence: WholeSequence
    lowered: Lowered
    first_only: bool

    @property
    def graph(self) -> Graph:
        """Where the nodes go."""
        return self.sequence.layout.graph

    def average(self, n: ir.Value, layer: FoldedAttention) -> ir.Value:
        """EMA(n) + omega n, where padding enters no other step: the residual is a tap of the kernel without padding."""
        graph, op, layout = self.graph, self.graph.op, self.sequence.layout
        if layout.attention_mask is None:
            return moving_average(graph, n, with_residual(self.lowered, layer.omega), layout.length, layout.longest)
        average = moving_average(graph, layout.masked(n), self.lowered, layout.length, layout.longest)
        return op.Add(average, op.Mul(n, graph.constant("omega", layer.omega)))

    def project(self, x: ir.Value, n: ir.Value, m: ir.Value, layer: FoldedAttention) -> SequenceProjection:
        """The linear layers of m apart: the results of one joint layer would have to be copied apart again.

        Where only the first steps are wanted, keys and values are of the first chunk, all else of the first step.
        """
        graph, config, layout = self.graph, self.sequence.config, self.sequence.layout
        dim, z_dim = config.embed_dim, config.z_dim
        gate, shared, reset, candidate = layer.joint.parts(dim, z_dim, config.hidden_dim, dim)
        seen, asking = layout, m
        if self.first_only:
            seen = layout.first_chunk()
            asking, x = layout.first(m, dim), layout.first(x, dim)
            m, n = layout.head(m, dim), layout.head(n, dim)
        z = graph.silu(graph.linear(m, shared, "shared"))
        z_of_queries = seen.first(z, z_dim) if self.first_only else z
        bias = Bias(layout, layout, layer.distances)
        attention = ChunkedAttention(graph, config, seen, seen, bias, causal=config.is_causal)
        gates: dict[Gate, Linear] = {"update": gate, "reset": reset, "candidate": candidate}
        return SequenceProjection(x, n, z, z_of_queries, asking, gates, attention, self.first_only)

    def read(self, q: ir.Value, layer: FoldedCross) -> ir.Value:
        """The weighted values of the memory: [rows, Z] -> [rows, D]."""
        graph, config, layout, memory = self.graph, self.sequence.config, self.sequence.layout, self.sequence.memory
        assert memory is not None and not self.first_only
        key, value = memory_keys_and_values(graph, memory.x, layer, config)
        whole = SequenceLayout(graph, layout.length, layout.longest, None, None)
        bias = Bias(whole, memory.layout, layer.distances)
        attention = ChunkedAttention(graph, config, whole, memory.layout, bias, causal=False)
        return attention.write(q, key, value, config.embed_dim)


@dataclass(frozen=True)
class SequenceProjection:
    """What attention over whole sequences is made of; see exporters.paper.layer.Projection."""

    x: ir.Value
    n: ir.Value
    z: ir.Value
    z_of_queries: ir.Value
    asking: ir.Value
    """The moving average's output, of which the gates are made: [asking rows, D]."""
    gates: dict[Gate, Linear]
    attention: ChunkedAttention
    first_only: bool

    def gate(self, name: Gate) -> ir.Value:
        """A gate, or the candidate state, before its activation: [asking rows, D], and "reset" [asking rows, V]."""
        return self.attention.graph.linear(self.asking, self.gates[name], name)

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """The weighted values within chunks: [asking rows, V]."""
        return self.attention.write(q, k, v, self.attention.config.hidden_dim, first_only=self.first_only)


def with_residual(lowered: Lowered, omega: Float64Array) -> Lowered:
    """A moving average with omega x added to each step: a tap at distance 0."""
    if isinstance(lowered, Kernel):
        taps = lowered.taps.copy()
        taps[:, lowered.ahead] += omega
        return dataclasses.replace(lowered, taps=taps)
    inside = lowered.inside + omega[:, None, None] * np.eye(lowered.block)
    return dataclasses.replace(lowered, inside=inside)
