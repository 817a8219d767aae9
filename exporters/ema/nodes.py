"""The nodes of a lowered moving average: u [batch * seq_len, channels] -> the same, over time."""

from __future__ import annotations

from onnxscript import ir

from mega_deploy.exporters.ema import padding
from mega_deploy.exporters.ema.blocks import Blocked
from mega_deploy.exporters.ema.carry import carry
from mega_deploy.exporters.ema.kernel import Kernel
from mega_deploy.exporters.ema.lowering import Lowered
from mega_deploy.exporters.ema.segments import in_segments, segment_frames
from mega_deploy.exporters.graph import END, Graph, Length

ODD = 16
"""From so many blocks on there is an odd number of them where a length is filled up anyway, as GROUP of segments is."""


def moving_average(graph: Graph, u: ir.Value, lowered: Lowered, length: Length, longest: int) -> ir.Value:
    """Write the nodes for windows of `length` frames, `longest` at most."""
    op = graph.op
    channels = len(lowered.taps) if isinstance(lowered, Kernel) else len(lowered.inside)
    x = graph.windows(u, length, channels)
    if isinstance(lowered, Kernel):
        y = convolution(graph, op.Transpose(x, perm=[0, 2, 1]), lowered)
        return graph.rows(op.Transpose(y, perm=[0, 2, 1]), channels)
    frames = segment_frames(lowered, length)
    if frames is not None and isinstance(length, int):
        return in_segments(graph, x, lowered, length, frames)
    count, most = padding.count(graph, length, lowered.block), -(-longest // lowered.block)
    if not isinstance(count, int) and most >= ODD:
        count, most = padding.odd(graph, count, ODD), most + 1
    x = padding.fill(graph, x, length, count, lowered.block)
    y = in_blocks(graph, op.Transpose(x, perm=[2, 0, 1]), lowered, count, most)
    return graph.rows(padding.unfill(graph, op.Transpose(y, perm=[1, 2, 0]), length, lowered.block), channels)


def convolution(graph: Graph, x: ir.Value, lowered: Kernel) -> ir.Value:
    """One depthwise convolution, for which the length does not matter: [batch, channels, seq_len] twice.

    It has two dimensions, of which one is 1: onnxruntime has a fast kernel for those, and none for one dimension.
    """
    op, (channels, count), ahead = graph.op, lowered.taps.shape, lowered.ahead
    weight = graph.constant("kernel", lowered.taps[:, None, None, ::-1])  # Conv correlates: the kernel is turned round
    pads = [0, count - 1 - ahead, 0, ahead]
    y = op.Conv(op.Unsqueeze(x, [2]), weight, group=channels, kernel_shape=[1, count], pads=pads)
    return op.Squeeze(y, [2])


def in_blocks(graph: Graph, x: ir.Value, lowered: Blocked, count: Length, most: int) -> ir.Value:
    """Matrix products per channel, whose rows are blocks, and the carry between them: [channels, batch, frames] twice.

    A window has `count` blocks, the longest one `most`. Of all orders of the axes, onnxruntime is the fastest at plain
    transposes before and behind, and blocks as rows.
    """
    op, size, channels = graph.op, lowered.block, len(lowered.inside)
    blocks = op.Reshape(x, [channels, -1, size])  # [channels, batch * blocks, C]
    y = op.MatMul(blocks, graph.constant("inside", lowered.inside))
    for side in lowered.sides:
        with graph.scope("ahead" if side.ahead else "behind"):
            left = op.MatMul(blocks, graph.constant("states", side.states))
            before = carry(graph, left, side, count, most)
            y = op.Add(y, op.MatMul(before, graph.constant("readout", side.readout)))
    for edge in lowered.edges:
        frames = abs(edge.lag) * size
        if edge.lag > 0:
            moved = op.Slice(op.Pad(x, [0, 0, frames, 0, 0, 0]), [0], [-frames], [2])
        else:
            moved = op.Slice(op.Pad(x, [0, 0, 0, 0, 0, frames]), [frames], [END], [2])
        matrix = graph.constant(f"edge.{edge.lag}", edge.matrix)
        y = op.Add(y, op.MatMul(op.Reshape(moved, [channels, -1, size]), matrix))
    return op.Reshape(y, [channels, -1, count * size] if isinstance(count, int) else op.Shape(x))
