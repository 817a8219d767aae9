"""The nodes of folded layers: x [rows * steps, D] -> the same, or [rows, D] where only the first step is wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnxscript import ir

from mega_deploy.arrays import Float64Array
from mega_deploy.exporters.ema.kernel import Kernel
from mega_deploy.exporters.ema.lowering import Lowered
from mega_deploy.exporters.ema.nodes import moving_average
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.paper.attention import Attention
from mega_deploy.exporters.paper.bias import Bias
from mega_deploy.exporters.paper.fold import FoldedAttention, FoldedCross, FoldedLayer, FoldedStack
from mega_deploy.exporters.paper.ops import (
    activation,
    affine,
    cross_attention,
    feed_forward,
    normalise,
    remembered,
    update,
)
from mega_deploy.exporters.paper.sequence_layout import Steps


@dataclass(frozen=True)
class Memory:
    """What cross attention reads."""

    x: ir.Value
    """[rows * steps, D]."""
    steps: Steps


class StackWriter:
    """Writes a folded stack.

    Args:
        graph: where the nodes go.
        folded: the stack.
        lowered: its moving averages.
        name: of the module in the trained form.
        first_only: whether of the last layer, and behind it, only the first step is computed.
    """

    def __init__(
        self, graph: Graph, folded: FoldedStack, lowered: Sequence[Lowered], name: str, *, first_only: bool = False
    ) -> None:
        self.graph, self.op, self.config = graph, graph.op, folded.config
        self.folded, self.lowered, self.name, self.first_only = folded, lowered, name, first_only
        self.block_outputs: list[str] = []
        """Names of the values that hold the residual stream behind each layer."""

    def write(self, x: ir.Value, steps: Steps, memory: Memory | None = None) -> ir.Value:
        """All layers and the final norm."""
        final = len(self.folded.layers) - 1
        for index, (layer, lowered) in enumerate(zip(self.folded.layers, self.lowered, strict=True)):
            name = f"{self.name}.layers.{index}"
            with self.graph.scope(name):
                x = self._layer(x, steps, memory, layer, lowered, first_only=self.first_only and index == final)
            x.name = f"{name}.output"
            self.block_outputs.append(x.name)
        with self.graph.scope(self.name):
            return normalise(self.graph, x, self.folded.final_norm, "final_norm")

    def _layer(
        self,
        x: ir.Value,
        steps: Steps,
        memory: Memory | None,
        layer: FoldedLayer,
        lowered: Lowered,
        *,
        first_only: bool,
    ) -> ir.Value:
        with self.graph.scope("attention"):
            x = self._attention(x, steps, layer.attention, lowered, first_only=first_only)
        if layer.cross is not None:
            assert memory is not None and not first_only
            with self.graph.scope("cross_attention"):
                x = self._cross(x, steps, memory, layer.cross)
        if layer.ffn is not None:
            with self.graph.scope("ffn"):
                x = feed_forward(self.graph, x, layer.ffn, act=self.config.activation)
        return x

    def _attention(
        self, x: ir.Value, steps: Steps, layer: FoldedAttention, lowered: Lowered, *, first_only: bool
    ) -> ir.Value:
        graph, op, config = self.graph, self.op, self.config
        dim, z_dim, width = config.embed_dim, config.z_dim, config.hidden_dim
        n = normalise(graph, x, layer.norm)
        m = self._average(n, steps, layer, lowered)
        # Apart: the results of one joint layer would have to be copied apart again (see exporters.fold).
        gate, shared, reset, candidate = layer.joint.parts(dim, z_dim, width, dim)
        keys, first = steps, m
        if first_only:
            # Keys and values are of the first chunk, all else of the first step.
            keys, first = steps.first_chunk(), steps.first(m, dim)
            x, m, n = steps.first(x, dim), steps.head(m, dim), steps.head(n, dim)
        z = graph.silu(graph.linear(m, shared, "shared"))
        z_of_query = keys.first(z, z_dim) if first_only else z
        bias = Bias(steps, steps, layer.distances)
        attention = Attention(graph, config, keys if first_only else steps, keys, bias, causal=config.is_causal)
        query = affine(graph, z_of_query, layer.query, "query")
        key = z if layer.key is None else affine(graph, z, layer.key, "key")
        value = activation(graph, graph.linear(n, layer.value, "value"), config.activation)
        context = attention.write(query, key, value, width, first_only=first_only)
        gated = op.Mul(graph.silu(graph.linear(first, reset, "reset")), context)
        hidden = op.Add(graph.linear(first, candidate, "candidate"), graph.linear(gated, layer.hidden, "hidden"))
        return update(graph, x, graph.linear(first, gate, "update"), hidden, layer.post_norm, act=config.activation)

    def _average(self, n: ir.Value, steps: Steps, layer: FoldedAttention, lowered: Lowered) -> ir.Value:
        """silu(EMA(n) + omega n), where padding enters no other step."""
        graph, op = self.graph, self.op
        with graph.scope("ema"):
            if steps.keep is None:
                lowered = with_present(lowered, layer.omega)
                return graph.silu(moving_average(graph, n, lowered, steps.length, steps.longest))
            average = moving_average(graph, steps.masked(n), lowered, steps.length, steps.longest)
            return graph.silu(op.Add(average, op.Mul(n, graph.constant("omega", layer.omega))))

    def _cross(self, x: ir.Value, steps: Steps, memory: Memory, layer: FoldedCross) -> ir.Value:
        graph, config = self.graph, self.config

        def attend(query: ir.Value) -> ir.Value:
            key, value = remembered(graph, memory.x, layer, config)
            whole = Steps(graph, steps.length, steps.longest, None, None)
            bias = Bias(whole, memory.steps, layer.distances)
            attention = Attention(graph, config, whole, memory.steps, bias, causal=False)
            return attention.write(query, key, value, config.embed_dim)

        return cross_attention(graph, x, layer, config, attend)


def with_present(lowered: Lowered, omega: Float64Array) -> Lowered:
    """A moving average with omega x added to each step: a tap at distance 0."""
    if isinstance(lowered, Kernel):
        taps = lowered.taps.copy()
        taps[:, lowered.ahead] += omega
        return dataclasses.replace(lowered, taps=taps)
    inside = lowered.inside + omega[:, None, None] * np.eye(lowered.block)
    return dataclasses.replace(lowered, inside=inside)
