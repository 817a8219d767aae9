"""The steps of a sequence as attention sees them: chunks, relative positions, padding; whatever the length is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnxscript import ir

from mega_deploy.exporters.ema import padding
from mega_deploy.exporters.graph import Graph, Length

PARTIAL_SUM = 64
"""Steps that are added up before all are."""


class SequenceLayout:
    """A sequence in a graph, of one length or any of a range; values are made where they are first asked for.

    Args:
        graph: where the nodes go.
        length: steps, padding up to whole chunks included: a number, or the vector [rows, steps].
        longest: the most that they can be.
        chunk_size: of attention; None for one chunk.
        attention_mask: bool [rows, steps], False for padding; None where there is none.
    """

    def __init__(
        self, graph: Graph, length: Length, longest: int, chunk_size: int | None, attention_mask: ir.Value | None
    ) -> None:
        self.graph, self.op, self.length, self.longest = graph, graph.op, length, longest
        self.attention_mask = attention_mask
        self.longest_chunk = longest if chunk_size is None else min(longest, chunk_size)
        self.chunk: Length = self._chunk(chunk_size)
        """Steps of a chunk: a number, or the vector [-1, steps]."""
        self._made: dict[str, ir.Value] = {}
        self._parts: dict[int, list[tuple[ir.Value, ir.Value]]] = {}

    def _chunk(self, chunk_size: int | None) -> Length:
        if isinstance(self.length, int):
            return self.longest_chunk
        op, graph = self.op, self.graph
        steps = graph.frames(self.length)
        if self.longest_chunk < self.longest:
            steps = op.Min(steps, graph.sizes(self.longest_chunk))
        return op.Concat(graph.sizes(-1), steps, axis=0)

    def chunks(self, x: ir.Value, features: int) -> ir.Value:
        """[rows * steps, features] -> [rows * chunks, steps of a chunk, features]."""
        return self.graph.windows(x, self.chunk, features)

    def first(self, x: ir.Value, features: int) -> ir.Value:
        """The first step of each row: [rows * steps, features] -> [rows, features]."""
        windows = self.graph.windows(x, self.length, features)
        return self.op.Squeeze(self.op.Slice(windows, [0], [1], [1]), [1])

    def first_chunk(self) -> SequenceLayout:
        """The steps of each row's first chunk, which `head` takes of a value."""
        mask = self._mask_up_to(self.graph.frames(self.chunk))
        return SequenceLayout(self.graph, self.chunk, self.longest_chunk, None, mask)

    def head(self, x: ir.Value, features: int) -> ir.Value:
        """[rows * steps, features] -> [rows * steps of the first chunk, features]."""
        windows = self.graph.windows(x, self.length, features)
        return self.graph.rows(self.op.Slice(windows, [0], self.graph.frames(self.chunk), [1]), features)

    def cut(self, x: ir.Value, features: int, length: Length, longest: int) -> tuple[ir.Value, SequenceLayout]:
        """The first `length` steps of each row, in one chunk: without the padding that made chunks whole."""
        if isinstance(length, int) and length == self.length:
            return x, SequenceLayout(self.graph, length, longest, None, self.attention_mask)
        ends = self.graph.frames(length)
        mask = self._mask_up_to(ends)
        windows = self.op.Slice(self.graph.windows(x, self.length, features), [0], ends, [1])
        return self.graph.rows(windows, features), SequenceLayout(self.graph, length, longest, None, mask)

    def _mask_up_to(self, end: Any) -> ir.Value | None:
        """The attention mask of the first steps of each row, up to a vector of one size."""
        if self.attention_mask is None:
            return None
        return self.op.Slice(self.attention_mask, [0], end, [1])

    def positions(self) -> ir.Value:
        """0, 1, ... of a chunk: int64 [c]."""
        op = self.op
        if isinstance(self.chunk, int):
            return self._once("positions", lambda: op.Constant(value_ints=list(range(self.longest_chunk))))
        return self._once("positions", lambda: op.Range(0, op.Squeeze(self.graph.frames(self.chunk), [0]), 1))

    def parts(self, count: int) -> list[tuple[ir.Value, ir.Value]]:
        """A chunk whose length is not known in `count` parts of one size, at least 1, which its last step fills up.

        Returns:
            For each part the positions, int64 [rows], and a vector of how many steps there are up to its end.
        """
        if count not in self._parts:
            op, graph = self.op, self.graph
            steps = graph.frames(self.chunk)
            size = op.Div(op.Add(steps, graph.sizes(count - 1)), graph.sizes(count))
            ends = [size] if count == 1 else [op.Mul(size, graph.sizes(part)) for part in range(1, count + 1)]
            every = op.Range(0, op.Squeeze(ends[-1], [0]), 1)
            rows = op.Split(op.Min(every, op.Sub(steps, graph.sizes(1))), num_outputs=count, _outputs=count)
            self._parts[count] = [(part, op.Min(end, steps)) for part, end in zip(rows, ends, strict=True)]
        return self._parts[count]

    def kept(self) -> ir.Value | None:
        """1 for what is no padding, 0 for the rest: [rows * steps, 1]."""
        mask, op = self.attention_mask, self.op
        if mask is None:
            return None
        return self._once("kept", lambda: op.Cast(op.Reshape(mask, [-1, 1]), to=self.graph.dtype))

    def masked(self, x: ir.Value) -> ir.Value:
        """x [rows * steps, features] with zeros at padding."""
        kept = self.kept()
        return x if kept is None else self.op.Mul(x, kept)

    def total(self, x: ir.Value, features: int) -> ir.Value:
        """The sum over the steps of each row, padding left out: [rows * steps, features] -> [rows, features].

        PARTIAL_SUM steps at a time are added up first: float32 loses digits where thousands are added one by one, as
        onnxruntime does.
        """
        op, graph, windows = self.op, self.graph, self.graph.windows(self.masked(x), self.length, features)
        if self.longest > PARTIAL_SUM:
            count = padding.count(graph, self.length, PARTIAL_SUM)
            filled = padding.fill(graph, windows, self.length, count, PARTIAL_SUM)
            sums = op.ReduceSum(op.Reshape(filled, [-1, PARTIAL_SUM, features]), [1], keepdims=0)
            windows = op.Reshape(sums, padding.shape(graph, count, features))
        return op.ReduceSum(windows, [1], keepdims=0)

    def softmax_mask(self, *, causal: bool) -> ir.Value | None:
        """What is added to scores: -infinity for padding, but 0 for all keys of a query that sees nothing else.

        [rows * chunks, 1, c], or [rows * chunks, c, c] where causal, whose queries differ in it. The keys ahead of a
        query are for the bias to mask.
        """
        mask, op = self.attention_mask, self.op
        if mask is None:
            return None

        def make() -> ir.Value:
            keys = op.Unsqueeze(op.Reshape(mask, self._rows_of_chunks()), [1])  # bool [rows * chunks, 1, c]
            number = op.Cast(keys, to=self.graph.dtype)
            seen = op.MatMul(number, self._up_to_here()) if causal else op.ReduceMax(number, [2], keepdims=1)
            nothing = op.Equal(seen, self._zero())
            if causal:
                nothing = op.Transpose(nothing, perm=[0, 2, 1])
            return op.Where(
                op.Or(keys, nothing), self._zero(), self.graph.shared("mask.future", lambda: np.array(-np.inf))
            )

        return self._once(f"softmax.{causal}", make)

    def per_key(self, *, causal: bool) -> ir.Value:
        """1 / n, where n counts the keys that a query sees: [1, c] where causal, else [rows * chunks, 1] or [1, 1]."""
        op = self.op

        def make() -> ir.Value:
            if causal:
                count = self.longest_chunk
                every = self.graph.shared(f"per_key.{count}", lambda: 1 / np.arange(1, count + 1)[None])
                return op.Slice(every, [0], self.graph.frames(self.chunk), [1])
            if self.attention_mask is None:
                steps = op.Cast(op.Shape(self.positions()), to=self.graph.dtype)
                return op.Reciprocal(op.Unsqueeze(steps, [0]))
            keys = op.Cast(op.Reshape(self.attention_mask, self._rows_of_chunks()), to=self.graph.dtype)
            one = self.graph.shared("one", lambda: np.ones(()))
            return op.Reciprocal(op.Max(op.ReduceSum(keys, [1], keepdims=1), one))

        return self._once(f"per_key.{causal}", make)

    def _rows_of_chunks(self) -> ir.Value | list[int]:
        return [-1, self.chunk] if isinstance(self.chunk, int) else self.chunk

    def _up_to_here(self) -> ir.Value:
        """1 for each key that a causal query sees: [c keys, c queries]."""
        op, position = self.op, self.positions()
        return op.Cast(op.LessOrEqual(op.Unsqueeze(position, [1]), op.Unsqueeze(position, [0])), to=self.graph.dtype)

    def _zero(self) -> ir.Value:
        return self.graph.shared("mask.seen", lambda: np.zeros(()))

    def _once(self, name: str, make: Callable[[], ir.Value]) -> ir.Value:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]
