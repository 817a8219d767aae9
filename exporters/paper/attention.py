"""The nodes of single-head attention over chunks: softmax, Laplace and relu2.

softmax       scores + bias, with -infinity where a key is masked
laplace       one LaplaceAttention node, whose row_scale is 1 / the number of keys
relu2         in plain operators: between two matrix products it is three passes over the scores, without the error
              function that makes a kernel of its own worth while for Laplace

Neither of the last two is normalised, so that padding needs no mask: it is enough that its values are zero.
"""

from __future__ import annotations

from typing import Any

from onnxscript import ir

from mega_deploy.exporters.graph import OPSET, Graph
from mega_deploy.exporters.paper.steps import Steps
from mega_deploy.models.paper.activation import LAPLACE_MU, LAPLACE_SIGMA
from mega_deploy.paper.config import MegaConfig
from mega_deploy.plugins.laplace.function import erf_function


class Attention:
    """Writes the attention of one layer.

    Args:
        graph: where the nodes go.
        config: of the layer.
        queries: whose chunks the queries are.
        keys: whose chunks the keys and values are, as many.
        causal: whether a query sees the keys up to its own step only; then both are the same steps.
    """

    def __init__(self, graph: Graph, config: MegaConfig, queries: Steps, keys: Steps, *, causal: bool) -> None:
        self.graph, self.op, self.config = graph, graph.op, config
        self.queries, self.keys, self.causal = queries, keys, causal

    def write(
        self, q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value, width: int, *, first_only: bool = False
    ) -> ir.Value:
        """The weighted values of each query: [query rows, V].

        Args:
            q: [query rows, Z]; for softmax scaled.
            k: [key rows, Z].
            v: [key rows, V].
            bias: [queries, keys] of a chunk; where causal -infinity for keys ahead, unless for laplace.
            width: V.
            first_only: whether only the first query of each row is there.
        """
        graph, z_dim = self.graph, self.config.z_dim
        q = graph.windows(q, 1, z_dim) if first_only else self.queries.chunks(q, z_dim)
        k = self.keys.chunks(k, z_dim)
        if self.config.attention == "softmax":
            context = self._softmax(q, k, self.keys.chunks(v, width), bias, first_only=first_only)
        else:
            values = self.keys.chunks(self.keys.masked(v), width)
            per_key = self.keys.per_key(causal=self.causal)
            if self.causal and first_only:
                per_key = self.op.Slice(per_key, [0], [1], [1])
            function = self._laplace if self.config.attention == "laplace" else self._relu2
            context = function(q, k, values, bias, per_key)
        return graph.rows(context, width)

    def _softmax(self, q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value, *, first_only: bool) -> ir.Value:
        op = self.op
        scores = op.Add(op.MatMul(q, op.Transpose(k, perm=[0, 2, 1])), bias)
        mask = self.keys.softmax_mask(causal=self.causal)
        if mask is not None:
            scores = op.Add(scores, op.Slice(mask, [0], [1], [1]) if self.causal and first_only else mask)
        return op.MatMul(op.Softmax(scores, axis=-1), v)

    def _laplace(self, q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value, per_key: ir.Value) -> ir.Value:
        op, causal = self.op, self.causal
        function = erf_function(
            dtype=self.graph.dtype,
            opset=OPSET,
            causal=causal,
            bias=True,
            row_scale=True,
            mu=LAPLACE_MU,
            sigma=LAPLACE_SIGMA,
            overload="causal" if causal else "",
        )
        row_scale = op.Expand(per_key, op.Shape(bias, start=0, end=1))  # [1|rows, queries]
        attributes: dict[str, Any] = {
            "kernel": "erf",
            "causal": int(causal),
            "mu": LAPLACE_MU,
            "sigma": LAPLACE_SIGMA,
        }
        return op.call(function, q, k, v, op.Unsqueeze(bias, [0]), row_scale, **attributes)

    def _relu2(self, q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value, per_key: ir.Value) -> ir.Value:
        op = self.op
        scores = op.MatMul(op.Mul(q, op.Unsqueeze(per_key, [2])), op.Transpose(k, perm=[0, 2, 1]))
        positive = op.Relu(op.Add(scores, bias))
        return op.MatMul(op.Mul(positive, positive), v)
