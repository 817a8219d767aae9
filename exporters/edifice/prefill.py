"""The graph of a folded Edifice Mega that takes many frames of a stream at once, and leaves the state as steps would.

`frames` [batch, frames, embed_dim] and the state (exporters.edifice.step) in, the last frame's `features` and the new
state out. Its weights are the step's. The frames attend to the ring as it was and to each other, by their numbers: a
key is seen if it is neither later than the query nor out of its window. The moving average is a triangular matrix over
the frames of the call and what the state before them decays to, h_t = sum_j decay^(t - j) u_j + decay^(t + 1) h.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnxscript import ir

from mega_deploy.exporters.edifice.fold import FoldedAttention, FoldedBlock, FoldedMega
from mega_deploy.exporters.edifice.step import check_causal, stream_signature, weighted_input
from mega_deploy.exporters.edifice.window import feed_forward
from mega_deploy.exporters.graph import END, Graph
from mega_deploy.exporters.state import BATCH, OPSET, State, StreamGraph
from mega_deploy.signature import Range

FRAMES = "frames"
MOST_FRAMES = 64
"""Frames that one call takes: the triangular matrices grow with their square. Longer inputs take several calls."""


def prefill_graph(folded: FoldedMega, batch: Range, dtype: ir.DataType = ir.DataType.FLOAT) -> StreamGraph:
    """Write the graph for any number of frames up to the window, and MOST_FRAMES.

    Args:
        folded: as for the step (`fold(model, one_row=True)`).
        batch: streams that are served at once.
        dtype: of the frames, the constants and the arithmetic.

    Raises:
        OptionError: the model is not causal.
        InputError: a folded weight exceeds the dtype.
    """
    check_causal(folded.config)
    config = folded.config
    most = min(MOST_FRAMES, config.length)
    graph = Graph("mega_prefill", dtype, OPSET)
    frames = graph.input("frames", [BATCH, FRAMES, config.embed_dim])
    state = State(graph, batch)
    writer = _Prefill(graph, state, folded, frames, most)
    x = graph.rows(frames, config.embed_dim)
    if folded.input_projection is not None:
        x = graph.linear(x, folded.input_projection, "input_projection")
    final = len(folded.blocks) - 1
    for index, block in enumerate(folded.blocks):
        with graph.scope(f"blocks.{index}"):
            x = writer.block(x, block, f"blocks.{index}", last_row=index == final)
    gamma = graph.constant("final_norm.gamma", folded.final_gamma)
    beta = graph.constant("final_norm.beta", folded.final_beta)
    features = graph.normalise(x, config.hidden_size, gamma, beta)
    graph.output(features, "features", [BATCH, config.hidden_size])
    state.give()
    step = stream_signature(config, batch, dtype, state)
    (spec,) = step.inputs
    dims = (batch, Range(1, most, most), config.embed_dim)
    many = dataclasses.replace(spec, dims=dims, axes=(BATCH, FRAMES, "embed_dim"))
    return StreamGraph(graph.model(), dataclasses.replace(step, inputs=(many,)))


class _Prefill:
    """Writes blocks: x [batch * frames, H] -> the same, or -> [batch, H] for the last row only."""

    def __init__(self, graph: Graph, state: State, folded: FoldedMega, frames: ir.Value, most: int) -> None:
        self.graph, self.op, self.state = graph, graph.op, state
        self.hidden, self.window, self.most = folded.config.hidden_size, folded.config.length, most
        op = self.op
        self.extent = op.Shape(frames, start=0, end=2)  # batch, frames
        self.frames = op.Slice(self.extent, [1], [2])
        window = graph.integers("window", np.array(self.window))
        first = graph.integers("first_number", np.array(1))
        seen = state.take("frames_seen", [], ir.DataType.INT64)
        state.put(seen, op.Add(seen, op.Squeeze(self.frames, [0])))
        seen = op.Unsqueeze(seen, [1])
        step = op.Range(1, op.Add(op.Squeeze(self.frames, [0]), first), 1)  # 1, ..., frames
        new = op.Add(seen, step)  # [batch, frames]: the numbers of these frames
        slot = graph.integers("slot", np.arange(self.window))
        old = op.Sub(seen, op.Mod(op.Sub(seen, slot), window))  # [batch, window]: of those in the ring
        number = op.Concat(old, new, axis=1)
        age = op.Sub(op.Unsqueeze(new, [2]), op.Unsqueeze(number, [1]))  # [batch, frames, window + frames]
        empty = op.Less(op.Unsqueeze(number, [1]), first)
        later = op.Less(age, graph.integers("none", np.array(0)))
        fallen_out = op.GreaterOrEqual(age, window)
        self.mask = op.Where(
            op.Or(op.Or(empty, later), fallen_out),
            graph.constant("mask.unseen", np.array(-np.inf)),
            graph.constant("mask.seen", np.array(0.0)),
        )
        stream = op.Range(0, op.Squeeze(op.Slice(self.extent, [0], [1]), [0]), 1)
        stream = op.Expand(op.Unsqueeze(stream, [1, 2]), op.Concat(self.extent, graph.sizes(1), axis=0))
        self.slots = op.Concat(stream, op.Unsqueeze(op.Mod(new, window), [2]), axis=2)  # [batch, frames, 2]

    def block(self, x: ir.Value, block: FoldedBlock, name: str, *, last_row: bool) -> ir.Value:
        op, graph = self.op, self.graph
        with graph.scope("ema"):
            x = op.Add(x, self.moving_average(self.normalise(x), block, f"{name}.average"))
        with graph.scope("attention"):
            n = self.normalise(x)
            x = self.last_row(x) if last_row else x
            x = op.Add(x, self.attention(n, block.attention, f"{name}.frames", last_row=last_row))
        with graph.scope("ffn"):
            return op.Add(x, feed_forward(graph, self.normalise(x), block.ffn))

    def moving_average(self, n: ir.Value, block: FoldedBlock, name: str) -> ir.Value:
        """n: [rows, H] -> [rows, H]."""
        op, graph = self.op, self.graph
        decay = block.ema.ema.past.decay  # [channels, 1]
        channels = decay.shape[0]
        lag = np.arange(self.most)[:, None] - np.arange(self.most)
        inside = np.where(lag >= 0, decay[:, :, None] ** np.maximum(lag, 0), 0.0)  # [channels, most, most]
        carried = decay ** np.arange(1, self.most + 1)  # [channels, most]
        square = op.Slice(graph.constant("inside", inside), [0, 0], op.Concat(self.frames, self.frames, axis=0), [1, 2])
        old = self.state.take(name, [channels])
        u = graph.windows(graph.linear(n, weighted_input(block), "proj"), self.extent, channels)
        y = op.MatMul(square, op.Transpose(u, perm=[2, 1, 0]))  # [channels, frames, batch]
        rest = op.Slice(graph.constant("carried", carried[:, :, None]), [0], self.frames, [1])
        y = op.Add(y, op.Mul(rest, op.Unsqueeze(op.Transpose(old, perm=[1, 0]), [1])))
        y = op.Transpose(y, perm=[2, 1, 0])  # [batch, frames, channels]
        self.state.put(old, op.Squeeze(op.Slice(y, [-1], [END], [1]), [1]), ["ema_dim"])
        return graph.linear(graph.rows(y, channels), block.ema.out, "out")

    def attention(self, n: ir.Value, attention: FoldedAttention, name: str, *, last_row: bool) -> ir.Value:
        """n: [rows, H] -> [rows, H], or -> [batch, H] where the last row attends alone."""
        op, graph = self.op, self.graph
        old = self.state.take(name, [self.window, self.hidden])
        new = graph.windows(n, self.extent, self.hidden)
        self.state.put(old, op.ScatterND(old, self.slots, new), ["window", "hidden_size"])
        seen = op.Concat(old, new, axis=1)  # [batch, window + frames, H]
        n = self.last_row(n) if last_row else n
        query, gate = graph.linear(n, attention.query, "query"), graph.linear(n, attention.gate, "gate")
        query = op.Unsqueeze(query, [1]) if last_row else graph.windows(query, self.extent, self.hidden)
        mask = op.Slice(self.mask, [-1], [END], [1]) if last_row else self.mask
        scores = op.MatMul(query, op.Transpose(seen, perm=[0, 2, 1]))
        context = op.MatMul(op.Softmax(op.Add(scores, mask), axis=-1), seen)
        value = graph.linear(graph.rows(context, self.hidden), attention.value, "value")
        return graph.linear(op.Mul(value, op.Sigmoid(gate)), attention.out, "out")

    def normalise(self, x: ir.Value) -> ir.Value:
        return self.graph.normalise(x, self.hidden)

    def last_row(self, x: ir.Value) -> ir.Value:
        """[rows, H] -> [batch, H]."""
        windows = self.graph.windows(x, self.extent, self.hidden)
        return self.graph.rows(self.op.Slice(windows, [-1], [END], [1]), self.hidden)
