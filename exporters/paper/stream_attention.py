"""What queries make of the keys and values that a stream carries: softmax, Laplace and relu2 (Ma et al., 2209.10655).

softmax       softmax(q.k + bias)
laplace       one LaplaceAttention node, whose row_scale is 1 / the number of keys
relu2         relu(q.k / the number of keys + bias)^2

All of them give no weight to a key whose bias is -infinity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnxscript import ir

from mega_deploy.arrays import Float64Array
from mega_deploy.config.paper import Attention
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.state import OPSET
from mega_deploy.models.paper.activation import LAPLACE_MU, LAPLACE_SIGMA
from mega_deploy.plugins.laplace.function import erf_function


def attend(
    graph: Graph,
    kind: Attention,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    *,
    bias: ir.Value,
    per_key: ir.Value | None,
    single: bool,
) -> ir.Value:
    """The weighted values: [batch, M, V].

    Args:
        graph: where the nodes go.
        kind: of the attention.
        q: [batch, M, Z]; for softmax scaled.
        k: [batch, K, Z].
        v: [batch, K, V].
        bias: [batch, M, K].
        per_key: 1 / the number of keys that a query sees, [batch, M]; None for softmax.
        single: whether M is 1, so that products are of a matrix and a vector.
    """
    op = graph.op
    if kind == "laplace":
        function = erf_function(
            dtype=graph.dtype, opset=OPSET, bias=True, row_scale=True, mu=LAPLACE_MU, sigma=LAPLACE_SIGMA
        )
        attributes: dict[str, Any] = {"kernel": "erf", "causal": 0, "mu": LAPLACE_MU, "sigma": LAPLACE_SIGMA}
        return op.call(function, q, k, v, bias, per_key, **attributes)
    if kind == "relu2":
        q = op.Mul(q, op.Unsqueeze(per_key, [2]))
    if single:
        scores = op.Transpose(op.MatMul(k, op.Transpose(q, perm=[0, 2, 1])), perm=[0, 2, 1])
    else:
        scores = op.MatMul(q, op.Transpose(k, perm=[0, 2, 1]))
    scores = op.Add(scores, bias)
    if kind == "softmax":
        return op.MatMul(op.Softmax(scores, axis=-1), v)
    positive = op.Relu(scores)
    return op.MatMul(op.Mul(positive, positive), v)


def causal(distances: Float64Array) -> Float64Array:
    """The bias by key - query, from 1 - window to window - 1, with -infinity for the keys ahead."""
    return np.where(np.arange(len(distances)) < (len(distances) + 1) // 2, distances, -np.inf)


def every_count(graph: Graph, window: int) -> ir.Value:
    """1 / the number of keys, by the position of a query in its window: [window]."""
    return graph.shared(f"per_key.{window}", lambda: 1 / np.arange(1, window + 1))
