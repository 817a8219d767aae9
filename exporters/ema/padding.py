"""Cutting the middle axis of a value of three into pieces of one size, whatever its length."""

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


def odd(graph: Graph, count: ir.Value, least: int) -> ir.Value:
    """[batch, pieces] with one piece more where they are even, if there are `least` or more."""
    op = graph.op
    pieces = op.Slice(count, [1], [2])
    many = op.Min(op.Div(pieces, graph.sizes(least)), graph.sizes(1))
    even = op.Sub(graph.sizes(1), op.Mod(pieces, graph.sizes(2)))
    return op.Add(count, op.Concat(graph.sizes(0), op.Mul(many, even), axis=0))


def fill(graph: Graph, x: ir.Value, length: Length, pieces: Length, size: int) -> ir.Value:
    """[batch, length, features] with zeros behind, up to so many pieces of `size` as `count` or `odd` says."""
    op = graph.op
    if not isinstance(length, int):
        assert not isinstance(pieces, int)
        missing = op.Sub(op.Mul(op.Slice(pieces, [1], [2]), graph.sizes(size)), graph.frames(length))
        return op.Pad(x, op.Concat(graph.sizes(0, 0, 0, 0), missing, graph.sizes(0), axis=0))
    assert isinstance(pieces, int)
    return x if length == pieces * size else op.Pad(x, [0, 0, 0, 0, pieces * size - length, 0])


def unfill(graph: Graph, x: ir.Value, length: Length, size: int) -> ir.Value:
    """Without what `fill` added."""
    if isinstance(length, int) and length % size == 0:
        return x
    return graph.op.Slice(x, [0], graph.frames(length), [1])


def shape(graph: Graph, length: Length, features: int) -> ir.Value | list[int]:
    """[batch, length, features], for Reshape."""
    if isinstance(length, int):
        return [-1, length, features]
    return graph.op.Concat(graph.op.Slice(length, [0], [1]), graph.sizes(-1, features), axis=0)
