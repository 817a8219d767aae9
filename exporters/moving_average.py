"""The nodes of a lowered moving average: u [batch * seq_len, channels] -> the same, over time."""

from __future__ import annotations

from onnxscript import ir

from mega_deploy.exporters.ema import Blocked, Kernel, Lowered
from mega_deploy.exporters.graph import Graph, Length


def moving_average(graph: Graph, u: ir.Value, lowered: Lowered, length: Length) -> ir.Value:
    """Write the nodes for windows of `length` frames."""
    return _kernel(graph, u, lowered, length) if isinstance(lowered, Kernel) else _blocks(graph, u, lowered, length)


def _kernel(graph: Graph, u: ir.Value, lowered: Kernel, length: Length) -> ir.Value:
    """One depthwise convolution, for which the length does not matter.

    It has two dimensions, of which one is 1: onnxruntime has a fast kernel for those, and none for one dimension.
    """
    op, (channels, count) = graph.op, lowered.taps.shape
    weight = graph.constant("kernel", lowered.taps[:, None, None, ::-1])  # Conv correlates: the kernel is turned round
    x = op.Unsqueeze(graph.windows(u, length, channels), [1])
    x = op.Transpose(x, perm=[0, 3, 1, 2])  # [batch, channels, 1, seq_len]
    y = op.Conv(x, weight, group=channels, kernel_shape=[1, count], pads=[0, count - 1, 0, 0])
    return graph.rows(op.Transpose(y, perm=[0, 2, 3, 1]), channels)


def _blocks(graph: Graph, u: ir.Value, lowered: Blocked, length: Length) -> ir.Value:
    """Two matrix products per channel, and between them the carry: Pad, Slice, Mul and Add, log2(blocks) times."""
    op, size = graph.op, lowered.block
    channels, _, states = lowered.readout.shape
    x = graph.windows(u, length, channels)
    x = op.Pad(x, _missing(graph, length, size))  # [batch, blocks * C, channels], zeros behind the end
    x = op.Reshape(x, [0, -1, size, channels])
    extent = op.Shape(x, start=0, end=2)  # batch, blocks
    x = op.Reshape(op.Transpose(x, perm=[3, 2, 0, 1]), [channels, size, -1])  # [channels, C, batch * blocks]
    y = op.MatMul(graph.constant("inside", lowered.inside), x)
    if states:
        y, state = op.Split(y, [size, states], axis=1, _outputs=2)
        state = op.Reshape(
            state, op.Concat(graph.sizes(channels, states), extent, axis=0)
        )  # [channels, N, batch, blocks]
        for step, factor in enumerate(lowered.carry):
            factors = graph.constant(f"carry.{step}", factor[:, :, None, None])
            state = op.Add(state, op.Mul(factors, _later(graph, state, 2**step)))
        before = op.Reshape(_later(graph, state, 1), [channels, states, -1])
        y = op.Add(y, op.MatMul(graph.constant("readout", lowered.readout), before))
    y = op.Reshape(y, op.Concat(graph.sizes(channels, size), extent, axis=0))
    y = op.Transpose(y, perm=[2, 3, 1, 0])  # [batch, blocks, C, channels]
    y = op.Reshape(y, [0, -1, channels])
    if not (isinstance(length, int) and length % size == 0):
        y = op.Slice(y, [0], graph.frames(length), [1])
    return graph.rows(y, channels)


def _missing(graph: Graph, length: Length, size: int) -> ir.Value:
    """Pads of [batch, seq_len, channels] that make seq_len a multiple of `size`."""
    op = graph.op
    if isinstance(length, int):
        return graph.sizes(0, 0, 0, 0, -length % size, 0)
    missing = op.Mod(op.Neg(graph.frames(length)), graph.sizes(size))  # of the divisor's sign: 0 to size - 1
    return op.Concat(graph.sizes(0, 0, 0, 0), missing, graph.sizes(0), axis=0)


def _later(graph: Graph, state: ir.Value, blocks: int) -> ir.Value:
    """State [channels, N, batch, blocks] moved back by so many blocks, with zeros in front."""
    padded = graph.op.Pad(state, [0, 0, 0, blocks, 0, 0, 0, 0])
    return graph.op.Slice(padded, [0], [-blocks], [3])
