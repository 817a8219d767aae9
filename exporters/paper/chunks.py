"""Attention within the chunks of a whole sequence: its positional bias, and how many queries are written at a time.

Where a chunk is long, what is in plain operators takes ROWS queries at a time: their scores stay in the processor's
caches, never are all of them there at once, and causal queries leave out the keys ahead of them. Of a range of lengths
it takes equal parts, as many as the longest chunk has PART_ROWS, but MOST_PARTS at most, which short ones have to bear.
Laplace's op holds no scores where it is native, but is given a bias for all of them: it gets parts too, unless causal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxscript import ir

from mega_deploy.arrays import Float64Array
from mega_deploy.config.paper import MegaConfig
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.paper.attention import weighted_values
from mega_deploy.exporters.paper.sequence_layout import SequenceLayout

ROWS = 256
"""Queries of a part, where the length is known."""
PART_ROWS, MOST_PARTS = 1024, 8
"""Queries of a part of the longest chunk of a range, and parts."""

Rows = tuple[int, int] | tuple[ir.Value, ir.Value]
"""Queries of a part: the first, and the one behind the last; or as `SequenceLayout.parts` has them."""


class Bias:
    """The positional bias of queries and keys, one number for each distance: as little of it as is asked for.

    Args:
        queries: whose chunks are looked from.
        keys: whose chunks are looked at; the same steps for attention over itself.
        distances: bias by key - query, from 1 - reach to reach - 1.
    """

    def __init__(self, queries: SequenceLayout, keys: SequenceLayout, distances: Float64Array) -> None:
        self.queries, self.keys, self.graph, self.op = queries, keys, queries.graph, queries.op
        self.reach = (len(distances) + 1) // 2
        self._table = self.graph.constant("bias", distances)
        self._bands: dict[int, ir.Value] = {}

    def whole(self) -> ir.Value:
        """The bias of all queries: [queries, keys]."""
        return self.of(self.queries.positions(), None)

    def first(self) -> ir.Value:
        """The bias of the first query: [1, keys]."""
        return self.op.Gather(self._table, self._columns())

    def of(self, rows: ir.Value, keys: ir.Value | None) -> ir.Value:
        """The bias of the queries at these positions, and so many of the first keys, or all: [rows, keys]."""
        columns = self._columns() if keys is None else self.op.Slice(self._columns(), [0], keys, [1])
        return self.op.Gather(self._table, self.op.Sub(columns, self.op.Unsqueeze(rows, [1])))

    def part(self, start: int, rows: int, keys: int, zero: ir.Value) -> ir.Value:
        """The bias of some queries of a chunk of known length: [rows, keys].

        Every such part lies in one band of `rows` rows, in which the parts of later queries begin further to the left.

        Args:
            start: the first query.
            rows: queries.
            keys: so many of the first keys.
            zero: a vector of one 0 that is not known before the graph runs: onnxruntime would fold what it knows, all
                parts, into constants of queries x keys numbers.
        """
        op, queries, all_keys = self.op, self.queries.longest_chunk, self.keys.longest_chunk
        if rows not in self._bands:
            first = self.reach - 1 - (queries - rows)
            # Not by Unsqueeze, through which onnx carries what it knows of the numbers, and loses their shape.
            row = op.Reshape(op.Range(0, rows, 1), [-1, 1])
            column = op.Reshape(op.Range(first, self.reach - 1 + all_keys, 1), [1, -1])
            self._bands[rows] = op.Gather(self._table, op.Sub(column, row))
        begin = queries - rows - start
        return op.Slice(
            self._bands[rows], op.Add(zero, self.graph.sizes(begin)), op.Add(zero, self.graph.sizes(begin + keys)), [1]
        )

    def _columns(self) -> ir.Value:
        """Where the first query finds each key: [1, keys]."""
        return self.op.Add(self.op.Unsqueeze(self.keys.positions(), [0]), self.graph.sizes(self.reach - 1))


class ChunkedAttention:
    """Writes the attention of one layer, chunk by chunk.

    Args:
        graph: where the nodes go.
        config: of the layer.
        queries: whose chunks the queries are.
        keys: whose chunks the keys and values are, as many.
        bias: of those; where causal -infinity for keys ahead, unless the function masks them itself.
        causal: whether a query sees the keys up to its own step only; then both are the same steps.
    """

    def __init__(
        self,
        graph: Graph,
        config: MegaConfig,
        queries: SequenceLayout,
        keys: SequenceLayout,
        bias: Bias,
        *,
        causal: bool,
    ) -> None:
        self.graph, self.op, self.config = graph, graph.op, config
        self.queries, self.keys, self.bias, self.causal = queries, keys, bias, causal

    def write(self, q: ir.Value, k: ir.Value, v: ir.Value, width: int, *, first_only: bool = False) -> ir.Value:
        """The weighted values of each query: [query rows, V].

        Args:
            q: [query rows, Z], scaled already unless the function divides by the number of keys.
            k: [key rows, Z].
            v: [key rows, V].
            width: V.
            first_only: whether only the first query of each row is there.
        """
        graph, z_dim, traits = self.graph, self.config.z_dim, self.config.attention_traits
        q = graph.windows(q, 1, z_dim) if first_only else self.queries.chunks(q, z_dim)
        k = self.keys.chunks(k, z_dim)
        v = self.keys.chunks(v if traits.normalised else self.keys.masked(v), width)
        queries, keys = self.queries.chunk, self.keys.chunk
        if first_only:
            context = self._weighted(q, k, v, self.bias.first(), rows=(0, 1))
        elif traits.masks_itself and self.causal:
            context = self._weighted(q, k, v, self.bias.whole())
        elif isinstance(queries, int) and isinstance(keys, int) and queries > ROWS:
            context = self._in_parts(q, k, v, queries, keys)
        elif isinstance(queries, int) or self.queries.longest_chunk <= PART_ROWS:
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
        """The weighted values of some queries; `rows` are those that there are, None for all of a chunk."""
        scores = _ChunkScores(self.graph, self.keys, bias, rows if self.causal else None, causal=self.causal)
        return weighted_values(self.graph, self.config.attention, q, k, v, scores=scores)


@dataclass(frozen=True)
class _ChunkScores:
    """The scores of some queries of each chunk, as exporters.paper.attention.Scores asks for them."""

    graph: Graph
    keys: SequenceLayout
    bias: ir.Value
    """[queries, keys]."""
    rows: Rows | None
    """Which queries, where these differ in the keys that they see; None for all of them."""
    causal: bool

    def products(self, k: ir.Value) -> Callable[[ir.Value], ir.Value]:
        columns = self.graph.op.Transpose(k, perm=[0, 2, 1])
        return lambda q: self.graph.op.MatMul(q, columns)

    def masked(self, scores: ir.Value) -> ir.Value:
        op = self.graph.op
        mask = self.keys.softmax_mask(causal=self.causal)
        if mask is None:
            return scores
        if self.rows is not None:
            mask = op.Slice(self._of_rows(mask), [0], _vector(self.rows[1]), [2])
        return op.Add(scores, mask)

    def per_key(self) -> ir.Value:
        per_key = self.keys.per_key(causal=self.causal)
        return per_key if self.rows is None else self._of_rows(per_key)

    def operator_inputs(self) -> tuple[ir.Value, ir.Value]:
        op, per_key = self.graph.op, self.per_key()
        row_scale = op.Expand(per_key, op.Shape(self.bias, start=0, end=1))  # [1|rows of chunks, queries]
        return op.Unsqueeze(self.bias, [0]), row_scale

    def _of_rows(self, value: ir.Value) -> ir.Value:
        """What a value has for the queries, along its second axis."""
        assert self.rows is not None
        first, last = self.rows
        if isinstance(first, int):
            return self.graph.op.Slice(value, [first], _vector(last), [1])
        return self.graph.op.Gather(value, first, axis=1)


def _vector(size: int | ir.Value) -> ir.Value | list[int]:
    return [size] if isinstance(size, int) else size
