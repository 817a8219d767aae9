"""One step of streams of the paper's models: what they carry, and how a step reads and writes it.

- `steps_seen` [batch]: how many steps each stream of the batch has had. A step's position is that modulo the window:
  its place in its chunk, or of a model without chunks in the whole stream, whose window is all that it can hold.
- `LAYER.average` [batch, 2, D, N]: the moving average's states (exporters.ema.state), which reach back to
  the stream's first step; a truncation of the trained model's is not followed, as fairseq's own decoding does not.
- `LAYER.keys` [batch, window, Z] and `LAYER.values` [batch, window, V]: slot by position. A chunk that begins drops the
  one before by position alone: the bias of slots ahead is -infinity, whatever they still hold. Keys are the shared
  representation z where attention is shift-invariant (exporters.paper.fold, rule 2).
- `padding` [batch, window], of models of tokens whose attention is normalised: which slots hold a token that pads.
  Elsewhere it is enough that its values are zero.

As in exporters.state every state has one reader, on which its new value depends, to take its place.
"""

from __future__ import annotations

import numpy as np
from onnxscript import ir

from mega_deploy.arrays import Float64Array
from mega_deploy.config.paper import MegaConfig
from mega_deploy.exporters.ema.kernel import DecaySum
from mega_deploy.exporters.ema.state import PARTS, carried
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.paper.attention import weighted_values
from mega_deploy.exporters.paper.sequence_layout import SequenceLayout
from mega_deploy.exporters.paper.stream.scores import StreamScores, causal, inverse_key_counts
from mega_deploy.exporters.state import State


class OneStep:
    """The past of a single step; rows are streams.

    Args:
        graph: where the nodes go.
        state: where what is carried is taken and put.
        config: of the stack.
        layout: of this call's steps, one of each stream.
        window: slots for keys and values.
        limit: steps that a stream can have, None for any number.
    """

    def __init__(
        self, graph: Graph, state: State, config: MegaConfig, layout: SequenceLayout, *, window: int, limit: int | None
    ) -> None:
        self.graph, self.op, self.state, self.config = graph, graph.op, state, config
        self.layout, self.window = layout, window
        op = graph.op
        one, size = graph.integers("one_step", np.array(1)), graph.integers("window", np.array(window))
        seen = state.take("steps_seen", [], ir.DataType.INT64)
        now = op.Add(seen, one)
        state.put(seen, now, limit=limit)
        before = op.Sub(now, one)
        self.number = op.Unsqueeze(before, [1])
        """Which step of its stream each one is, from 0 on: [batch, 1]."""
        position = op.Mod(before, size)  # [batch]
        stream = op.Range(0, op.Squeeze(op.Shape(now), [0]), 1)
        place = op.Unsqueeze(position, [1])  # [batch, 1]
        self.slots = op.Concat(op.Unsqueeze(stream, [1]), place, axis=1)  # [batch, 2]
        self.distance = op.Sub(graph.integers("slot_beyond", np.arange(window) + window - 1), place)  # [batch, window]
        self.mask = self.per_key = None
        if config.attention_traits.divides_by_keys:
            self.per_key = op.Unsqueeze(op.Gather(inverse_key_counts(graph, window), position), [1])  # [batch, 1]
        if config.attention_traits.normalised and layout.attention_mask is not None:
            self.mask = self._padding(layout.attention_mask, place)

    def _padding(self, attention_mask: ir.Value, place: ir.Value) -> ir.Value:
        """What is added to scores for slots that hold padding: [batch, window].

        A step that sees padding alone attends to it, as in the trained form.
        """
        op, graph = self.op, self.graph
        old = self.state.take("padding", [self.window], ir.DataType.BOOL)
        padding = op.ScatterND(old, self.slots, op.Not(op.Squeeze(attention_mask, [1])))
        self.state.put(old, padding, ["window"])
        kept = op.And(op.LessOrEqual(graph.integers("slot", np.arange(self.window)), place), op.Not(padding))
        some = op.ReduceMax(op.Cast(kept, to=ir.DataType.INT64), [1])  # [batch, 1]
        masked = op.And(padding, op.Greater(some, graph.integers("none", np.array(0))))
        unseen = graph.constant("mask.padding", np.array(-np.inf))
        return op.Where(masked, unseen, graph.constant("mask.seen", np.array(0.0)))

    def average(self, n: ir.Value, ema: DecaySum, name: str) -> ir.Value:
        """The moving average at each stream's step: n [batch, D] -> [batch, D]."""
        op, graph = self.op, self.graph
        old = self.state.take(f"{name}.average", [PARTS, *ema.decay.shape])
        gained = op.Unsqueeze(self.layout.masked(n), [1, 3])
        h, new = carried(graph, old, graph.constant("leak", 1 - ema.decay), gained)
        self.state.put(old, new, ["parts", "embed_dim", "ema_dim"])
        return op.ReduceSum(op.Mul(h, graph.constant("weight", ema.weight)), [2], keepdims=0)

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value, distances: Float64Array, name: str) -> ir.Value:
        """The weighted values of the slots: q [batch, Z], k [batch, Z], v [batch, V] -> [batch, V]."""
        op, graph, config = self.op, self.graph, self.config
        keys = self._cached(f"{name}.keys", k, config.z_dim, "z_dim")
        v = v if config.attention_traits.normalised else self.layout.masked(v)
        values = self._cached(f"{name}.values", v, config.hidden_dim, "hidden_dim")
        bias = op.Gather(graph.constant("bias", causal(distances)), self.distance)
        bias = bias if self.mask is None else op.Add(bias, self.mask)
        q = op.Unsqueeze(q, [1])
        scores = StreamScores(graph, op.Unsqueeze(bias, [1]), self.per_key, single=True)
        context = weighted_values(graph, config.attention, q, keys, values, scores=scores)
        return op.Squeeze(context, [1])

    def _cached(self, name: str, new: ir.Value, features: int, axis: str) -> ir.Value:
        """All slots, with this step in its own: [batch, window, features]."""
        old = self.state.take(name, [self.window, features])
        slots = self.op.ScatterND(old, self.slots, new)
        self.state.put(old, slots, ["window", axis])
        return slots
