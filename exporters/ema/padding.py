"""Cutting the middle axis of a value of three into blocks of one size, whatever its length."""

from __future__ import annotations

from onnxscript import ir

from mega_deploy.exporters.graph import Graph, Length


def count(graph: Graph, length: Length, size: int) -> Length:
    """Blocks of `size` that hold `length`: a number, or [batch, blocks]."""
    if isinstance(length, int):
        return -(-length // size)
    op = graph.op
    blocks = op.Div(op.Add(graph.frames(length), graph.sizes(size - 1)), graph.sizes(size))
    return op.Concat(op.Slice(length, [0], [1]), blocks, axis=0)


def odd(graph: Graph, count: ir.Value, least: int) -> ir.Value:
    """[batch, blocks] with one block more where they are even, if there are `least` or more."""
    op = graph.op
    blocks = op.Slice(count, [1], [2])
    many = op.Min(op.Div(blocks, graph.sizes(least)), graph.sizes(1))
    even = op.Sub(graph.sizes(1), op.Mod(blocks, graph.sizes(2)))
    return op.Add(count, op.Concat(graph.sizes(0), op.Mul(many, even), axis=0))


def fill(graph: Graph, x: ir.Value, length: Length, blocks: Length, size: int) -> ir.Value:
    """[batch, length, features] with zeros behind, up to so many blocks of `size` as `count` or `odd` says."""
    op = graph.op
    if not isinstance(length, int):
        assert not isinstance(blocks, int)
        missing = op.Sub(op.Mul(op.Slice(blocks, [1], [2]), graph.sizes(size)), graph.frames(length))
        return op.Pad(x, op.Concat(graph.sizes(0, 0, 0, 0), missing, graph.sizes(0), axis=0))
    assert isinstance(blocks, int)
    return x if length == blocks * size else op.Pad(x, [0, 0, 0, 0, blocks * size - length, 0])


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
