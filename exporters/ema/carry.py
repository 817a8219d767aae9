"""The nodes of what blocks hand on: what each leaves behind -> what those before it left, without any loop.

Values are [batch, blocks, states], with the states of all channels side by side, so that a step in time is one long
row: onnxruntime then shifts, multiplies and adds at the speed of memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnxscript import ir

from mega_deploy.arrays import Float64Array
from mega_deploy.exporters.ema import padding
from mega_deploy.exporters.ema.blocks import Side, normal
from mega_deploy.exporters.graph import END, Graph, Length

GROUP = 16
"""Blocks whose recurrence is written out, a multiplication and an addition each. In onnxruntime, 4, 8, 16 and 32 were
equally fast for 128 channels of 1024 frames; for 512 of 16384, 16 and 32 were, and 8 a fifth slower."""


def carry(graph: Graph, left: ir.Value, side: Side, blocks: Length, most: int) -> ir.Value:
    """h_k = sum_(j >= 1) decay^(j - 1) left_(k - j), over `side.span` blocks; of the future left_(k + j).

    Args:
        graph: to be written to.
        left: what each block leaves behind, [channels, batch * blocks, N].
        side: whose decays, span and direction.
        blocks: of a window.
        most: blocks of the longest window.

    Returns:
        [channels, batch * blocks, N].
    """
    op, (channels, states) = graph.op, side.decay.shape
    decay = side.decay.reshape(-1)
    rows = op.Reshape(op.Transpose(left, perm=[1, 0, 2]), padding.shape(graph, blocks, decay.size))
    if side.span is None:
        rows = _recurrence(graph, rows, decay, blocks, most, ahead=side.ahead)
    else:
        rows = _sum(graph, rows, decay, side.span, ahead=side.ahead)
    return op.Transpose(op.Reshape(rows, [-1, channels, states]), perm=[1, 0, 2])


class Relay:
    """Writes what `carry` does over a window in segments, each of which takes over what those before it left.

    Args:
        graph: to be written to.
        side: whose decays and direction; its span does not matter, all blocks are summed.
        size: blocks of a group, of which segments are made.
        batch: a vector of one size.
    """

    def __init__(self, graph: Graph, side: Side, size: int, batch: ir.Value) -> None:
        self.graph, self.side, self.size, self.shape = graph, side, size, side.decay.shape
        decay = side.decay.reshape(-1)
        self._decay = graph.constant("decay", normal(decay))
        self._group_decay = graph.constant("group_decay", normal(decay**size))
        self._powers = graph.constant("powers", _powers(decay, size, ahead=side.ahead))
        nothing = graph.constant("nothing", np.zeros((1, 1, decay.size)))
        self._state = graph.op.Expand(nothing, graph.op.Concat(batch, graph.sizes(1, decay.size), axis=0))

    def carry(self, left: ir.Value, groups: int, *, last: bool) -> ir.Value:
        """What `carry` gives, for the next segment in the side's direction; the last one hands nothing on."""
        graph, op, ahead, (channels, states) = self.graph, self.graph.op, self.side.ahead, self.shape
        rows = op.Reshape(op.Transpose(left, perm=[1, 0, 2]), [-1, self.size, channels * states])
        parts = list(op.Split(rows, axis=1, num_outputs=self.size, _outputs=self.size))
        inner = _written_out(graph, parts[::-1] if ahead else parts, self._decay)
        totals = [inner[-1]]
        if groups > 1:
            totals = list(
                op.Split(
                    op.Reshape(inner[-1], [-1, groups, channels * states]),
                    axis=1,
                    num_outputs=groups,
                    _outputs=groups,
                )
            )
        before = [self._state]
        for total in (totals[::-1] if ahead else totals)[: -1 if last else None]:
            before.append(op.Add(total, op.Mul(before[-1], self._group_decay)))
        if not last:
            self._state = before.pop()
        starts = op.Reshape(_side_by_side(graph, before, ahead=ahead), [-1, 1, channels * states])
        rows = _after(graph, starts, inner, self._powers, ahead=ahead)
        return op.Transpose(op.Reshape(rows, [-1, channels, states]), perm=[1, 0, 2])


def _sum(graph: Graph, rows: ir.Value, decay: Float64Array, span: int, *, ahead: bool) -> ir.Value:
    """Over `span` blocks, by doubling: sums of 2 w blocks from sums of w, sums of w + 1 from sums of w."""
    op = graph.op
    rows = op.Pad(rows, [0, 0, 0, 0, span, 0] if ahead else [0, span, 0, 0, 0, 0])
    sums, width = rows, 1
    for bit in f"{span:b}"[1:]:
        sums, width = _later(graph, sums, sums, decay, skip=width, blocks=width, ahead=ahead), 2 * width
        if bit == "1":
            sums, width = _later(graph, rows, sums, decay, skip=width, blocks=1, ahead=ahead), width + 1
    return op.Slice(sums, [1], [END], [1]) if ahead else op.Slice(sums, [0], [-1], [1])


def _later(
    graph: Graph, near: ir.Value, far: ir.Value, decay: Float64Array, *, skip: int, blocks: int, ahead: bool
) -> ir.Value:
    """near[skip:] + decay^blocks far[:-blocks], or in the mirror near[:-skip] + decay^blocks far[blocks:]."""
    op = graph.op
    near = op.Slice(near, [0], [-skip], [1]) if ahead else op.Slice(near, [skip], [END], [1])
    far = op.Slice(far, [blocks], [END], [1]) if ahead else op.Slice(far, [0], [-blocks], [1])
    return op.Add(near, op.Mul(far, graph.constant(f"decay.{skip}.{blocks}", normal(decay**blocks))))


def _recurrence(
    graph: Graph, rows: ir.Value, decay: Float64Array, blocks: Length, most: int, *, ahead: bool
) -> ir.Value:
    """Over all blocks: the recurrence written out within groups of blocks, and a sum of groups between those."""
    op, size, groups = graph.op, min(GROUP, most), -(-most // GROUP)
    count = padding.count(graph, blocks, size)
    filled = padding.fill(graph, rows, blocks, count, size)
    parts = list(op.Split(op.Reshape(filled, [-1, size, decay.size]), axis=1, num_outputs=size, _outputs=size))
    if ahead:
        parts.reverse()
    states = _written_out(graph, parts, graph.constant("decay", normal(decay)))
    if groups == 1:
        rows = _side_by_side(graph, states[:-1], ahead=ahead)
        rows = op.Pad(rows, [0, 0, 0, 0, 1, 0] if ahead else [0, 1, 0, 0, 0, 0])
    else:
        with graph.scope("groups"):
            totals = op.Reshape(states[-1], padding.shape(graph, count, decay.size))
            span = 2 ** math.ceil(math.log2(groups - 1))
            before = _sum(graph, totals, decay**size, span, ahead=ahead)
        powers = graph.constant("powers", _powers(decay, size, ahead=ahead))
        rows = _after(graph, op.Reshape(before, [-1, 1, decay.size]), states, powers, ahead=ahead)
        length = count * size if isinstance(count, int) else count
        rows = op.Reshape(rows, padding.shape(graph, length, decay.size))
    return padding.unfill(graph, rows, blocks, size)


def _written_out(graph: Graph, parts: Sequence[ir.Value], decay: ir.Value) -> list[ir.Value]:
    """Behind each block of a group, had the group begun with nothing."""
    states = [parts[0]]
    for part in parts[1:]:
        states.append(graph.op.Add(part, graph.op.Mul(states[-1], decay)))
    return states


def _powers(decay: Float64Array, size: int, *, ahead: bool) -> Float64Array:
    """Factors of what came before a group, 0 at its first block, where it is there anyway, then decay, decay^2, ..."""
    powers = normal(decay ** np.arange(size)[:, None])
    powers[0] = 0.0
    return powers[::-1] if ahead else powers


def _after(graph: Graph, before: ir.Value, states: Sequence[ir.Value], powers: ir.Value, *, ahead: bool) -> ir.Value:
    """Before each block of a group that began with `before`: [batch * groups, size, states]."""
    rows = _side_by_side(graph, [before, *states[:-1]], ahead=ahead)
    return graph.op.Add(rows, graph.op.Mul(before, powers))


def _side_by_side(graph: Graph, states: Sequence[ir.Value], *, ahead: bool) -> ir.Value:
    return graph.op.Concat(*(reversed(states) if ahead else states), axis=1)
