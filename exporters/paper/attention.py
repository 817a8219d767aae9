"""The nodes of an attention function: what queries make of keys and values, in a whole sequence and in a stream alike.

softmax       softmax(q.k + bias), where a key is masked by -infinity
laplace       one LaplaceAttention node, whose row_scale is 1 / the number of keys
relu2         relu(q.k / the number of keys + bias)^2 in plain operators: between two matrix products it is three passes
              over the scores, without the error function that makes a kernel of its own worth while for Laplace

config.attention tells what these functions are like. Which keys a query sees, and how their scores are best multiplied
out, is for `Scores` to say.

Shapes: B rows of chunks or streams, M queries, K keys, Z z_dim, V width of the values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from onnxscript import ir

from mega_deploy.config.attention import Attention
from mega_deploy.exporters.graph import Graph
from mega_deploy.models.paper.activation import LAPLACE_MU, LAPLACE_SIGMA
from mega_deploy.plugins.laplace.function import erf_function


class Scores(Protocol):
    """The keys that queries see, as an attention function asks for them."""

    @property
    def causal(self) -> bool:
        """Whether keys ahead of a query are left to an operator that masks them itself."""

    @property
    def bias(self) -> ir.Value:
        """What is added to scores: [M, K] or [B, M, K]."""

    def products(self, k: ir.Value) -> Callable[[ir.Value], ir.Value]:
        """What makes scores q.k [B, M, K] of queries [B, M, Z], for keys [B, K, Z]."""

    def masked(self, scores: ir.Value) -> ir.Value:
        """Scores [B, M, K] with -infinity for the keys that no query may see, where the bias does not say so."""

    def per_key(self) -> ir.Value:
        """1 / the number of keys that a query sees: [B or 1, M or 1]."""

    def operator_inputs(self) -> tuple[ir.Value, ir.Value]:
        """Bias [B or 1, M, K] and scales of the rows of scores [B or 1, M], as LaplaceAttention takes them."""


def weighted_values(
    graph: Graph, function: Attention, q: ir.Value, k: ir.Value, v: ir.Value, *, scores: Scores
) -> ir.Value:
    """Write the weights of the keys, times the values: [B, M, V].

    Args:
        graph: where the nodes go.
        function: which makes weights of scores.
        q: [B, M, Z], scaled already unless the function divides by the number of keys.
        k: [B, K, Z].
        v: [B, K, V], zero at padding unless the function is normalised.
        scores: which keys a query sees.
    """
    return _NODES[function](graph, q, k, v, scores)


def _softmax(graph: Graph, q: ir.Value, k: ir.Value, v: ir.Value, scores: Scores) -> ir.Value:
    op = graph.op
    found = scores.masked(op.Add(scores.products(k)(q), scores.bias))
    return op.MatMul(op.Softmax(found, axis=-1), v)


def _relu2(graph: Graph, q: ir.Value, k: ir.Value, v: ir.Value, scores: Scores) -> ir.Value:
    op, products = graph.op, scores.products(k)
    found = products(op.Mul(q, op.Unsqueeze(scores.per_key(), [2])))
    positive = op.Relu(op.Add(found, scores.bias))
    return op.MatMul(op.Mul(positive, positive), v)


def _laplace(graph: Graph, q: ir.Value, k: ir.Value, v: ir.Value, scores: Scores) -> ir.Value:
    causal = scores.causal
    function = erf_function(
        dtype=graph.dtype,
        opset=graph.opset,
        causal=causal,
        bias=True,
        row_scale=True,
        mu=LAPLACE_MU,
        sigma=LAPLACE_SIGMA,
        overload="causal" if causal else "",
    )
    attributes: dict[str, Any] = {"kernel": "erf", "causal": int(causal), "mu": LAPLACE_MU, "sigma": LAPLACE_SIGMA}
    return graph.op.call(function, q, k, v, *scores.operator_inputs(), **attributes)


_NODES: Mapping[Attention, Callable[[Graph, ir.Value, ir.Value, ir.Value, Scores], ir.Value]] = {
    "softmax": _softmax,
    "laplace": _laplace,
    "relu2": _relu2,
}
