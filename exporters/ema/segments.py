"""The nodes of blocks over a long window, a segment of it after another, whose values stay in the processor's caches.

The work is that of exporters.ema.nodes.in_blocks. Written for the whole window, every node reads and writes all of it,
from memory and to memory; in segments the sequence itself is all that leaves the caches, and a frame costs as much in a
long window as in a short one.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxscript import ir

from mega_deploy.exporters.ema.blocks import Blocked
from mega_deploy.exporters.ema.carry import Relay
from mega_deploy.exporters.graph import Graph, Length

VALUES = 2**20
"""Frames times channels of a segment, roughly: 4 MB in float32. Half as many gain nothing on one thread of a Zen 4, and
lose where two threads have to meet at every operator."""
GROUP = 11
"""Blocks of a group. It is odd, as is the number of groups, lest a channel's frames lie a power of two apart from those
of the next: such columns meet in a few lines of every cache, and transposing them takes three times as long."""


def segment_frames(lowered: Blocked, length: Length) -> int | None:
    """Frames of a segment; None where the window is best written as one, or must be.

    That is where it is short, where its length is not known, and where a kernel is cut at a number of frames: what is
    cut then lies in segments before.
    """
    groups = VALUES // (len(lowered.inside) * lowered.block * GROUP)
    frames = max(1, groups - 1 + groups % 2) * GROUP * lowered.block
    if not isinstance(length, int) or lowered.edges or not lowered.sides or 2 * length < 3 * frames:
        return None
    return frames


@dataclass(frozen=True)
class _Segment:
    """A part of the window: so many frames, filled up to whole groups."""

    start: int
    frames: int
    filled: int
    """Frames of its groups."""


def in_segments(graph: Graph, x: ir.Value, lowered: Blocked, length: int, frames: int) -> ir.Value:
    """Segment by segment: [batch, seq_len, channels] -> [batch * seq_len, channels].

    onnxruntime keeps no order but what the values impose. So each segment is cut out at a place that is only known when
    the one before is done: later by a number that is always 0. Else it would begin all of them before it ended one.
    """
    op, channels, piece = graph.op, len(lowered.inside), GROUP * lowered.block
    batch = op.Shape(x, start=0, end=1)
    segments = [
        _Segment(start, size, -(-size // piece) * piece)
        for start in range(0, length, frames)
        for size in [min(frames, length - start)]
    ]
    inside = graph.constant("inside", lowered.inside)
    products, relays = list[tuple[ir.Value, ir.Value]](), list[Relay]()
    for side in lowered.sides:
        with graph.scope("ahead" if side.ahead else "behind"):
            products.append((graph.constant("states", side.states), graph.constant("readout", side.readout)))
            relays.append(Relay(graph, side, GROUP, batch))
    zero, first, last = op.Sub(batch, batch), segments[0], segments[-1]
    future: dict[_Segment, ir.Value] = {}
    for side, (states, _), relay in zip(lowered.sides, products, relays, strict=True):
        for segment in reversed(segments) if side.ahead else ():
            with graph.scope(f"future.{segment.start}"):
                left = op.MatMul(_blocks(graph, x, segment, zero, lowered), states)
                future[segment] = relay.carry(left, segment.filled // piece, last=segment is first)
    done = []
    for segment in segments:
        with graph.scope(f"from.{segment.start}"):
            blocks = _blocks(graph, x, segment, zero, lowered)
            y = op.MatMul(blocks, inside)
            for side, (states, readout), relay in zip(lowered.sides, products, relays, strict=True):
                if side.ahead:
                    before = future[segment]
                else:
                    before = relay.carry(op.MatMul(blocks, states), segment.filled // piece, last=segment is last)
                y = op.Add(y, op.MatMul(before, readout))
            y = op.Transpose(op.Reshape(y, [channels, -1, segment.filled]), perm=[1, 2, 0])
            if segment.filled > segment.frames:
                y = op.Slice(y, [0], [segment.frames], [1])
            done.append(op.Reshape(y, [-1, segment.frames * channels]))
            size = op.Shape(done[-1], start=0, end=1)
            zero = op.Sub(size, size)
    return graph.rows(op.Concat(*done, axis=1), channels)


def _blocks(graph: Graph, x: ir.Value, segment: _Segment, zero: ir.Value, lowered: Blocked) -> ir.Value:
    """The blocks of a segment: [channels, batch * blocks, C]."""
    op, start, end = graph.op, segment.start, segment.start + segment.frames
    part = op.Slice(x, op.Add(zero, graph.sizes(start)), op.Add(zero, graph.sizes(end)), [1])
    if segment.filled > segment.frames:
        part = op.Pad(part, [0, 0, 0, 0, segment.filled - segment.frames, 0])
    return op.Reshape(op.Transpose(part, perm=[2, 0, 1]), [len(lowered.inside), -1, lowered.block])
