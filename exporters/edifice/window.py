"""The graph of a folded Edifice Mega, for one length or a range: `frames` [batch, seq_len, embed_dim] -> `features`."""

from __future__ import annotations

import numpy as np
from onnxscript import ir

from mega_deploy.errors import OptionError
from mega_deploy.exporters.edifice.fold import FoldedAttention, FoldedBlock, FoldedFFN, FoldedMega
from mega_deploy.exporters.ema.kernel import FLOAT32_HALF_ULP
from mega_deploy.exporters.ema.lowering import Lowered, choose
from mega_deploy.exporters.ema.nodes import moving_average
from mega_deploy.exporters.graph import END, OPSET, Graph, Length
from mega_deploy.exporters.window_graph import LONGEST, MegaGraph
from mega_deploy.plugins.laplace.function import l1_function
from mega_deploy.signature import Range


def mega_graph(
    folded: FoldedMega,
    *,
    ema: str = "auto",
    seq_range: Range | None = None,
    dtype: ir.DataType = ir.DataType.FLOAT,
    cut: float = FLOAT32_HALF_ULP,
) -> MegaGraph:
    """Write the graph for the static length `folded.config.length`, or a range of lengths, and any batch.

    Args:
        folded: the deployment form.
        ema: how the moving average is lowered (exporters.ema.lowering.choose).
        seq_range: lengths that the graph serves, instead of the one.
        dtype: of the inputs, the constants and the arithmetic.
        cut: share of a kernel's L1 norm that may be cut off its tail (exporters.ema.kernel.lower_to_kernel).

    Raises:
        OptionError: the window is too long, or there is no such lowering.
        InputError: a folded weight exceeds the dtype.
    """
    config = folded.config
    longest = seq_range.max if seq_range else config.length
    if longest > LONGEST:
        raise OptionError(f"a window of {longest} frames is beyond the {LONGEST} that this version's graphs take")
    lowering = choose(ema, [block.ema.ema for block in folded.blocks], longest, cut)
    graph = Graph("mega", dtype)
    seq_len = "seq_len" if seq_range else config.length
    frames = graph.input("frames", ["batch", seq_len, config.embed_dim])
    length = graph.op.Shape(frames, start=0, end=2) if seq_range else config.length
    writer = _Writer(graph, folded, length, longest)
    x = graph.rows(frames, config.embed_dim)
    if folded.input_projection is not None:
        x = graph.linear(x, folded.input_projection, "input_projection")
    block_outputs = []
    for index, (block, lowered) in enumerate(zip(folded.blocks, lowering.blocks, strict=True)):
        with graph.scope(f"blocks.{index}"):
            x = writer.block(x, block, lowered)
        x.name = f"blocks.{index}.output"
        block_outputs.append(x.name)
    gamma = graph.constant("final_norm.gamma", folded.final_gamma)
    beta = graph.constant("final_norm.beta", folded.final_beta)
    features = graph.normalise(x, config.hidden_size, gamma, beta)
    if config.output == "sequence":
        features = graph.windows(features, length, config.hidden_size)
        graph.output(features, "features", ["batch", seq_len, config.hidden_size])
    else:
        graph.output(features, "features", ["batch", config.hidden_size])
    return MegaGraph(graph.model(), lowering, tuple(block_outputs))


def feed_forward(graph: Graph, n: ir.Value, ffn: FoldedFFN) -> ir.Value:
    """down(silu(gate) * up): [rows, H] -> [rows, H]."""
    op = graph.op
    gate, up = graph.linear(n, ffn.gate, "gate"), graph.linear(n, ffn.up, "up")
    return graph.linear(op.Mul(graph.silu(gate), up), ffn.down, "down")


class _Writer:
    """Writes blocks: x [rows, hidden_size] -> the same, or -> [batch, hidden_size] for a block of the last row only."""

    def __init__(self, graph: Graph, folded: FoldedMega, length: Length, longest: int) -> None:
        self.graph, self.op = graph, graph.op
        self.length, self.longest, self.hidden = length, longest, folded.config.hidden_size

    def block(self, x: ir.Value, block: FoldedBlock, lowered: Lowered) -> ir.Value:
        op, graph = self.op, self.graph
        with graph.scope("ema"):
            u = graph.linear(self.normalise(x), block.ema.proj, "proj")
            u = moving_average(graph, u, lowered, self.length, self.longest)
            x = op.Add(x, graph.linear(u, block.ema.out, "out"))
        with graph.scope("attention"):
            if block.last_row:
                x = op.Add(self.last_row(x), self.last_row_attention(self.normalise(x), block.attention))
            else:
                x = op.Add(x, self.all_rows_attention(self.normalise(x), block.attention))
        with graph.scope("ffn"):
            return op.Add(x, feed_forward(graph, self.normalise(x), block.ffn))

    def all_rows_attention(self, n: ir.Value, attention: FoldedAttention) -> ir.Value:
        """n: [rows, H] -> [rows, H]."""
        op, graph = self.op, self.graph
        query = self.windows(graph.linear(n, attention.query, "query"))
        value = self.windows(graph.linear(n, attention.value, "value"))
        if attention.key is None:
            scores = op.MatMul(query, op.Transpose(self.windows(n), perm=[0, 2, 1]))
            weights = op.Softmax(op.Add(scores, graph.causal_mask(self.length)), axis=-1)
            context = op.MatMul(weights, value)  # [batch, seq_len, H]
        else:
            context = self.laplace(query, self.windows(graph.linear(n, attention.key, "key")), value)
        return self.gated(n, graph.rows(context, self.hidden), attention)

    def last_row_attention(self, n: ir.Value, attention: FoldedAttention) -> ir.Value:
        """n: [rows, H] -> [batch, H]: the last row attends to all rows, whose values are projected behind the sum."""
        op, graph = self.op, self.graph
        last = self.last_row(n)
        query = graph.windows(graph.linear(last, attention.query, "query"), 1, self.hidden)
        if attention.key is None:
            scores = op.MatMul(query, op.Transpose(self.windows(n), perm=[0, 2, 1]))
            context = op.MatMul(op.Softmax(scores, axis=-1), self.windows(n))  # [batch, 1, H]
            value = graph.linear(graph.rows(context, self.hidden), attention.value, "value")
        else:
            # The weights sum to s / (s + epsilon), by which the value's bias is scaled: a column of ones beside n turns
            # into that sum, and the bias is its row of the projection.
            key = self.windows(graph.linear(n, attention.key, "key"))
            with_ones = op.Pad(self.windows(n), [0, 0, 0, 0, 0, 1], graph.constant("one", np.ones(())))
            context = graph.rows(self.laplace(query, key, with_ones, last_row=True), self.hidden + 1)
            stacked = np.vstack([attention.value.weight, attention.value.bias])
            value = op.MatMul(context, graph.constant("value.weight_and_bias", stacked))
        return self.gated(last, value, attention)

    def gated(self, n: ir.Value, context: ir.Value, attention: FoldedAttention) -> ir.Value:
        """out(sigmoid(gate(n)) * context): n, context [rows, H] -> [rows, H]."""
        gate = self.graph.linear(n, attention.gate, "gate")
        return self.graph.linear(self.op.Mul(context, self.op.Sigmoid(gate)), attention.out, "out")

    def laplace(self, q: ir.Value, k: ir.Value, v: ir.Value, *, last_row: bool = False) -> ir.Value:
        """q [batch, seq_len or 1, H], k [batch, seq_len, H], v [batch, seq_len, Dv] -> [batch, seq_len or 1, Dv]."""
        # A body for a range of lengths must be lean at the longest.
        queries, overload = (1, "last_row") if last_row and self.longest > 1 else (self.longest, "")
        function = l1_function(
            queries, self.longest, self.hidden, dtype=self.graph.dtype, opset=OPSET, overload=overload
        )
        return self.op.call(function, q, k, v, kernel="l1", causal=0)

    def normalise(self, x: ir.Value) -> ir.Value:
        return self.graph.normalise(x, self.hidden)

    def windows(self, x: ir.Value) -> ir.Value:
        return self.graph.windows(x, self.length, self.hidden)

    def last_row(self, x: ir.Value) -> ir.Value:
        """[rows, H] -> [batch, H]: the last frame of each window."""
        if isinstance(self.length, int):
            return self.op.Gather(self.windows(x), self.length - 1, axis=1)
        return self.graph.rows(self.op.Slice(self.windows(x), [-1], [END], [1]), self.hidden)
