"""The graph of a folded Edifice Mega as a stream: one frame a call, and the state that it leaves for the next.

`frames` [batch, embed_dim] and the state in, `features` [batch, hidden_size] and the new state out. What is carried:

- `frames_seen` [batch]: how many frames each stream of the batch has had.
- `blocks.N.average` [batch, ema_dim]: the moving average, h <- decay h + weight u. It reaches back to the stream's
  first frame; nothing is cut, as it is from the kernels of a window.
- `blocks.N.frames` [batch, window, hidden_size]: a ring of the last `window` normalised frames n. They are all that
  attention needs, for the scores are q'.n and the values are projected behind the weighted sum
  (exporters.edifice.fold, rules 2 and 3). The frame with number k, counted from 1, lies in slot k mod window, where it
  replaces the one that fell out of the window; softmax does not care for order. Slots that no frame has reached yet are
  masked.

onnxruntime's ScatterND writes one slot of the ring and copies nothing: exporters.state tells why it may.
"""

from __future__ import annotations

import numpy as np
from onnxscript import ir

from mega_deploy.config.edifice import EdificeConfig
from mega_deploy.errors import OptionError
from mega_deploy.exporters.edifice.fold import FoldedAttention, FoldedBlock, FoldedMega
from mega_deploy.exporters.edifice.window import feed_forward
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.linear import Linear
from mega_deploy.exporters.state import BATCH, OPSET, State, StreamGraph
from mega_deploy.signature import Range, Signature, TensorSpec


def check_causal(config: EdificeConfig) -> None:
    """Refuse a model whose attention looks ahead.

    Raises:
        OptionError: it is not causal.
    """
    if config.laplace_attention:
        raise OptionError(
            "this model has no stream: its Laplace attention is not causal, every frame attends to later ones; "
            "export it with --form window"
        )


def step_graph(folded: FoldedMega, batch: Range, dtype: ir.DataType = ir.DataType.FLOAT) -> StreamGraph:
    """Write the graph of one step.

    Args:
        folded: with one row for every block (`fold(model, one_row=True)`).
        batch: streams that are served at once.
        dtype: of the frames, the constants and the arithmetic.

    Raises:
        OptionError: the model is not causal.
        InputError: a folded weight exceeds the dtype.
    """
    check_causal(folded.config)
    config = folded.config
    graph = Graph("mega_step", dtype, OPSET)
    frames = graph.input("frames", [BATCH, config.embed_dim])
    state = State(graph, batch)
    writer = _Step(graph, state, config.hidden_size, config.length)
    x = frames
    if folded.input_projection is not None:
        x = graph.linear(x, folded.input_projection, "input_projection")
    for index, block in enumerate(folded.blocks):
        with graph.scope(f"blocks.{index}"):
            x = writer.block(x, block, f"blocks.{index}")
    gamma = graph.constant("final_norm.gamma", folded.final_gamma)
    beta = graph.constant("final_norm.beta", folded.final_beta)
    features = graph.normalise(x, config.hidden_size, gamma, beta)
    graph.output(features, "features", [BATCH, config.hidden_size])
    state.give()
    return StreamGraph(graph.model(), stream_signature(config, batch, dtype, state))


def stream_signature(config: EdificeConfig, batch: Range, dtype: ir.DataType, state: State) -> Signature:
    """`frames` -> `features`, one of each, and the state."""
    number = dtype.numpy().name
    frames = TensorSpec("frames", number, (batch, config.embed_dim), (BATCH, "embed_dim"))
    features = TensorSpec("features", number, (batch, config.hidden_size), (BATCH, "hidden_size"))
    return Signature((frames,), (features,), state.specs)


class _Step:
    """Writes blocks of one step: x [batch, hidden_size] -> the same."""

    def __init__(self, graph: Graph, state: State, hidden: int, window: int) -> None:
        self.graph, self.op, self.state = graph, graph.op, state
        self.hidden, self.window = hidden, window
        op = self.op
        seen = state.take("frames_seen", [], ir.DataType.INT64)
        now = op.Add(seen, graph.integers("one", np.array(1)))  # the number of this frame
        state.put(seen, now)
        slot = op.Mod(now, graph.integers("window", np.array(window)))  # [batch]
        stream = op.Range(0, op.Squeeze(op.Shape(now), [0]), 1)
        self.slots = op.Concat(op.Unsqueeze(stream, [1]), op.Unsqueeze(slot, [1]), axis=1)  # [batch, 2]
        # The number of the first frame that comes into a slot.
        first = np.where(np.arange(window) > 0, np.arange(window), window)
        filled = op.LessOrEqual(graph.integers("first_in_slot", first), op.Unsqueeze(now, [1, 2]))  # [batch, 1, window]
        self.mask = op.Where(
            filled, graph.constant("mask.seen", np.array(0.0)), graph.constant("mask.empty", np.array(-np.inf))
        )

    def block(self, x: ir.Value, block: FoldedBlock, name: str) -> ir.Value:
        op, graph = self.op, self.graph
        with graph.scope("ema"):
            x = op.Add(x, self.moving_average(self.normalise(x), block, f"{name}.average"))
        with graph.scope("attention"):
            x = op.Add(x, self.attention(self.normalise(x), block.attention, f"{name}.frames"))
        with graph.scope("ffn"):
            return op.Add(x, feed_forward(graph, self.normalise(x), block.ffn))

    def moving_average(self, n: ir.Value, block: FoldedBlock, name: str) -> ir.Value:
        """n: [batch, H] -> [batch, H]."""
        op, graph = self.op, self.graph
        u = graph.linear(n, weighted_input(block), "proj")
        old = self.state.take(name, [block.ema.ema.past.decay.shape[0]])
        new = op.Add(op.Mul(old, graph.constant("decay", block.ema.ema.past.decay[:, 0])), u)
        self.state.put(old, new, ["ema_dim"])
        return graph.linear(new, block.ema.out, "out")

    def attention(self, n: ir.Value, attention: FoldedAttention, name: str) -> ir.Value:
        """n: [batch, H] -> [batch, H], which attends to the last `window` frames, this one among them."""
        op, graph = self.op, self.graph
        query, gate = graph.linear(n, attention.query, "query"), graph.linear(n, attention.gate, "gate")
        old = self.state.take(name, [self.window, self.hidden])
        ring = op.ScatterND(old, self.slots, n)
        self.state.put(old, ring, ["window", "hidden_size"])
        scores = op.Transpose(op.MatMul(ring, op.Unsqueeze(query, [2])), perm=[0, 2, 1])  # [batch, 1, window]
        context = op.MatMul(op.Softmax(op.Add(scores, self.mask), axis=-1), ring)  # [batch, 1, H]
        value = graph.linear(op.Squeeze(context, [1]), attention.value, "value")
        return graph.linear(op.Mul(value, op.Sigmoid(gate)), attention.out, "out")

    def normalise(self, x: ir.Value) -> ir.Value:
        return self.graph.normalise(x, self.hidden)


def weighted_input(block: FoldedBlock) -> Linear:
    """What a block adds to its moving average: n -> weight proj(n), [.., H] -> [.., ema_dim]."""
    weight = block.ema.ema.past.weight
    assert weight.shape[1] == 1, "Edifice's moving average has one state a channel"
    return Linear(block.ema.proj.weight * weight[:, 0], block.ema.proj.bias * weight[:, 0])
