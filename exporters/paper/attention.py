"""The nodes of single-head attention over chunks: softmax, Laplace and relu2.

softmax       scores + bias, with -infinity where a key is masked
laplace       one LaplaceAttention node, whose row_scale is 1 / the number of keys
relu2         in plain operators: between two matrix products it is three passes over the scores, without the error
              function that makes a kernel of its own worth while for Laplace

Neither of the last two is normalised, so that padding needs no mask: it is enough that its values are zero.

Where a chunk is long, what is in plain operators takes ROWS queries at a time: their scores stay in the processor's
caches, never are all of them there at once, and causal queries leave out the keys ahead of them. Of a range of lengths
it takes equal parts, as many as the longest chunk has PART_ROWS, but MOST_PARTS at most, which short ones have to bear.
Laplace's op holds no scores where it is native, but is given a bias for all of them: it gets parts too, unless causal.
"""

from __future__ import annotations

from typing import Any

from onnxscript import ir

from mega_deploy.config.paper import MegaConfig
from mega_deploy.exporters.graph import OPSET, Graph
from mega_deploy.exporters.paper.bias import Bias
from mega_deploy.exporters.paper.sequence_layout import Steps
from mega_deploy.models.paper.activation import LAPLACE_MU, LAPLACE_SIGMA
from mega_deploy.plugins.laplace.function import erf_function

ROWS = 256
"""Queries of a part, where the length is known."""
PART_ROWS, MOST_PARTS = 1024, 8
"""Queries of a part of the longest chunk of a range, and parts."""

Rows = tuple[int, int] | tuple[ir.Value, ir.Value]
"""Queries of a part: the first, and the one behind the last; or as `Steps.parts` has them."""


class Attention:
    """Writes the attention of one layer.

    Args:
        graph: where the nodes go.
        config: of the layer.
        queries: whose chunks the queries are.
        keys: whose chunks the keys and values are, as many.
        bias: of those; where causal -infinity for keys ahead, unless for laplace.
        causal: whether a query sees the keys up to its own step only; then both are the same steps.
    """

    def __init__(
        self, graph: Graph, config: MegaConfig, queries: Steps, keys: Steps, bias: Bias, *, causal: bool
    ) -> None:
        self.graph, self.op, self.config = graph, graph.op, config
        self.queries, self.keys, self.bias, self.causal = queries, keys, bias, causal

    def write(self, q: ir.Value, k: ir.Value, v: ir.Value, width: int, *, first_only: bool = False) -> ir.Value:
        """The weighted values of each query: [query rows, V].

        Args:
            q: [query rows, Z]; for softmax scaled.
            k: [key rows, Z].
            v: [key rows, V].
            width: V.
            first_only: whether only the first query of each row is there.
        """
        graph, z_dim, softmax = self.graph, self.config.z_dim, self.config.attention == "softmax"
        q = graph.windows(q, 1, z_dim) if first_only else self.queries.chunks(q, z_dim)
        k = self.keys.chunks(k, z_dim)
        v = self.keys.chunks(v if softmax else self.keys.masked(v), width)
        if first_only:
            context = self._weighted(q, k, v, self.bias.first(), rows=(0, 1))
        elif self.config.attention == "laplace" and self.causal:
            context = self._weighted(q, k, v, self.bias.whole())
        elif isinstance(self.queries.chunk, int) and isinstance(self.keys.chunk, int):
            short = self.queries.chunk <= ROWS
            context = (
                self._weighted(q, k, v, self.bias.whole())
                if short
                else self._in_parts(q, k, v, self.queries.chunk, self.keys.chunk)
            )
        elif isinstance(self.queries.chunk, int) or self.queries.longest_chunk <= PART_ROWS:
            context = self._weighted(q, k, v, self.bias.whole())
        else:
            context = self._in_equal_parts(q, k, v)
        return graph.rows(context, width)

    def _in_parts(self, q: ir.Value, k: ir.Value, v: ir.Value, queries: int, keys: int) -> ir.Value:
        """`_weighted` for ROWS queries at a time."""
        op = self.op
        count = op.Shape(q, start=0, end=1)
        zero, parts = op.Sub(count, count), []
        for start in range(0, queries, ROWS):
            end = min(start + ROWS, queries)
            seen = end if self.causal else keys
            bias = self.bias.part(start, end - start, seen, zero)
            near_k, near_v = (value if seen == keys else op.Slice(value, [0], [seen], [1]) for value in (k, v))
            parts.append(self._weighted(op.Slice(q, [start], [end], [1]), near_k, near_v, bias, rows=(start, end)))
        return op.Concat(*parts, axis=1)

    def _in_equal_parts(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """`_weighted` for parts of a chunk whose length is not known."""
        op, parts = self.op, []
        for rows, seen in self.queries.parts(min(MOST_PARTS, -(-self.queries.longest_chunk // PART_ROWS))):
            keys = seen if self.causal else None
            near_k, near_v = (value if keys is None else op.Slice(value, [0], keys, [1]) for value in (k, v))
            bias = self.bias.of(rows, keys)
            parts.append(self._weighted(op.Gather(q, rows, axis=1), near_k, near_v, bias, rows=(rows, seen)))
        return op.Slice(op.Concat(*parts, axis=1), [0], self.graph.frames(self.queries.chunk), [1])

    def _weighted(self, q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value, rows: Rows | None = None) -> ir.Value:
        """Weights times v; `rows` are the queries that there are, None for all."""
        if self.config.attention == "laplace":
            return self._laplace(q, k, v, bias, rows)
        weigh = self._softmax if self.config.attention == "softmax" else self._relu2
        return self.op.MatMul(weigh(q, self.op.Transpose(k, perm=[0, 2, 1]), bias, rows), v)

    def _softmax(self, q: ir.Value, k: ir.Value, bias: ir.Value, rows: Rows | None) -> ir.Value:
        op = self.op
        scores = op.Add(op.MatMul(q, k), bias)
        mask = self.keys.softmax_mask(causal=self.causal)
        if mask is not None:
            if self.causal and rows is not None:
                mask = op.Slice(self._of(mask, rows), [0], _vector(rows[1]), [2])
            scores = op.Add(scores, mask)
        return op.Softmax(scores, axis=-1)

    def _relu2(self, q: ir.Value, k: ir.Value, bias: ir.Value, rows: Rows | None) -> ir.Value:
        op = self.op
        scores = op.MatMul(op.Mul(q, op.Unsqueeze(self._per_key(rows), [2])), k)
        positive = op.Relu(op.Add(scores, bias))
        return op.Mul(positive, positive)

    def _laplace(self, q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value, rows: Rows | None) -> ir.Value:
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
        per_key = self._per_key(rows)
        row_scale = op.Expand(per_key, op.Shape(bias, start=0, end=1))  # [1|rows, queries]
        attributes: dict[str, Any] = {
            "kernel": "erf",
            "causal": int(causal),
            "mu": LAPLACE_MU,
            "sigma": LAPLACE_SIGMA,
        }
        return op.call(function, q, k, v, op.Unsqueeze(bias, [0]), row_scale, **attributes)

    def _per_key(self, rows: Rows | None) -> ir.Value:
        """1 / the number of keys that a query sees: [1|rows of chunks, queries or 1]."""
        per_key = self.keys.per_key(causal=self.causal)
        return per_key if not self.causal or rows is None else self._of(per_key, rows)

    def _of(self, value: ir.Value, rows: Rows) -> ir.Value:
        """What a value has for some queries, along its second axis."""
        first, last = rows
        if isinstance(first, int):
            return self.op.Slice(value, [first], _vector(last), [1])
        return self.op.Gather(value, first, axis=1)


def _vector(size: int | ir.Value) -> ir.Value | list[int]:
    return [size] if isinstance(size, int) else size
