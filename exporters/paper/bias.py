"""The positional bias of queries and keys, which is one number for each distance: as little of it as is asked for."""

from __future__ import annotations

from onnxscript import ir

from mega_deploy.arrays import Float64Array
from mega_deploy.exporters.paper.sequence_layout import Steps


class Bias:
    """Bias of the queries and keys of a chunk.

    Args:
        queries: whose chunks are looked from.
        keys: whose chunks are looked at; the same steps for attention over itself.
        distances: bias by key - query, from 1 - reach to reach - 1.
    """

    def __init__(self, queries: Steps, keys: Steps, distances: Float64Array) -> None:
        self.queries, self.keys, self.graph, self.op = queries, keys, queries.graph, queries.op
        self.reach = (len(distances) + 1) // 2
        self._table = self.graph.constant("bias", distances)
        self._bands: dict[int, ir.Value] = {}

    def whole(self) -> ir.Value:
        """Of all queries: [queries, keys]."""
        return self.of(self.queries.positions(), None)

    def first(self) -> ir.Value:
        """Of the first query: [1, keys]."""
        return self.op.Gather(self._table, self._columns())

    def of(self, rows: ir.Value, keys: ir.Value | None) -> ir.Value:
        """Of the queries at these positions, and so many of the first keys, or all: [rows, keys]."""
        columns = self._columns() if keys is None else self.op.Slice(self._columns(), [0], keys, [1])
        return self.op.Gather(self._table, self.op.Sub(columns, self.op.Unsqueeze(rows, [1])))

    def part(self, start: int, rows: int, keys: int, zero: ir.Value) -> ir.Value:
        """Of some queries of a chunk of known length: [rows, keys].

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
