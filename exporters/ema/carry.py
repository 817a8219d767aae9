"""The nodes of what blocks hand on: what each leaves behind -> what those before it left, without any loop.

Values are [batch, blocks, states], with the states of all channels side by side, so that a step in time is one long
row: onnxruntime then shifts, multiplies and adds at the speed of memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnxscript import ir

from mega_deploy.exporters.ema import pieces
from mega_deploy.exporters.ema.blocks import Side, normal
from mega_deploy.exporters.ema.kernel import Array
from mega_deploy.exporters.graph import Graph, Length

GROUP = 16
"""Blocks whose recurrence is written out, a multiplication and an addition each. In onnxruntime, 4, 8, 16 and 32 were
equally fast for 128 channels of 1024 frames; for 512 of 16384, 16 and 32 were, and 8 a fifth slower."""
END = int(np.iinfo(np.int64).max)


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
    rows = op.Reshape(op.Transpose(left, perm=[1, 0, 2]), pieces.shape(graph, blocks, decay.size))
    if side.span is None:
        rows = _recurrence(graph, rows, decay, blocks, most, ahead=side.ahead)
    else:
        rows = _sum(graph, rows, decay, side.span, ahead=side.ahead)
    return op.Transpose(op.Reshape(rows, [-1, channels, states]), perm=[1, 0, 2])


def _sum(graph: Graph, rows: ir.Value, decay: Array, span: int, *, ahead: bool) -> ir.Value:
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
    graph: Graph, near: ir.Value, far: ir.Value, decay: Array, *, skip: int, blocks: int, ahead: bool
) -> ir.Value:
    """near[skip:] + decay^blocks far[:-blocks], or in the mirror near[:-skip] + decay^blocks far[blocks:]."""
    op = graph.op
    near = op.Slice(near, [0], [-skip], [1]) if ahead else op.Slice(near, [skip], [END], [1])
    far = op.Slice(far, [blocks], [END], [1]) if ahead else op.Slice(far, [0], [-blocks], [1])
    return op.Add(near, op.Mul(far, graph.constant(f"decay.{skip}.{blocks}", normal(decay**blocks))))


def _recurrence(graph: Graph, rows: ir.Value, decay: Array, blocks: Length, most: int, *, ahead: bool) -> ir.Value:
    """Over all blocks: the recurrence written out within groups of blocks, and a sum of groups between those."""
    op, size, groups = graph.op, min(GROUP, most), -(-most // GROUP)
    filled = pieces.fill(graph, rows, blocks, size, axis=1)
    parts = list(op.Split(op.Reshape(filled, [-1, size, decay.size]), axis=1, num_outputs=size, _outputs=size))
    if ahead:
        parts.reverse()
    factor = graph.constant("decay", normal(decay))
    states = parts[:1]  # behind each block of a group, had it begun with nothing: [batch * groups, 1, states]
    for part in parts[1:]:
        states.append(op.Add(part, op.Mul(states[-1], factor)))
    if groups == 1:
        rows = _side_by_side(graph, states[:-1], ahead=ahead)
        rows = op.Pad(rows, [0, 0, 0, 0, 1, 0] if ahead else [0, 1, 0, 0, 0, 0])
    else:
        count = pieces.count(graph, blocks, size)
        with graph.scope("groups"):
            totals = op.Reshape(states[-1], pieces.shape(graph, count, decay.size))
            span = 2 ** math.ceil(math.log2(groups - 1))
            before = _sum(graph, totals, decay**size, span, ahead=ahead)
        before = op.Reshape(before, [-1, 1, decay.size])
        # Before the first block of a group there is `before` and nothing else, before the next decay times that, ...
        powers = normal(decay ** np.arange(size)[:, None])
        powers[0] = 0.0
        rows = _side_by_side(graph, [before, *states[:-1]], ahead=ahead)
        rows = op.Add(rows, op.Mul(before, graph.constant("powers", powers[::-1] if ahead else powers)))
        length = count * size if isinstance(count, int) else count
        rows = op.Reshape(rows, pieces.shape(graph, length, decay.size))
    return pieces.unfill(graph, rows, blocks, size, axis=1)


def _side_by_side(graph: Graph, states: Sequence[ir.Value], *, ahead: bool) -> ir.Value:
    return graph.op.Concat(*(reversed(states) if ahead else states), axis=1)
