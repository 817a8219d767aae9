"""Cutting an axis of a value of three axes into pieces of one size, whatever its length."""

from __future__ import annotations

from onnxscript import ir

from mega_deploy.exporters.graph import Graph, Length


def count(graph: Graph, length: Length, size: int) -> Length:
    """Pieces of `size` that hold `length`: a number, or [batch, pieces]."""
    if isinstance(length, int):
        return -(-length // size)
    op = graph.op
    pieces = op.Div(op.Add(graph.frames(length), graph.sizes(size - 1)), graph.sizes(size))
    return op.Concat(op.Slice(length, [0], [1]), pieces, axis=0)


def fill(graph: Graph, x: ir.Value, length: Length, size: int, axis: int) -> ir.Value:
    """With zeros behind the end of `axis`, up to a whole number of pieces."""
    op = graph.op
    if isinstance(length, int) and length % size == 0:
        return x
    before, after = [0] * (3 + axis), [0] * (2 - axis)
    if isinstance(length, int):
        return op.Pad(x, [*before, -length % size, *after])
    missing = op.Mod(op.Neg(graph.frames(length)), graph.sizes(size))  # of the divisor's sign: 0 to size - 1
    parts = [graph.sizes(*before), missing, *([graph.sizes(*after)] if after else [])]
    return op.Pad(x, op.Concat(*parts, axis=0))


def unfill(graph: Graph, x: ir.Value, length: Length, size: int, axis: int) -> ir.Value:
    """Without what `fill` added."""
    if isinstance(length, int) and length % size == 0:
        return x
    return graph.op.Slice(x, [0], graph.frames(length), [axis])


def shape(graph: Graph, length: Length, features: int) -> ir.Value | list[int]:
    """[batch, length, features], for Reshape."""
    if isinstance(length, int):
        return [-1, length, features]
    return graph.op.Concat(graph.op.Slice(length, [0], [1]), graph.sizes(-1, features), axis=0)
