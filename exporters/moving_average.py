"""The nodes of a lowered moving average: u [batch * seq_len, channels] -> the same, over time."""

from __future__ import annotations

from onnxscript import ir

from mega_deploy.exporters import pieces
from mega_deploy.exporters.blocks import Blocked
from mega_deploy.exporters.carry import END, carry
from mega_deploy.exporters.ema import Kernel
from mega_deploy.exporters.graph import Graph, Length
from mega_deploy.exporters.lowering import Lowered


def moving_average(graph: Graph, u: ir.Value, lowered: Lowered, length: Length, longest: int) -> ir.Value:
    """Write the nodes for windows of `length` frames, `longest` at most."""
    if isinstance(lowered, Kernel):
        return _kernel(graph, u, lowered, length)
    return _blocks(graph, u, lowered, length, longest)


def _kernel(graph: Graph, u: ir.Value, lowered: Kernel, length: Length) -> ir.Value:
    """One depthwise convolution, for which the length does not matter."""
    op, (channels, count), ahead = graph.op, lowered.taps.shape, lowered.ahead
    weight = graph.constant("kernel", lowered.taps[:, None, ::-1])  # Conv correlates: the kernel is turned round
    x = op.Transpose(graph.windows(u, length, channels), perm=[0, 2, 1])  # [batch, channels, seq_len]
    y = op.Conv(x, weight, group=channels, kernel_shape=[count], pads=[count - 1 - ahead, ahead])
    return graph.rows(op.Transpose(y, perm=[0, 2, 1]), channels)


def _blocks(graph: Graph, u: ir.Value, lowered: Blocked, length: Length, longest: int) -> ir.Value:
    """Matrix products per channel, whose rows are blocks; the carry goes between them."""
    op, size, channels = graph.op, lowered.block, len(lowered.inside)
    count, most = pieces.count(graph, length, size), -(-longest // size)
    x = pieces.fill(graph, graph.windows(u, length, channels), length, size)
    # Two plain transposes around products of contiguous matrices: any other order of axes costs onnxruntime more.
    x = op.Transpose(x, perm=[2, 0, 1])  # [channels, batch, blocks * C]
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
        with graph.scope("ahead" if edge.lag < 0 else "behind"):
            matrix = graph.constant(f"edge.{abs(edge.lag)}", edge.matrix)
        y = op.Add(y, op.MatMul(op.Reshape(moved, [channels, -1, size]), matrix))
    y = op.Reshape(y, [channels, -1, count * size] if isinstance(count, int) else op.Shape(x))
    y = pieces.unfill(graph, op.Transpose(y, perm=[1, 2, 0]), length, size)  # [batch, seq_len, channels]
    return graph.rows(y, channels)
