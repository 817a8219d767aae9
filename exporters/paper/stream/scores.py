"""The scores of the steps of streams: what a step sees is in its bias, where -infinity takes a key away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnxscript import ir

from mega_deploy.arrays import Float64Array
from mega_deploy.exporters.graph import Graph


@dataclass(frozen=True)
class StreamScores:
    """The keys that the steps of a call see, as exporters.paper.attention.Scores asks for them."""

    graph: Graph
    bias: ir.Value
    """[batch, queries, keys]."""
    inverse_key_count: ir.Value | None
    """1 / the number of keys that a query sees, [batch, queries], where the attention function divides by it."""
    single: bool
    """Whether there is one query a stream, so that products are of a matrix and a vector."""
    causal = False
    """Every mask is in the bias."""

    def products(self, k: ir.Value) -> Callable[[ir.Value], ir.Value]:
        op = self.graph.op
        if self.single:
            return lambda q: op.Transpose(op.MatMul(k, op.Transpose(q, perm=[0, 2, 1])), perm=[0, 2, 1])
        return lambda q: op.MatMul(q, op.Transpose(k, perm=[0, 2, 1]))

    def masked(self, scores: ir.Value) -> ir.Value:
        return scores

    def per_key(self) -> ir.Value:
        assert self.inverse_key_count is not None
        return self.inverse_key_count

    def operator_inputs(self) -> tuple[ir.Value, ir.Value]:
        return self.bias, self.per_key()


def causal(distances: Float64Array) -> Float64Array:
    """The bias by key - query, from 1 - window to window - 1, with -infinity for the keys ahead."""
    return np.where(np.arange(len(distances)) < (len(distances) + 1) // 2, distances, -np.inf)


def inverse_key_counts(graph: Graph, window: int) -> ir.Value:
    """1 / the number of keys, by the position of a query in its window: [window]."""
    return graph.shared(f"per_key.{window}", lambda: 1 / np.arange(1, window + 1))
