"""Many steps of streams of the paper's models in one call, from any position on, with the state that steps would leave.

Queries see the slots of their own chunk as they were and the steps of the call up to themselves, both by their numbers,
so that a call may begin and end anywhere in a chunk, and streams of one batch anywhere apart. The moving average is the
convolution of the call's steps and what the state before them decays to:

    y_t = sum_(s <= t) k[t - s] n_s + sum_n weight_n decay_n^(t + 1) h_n

and T steps leave what exporters.ema.state tells, with 1 - decay^T = (1 - decay) sum_t decay^t.
"""

from __future__ import annotations

import numpy as np
from onnxscript import ir

from mega_deploy.arrays import Float64Array
from mega_deploy.config.paper import MegaConfig
from mega_deploy.exporters.ema.blocks import normal
from mega_deploy.exporters.ema.kernel import DecaySum, Kernel
from mega_deploy.exporters.ema.nodes import convolution
from mega_deploy.exporters.ema.state import PARTS, carried, last
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.paper.attention import weighted_values
from mega_deploy.exporters.paper.sequence_layout import SequenceLayout
from mega_deploy.exporters.paper.stream.scores import StreamScores, causal, inverse_key_counts
from mega_deploy.exporters.state import State

MOST_STEPS = 64
"""Steps of one call: the powers of the decays grow with it. Longer inputs take several calls."""
FIRST, LAST = int(np.iinfo(np.int64).min), -1


class ManySteps:
    """The past of the steps of a call; rows are the steps of each stream.

    Args:
        graph: where the nodes go.
        state: as in `OneStep`.
        config: of the stack.
        layout: of this call's steps; `longest` of them at most, and no more than the window.
        window: slots for keys and values.
        limit: steps that a stream can have, None for any number.
    """

    def __init__(
        self, graph: Graph, state: State, config: MegaConfig, layout: SequenceLayout, *, window: int, limit: int | None
    ) -> None:
        self.graph, self.op, self.state, self.config = graph, graph.op, state, config
        self.layout, self.window = layout, window
        assert isinstance(layout.length, ir.Value)
        op, self.extent = graph.op, layout.length  # batch, steps
        self.count = graph.frames(layout.length)
        size = self.size = graph.integers("window", np.array(window))
        seen = state.take("steps_seen", [], ir.DataType.INT64)
        state.put(seen, op.Add(seen, op.Squeeze(self.count, [0])), limit=limit)
        seen = op.Unsqueeze(seen, [1])
        number = self.number = op.Add(seen, op.Range(0, op.Squeeze(self.count, [0]), 1))
        """Which step of its stream each one is, from 0 on: [batch, steps]."""
        position = op.Mod(number, size)
        stream = op.Range(0, op.Squeeze(op.Slice(self.extent, [0], [1]), [0]), 1)
        stream = op.Expand(op.Unsqueeze(stream, [1, 2]), op.Concat(self.extent, graph.sizes(1), axis=0))
        self.slots = op.Concat(stream, op.Unsqueeze(position, [2]), axis=2)  # [batch, steps, 2]
        self.distance, unseen = self._seen_keys(seen, position)
        if layout.attention_mask is not None and config.attention_traits.normalised:
            unseen = self._without_padding(unseen, layout.attention_mask)
        self.mask = op.Where(
            unseen, graph.constant("mask.unseen", np.array(-np.inf)), graph.constant("mask.seen", np.array(0.0))
        )
        """What is added to scores: [batch, steps, window + steps]."""
        self.per_key = None
        if config.attention_traits.divides_by_keys:
            self.per_key = op.Gather(inverse_key_counts(graph, window), position)  # [batch, steps]

    def _seen_keys(self, seen: ir.Value, position: ir.Value) -> tuple[ir.Value, ir.Value]:
        """How far the keys are from the queries, as a place in the bias, and which are not seen.

        Args:
            seen: steps of each stream before the call, [batch, 1].
            position: of each new step in its chunk, [batch, steps].

        Returns:
            Both [batch, steps, window + steps]: the slots, then the call's own steps.
        """
        op, graph = self.op, self.graph
        # The slots hold a chunk up to the position of the first new step; behind it is what nobody sees.
        slot = graph.integers("slot", np.arange(self.window))
        first = op.Mod(seen, self.size)  # [batch, 1]
        none = graph.integers("no_step", np.array(-1))
        old = op.Where(op.Less(slot, first), op.Add(op.Sub(seen, first), slot), none)  # [batch, window]
        keys = op.Unsqueeze(op.Concat(old, self.number, axis=1), [1])  # [batch, 1, window + steps]
        places = op.Unsqueeze(op.Concat(op.Expand(slot, op.Shape(old)), position, axis=1), [1])
        queries, here = op.Unsqueeze(self.number, [2]), op.Unsqueeze(position, [2])  # [batch, steps, 1]
        distance = op.Add(op.Sub(places, here), graph.integers("nearest", np.array(self.window - 1)))
        # A key is seen if it is neither later nor of an earlier chunk.
        return distance, op.Or(op.Greater(keys, queries), op.Less(keys, op.Sub(queries, here)))

    def _without_padding(self, unseen: ir.Value, attention_mask: ir.Value) -> ir.Value:
        """Which keys are not seen, padding included, but for steps that see padding alone, as in the trained form."""
        op, graph, state = self.op, self.graph, self.state
        was = state.take("padding", [self.window], ir.DataType.BOOL)
        pads = op.Not(attention_mask)
        state.put(was, op.ScatterND(was, self.slots, pads), ["window"])
        padding = op.Unsqueeze(op.Concat(was, pads, axis=1), [1])
        kept = op.Cast(op.Not(op.Or(unseen, padding)), to=ir.DataType.INT64)
        kept = op.Greater(op.ReduceMax(kept, [2]), graph.integers("none", np.array(0)))  # [batch, steps, 1]
        return op.Or(unseen, op.And(padding, kept))

    def average(self, n: ir.Value, ema: DecaySum, name: str) -> ir.Value:
        """The moving average at each step: n [batch * steps, D] -> [batch * steps, D]."""
        op, graph, (dim, states) = self.op, self.graph, ema.decay.shape
        most = self.layout.longest
        old = self.state.take(f"{name}.average", [PARTS, dim, states])
        x = graph.windows(self.layout.masked(n), self.extent, dim)
        inside = convolution(
            graph, op.Transpose(x, perm=[0, 2, 1]), Kernel(ema.taps(most), 0, 0.0)
        )  # [batch, D, steps]
        every = graph.constant("powers", normal(ema.decay[:, None] ** np.arange(most)[:, None]))  # [D, most, N]
        powers = op.Slice(every, [0], self.count, [1])
        read = op.Mul(last(graph, old), graph.constant("readout", ema.weight * ema.decay))
        before = op.MatMul(powers, op.Transpose(read, perm=[1, 2, 0]))  # [D, steps, batch]
        backwards = op.Slice(op.Transpose(x, perm=[2, 0, 1]), [LAST], [FIRST], [2], [-1])  # [D, batch, steps]
        gained = op.Transpose(op.MatMul(backwards, powers), perm=[1, 0, 2])  # [batch, D, N]
        leak = op.Mul(op.ReduceSum(powers, [1], keepdims=0), graph.constant("leak", 1 - ema.decay))
        _, new = carried(graph, old, leak, op.Unsqueeze(gained, [1]))
        self.state.put(old, new, ["parts", "embed_dim", "ema_dim"])
        y = op.Add(op.Transpose(inside, perm=[0, 2, 1]), op.Transpose(before, perm=[2, 1, 0]))
        return graph.rows(y, dim)

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value, distances: Float64Array, name: str) -> ir.Value:
        """The weighted values: q and k [batch * steps, Z], v [batch * steps, V] -> [batch * steps, V]."""
        op, graph, config = self.op, self.graph, self.config
        keys = self._cached(f"{name}.keys", k, config.z_dim, "z_dim")
        v = v if config.attention_traits.normalised else self.layout.masked(v)
        values = self._cached(f"{name}.values", v, config.hidden_dim, "hidden_dim")
        bias = op.Add(op.Gather(graph.constant("bias", causal(distances)), self.distance), self.mask)
        q = graph.windows(q, self.extent, config.z_dim)
        scores = StreamScores(graph, bias, self.per_key, single=False)
        context = weighted_values(graph, config.attention, q, keys, values, scores=scores)
        return graph.rows(context, config.hidden_dim)

    def _cached(self, name: str, new: ir.Value, features: int, axis: str) -> ir.Value:
        """The slots as they were, and this call's steps: [batch, window + steps, features]."""
        op = self.op
        old = self.state.take(name, [self.window, features])
        new = self.graph.windows(new, self.extent, features)
        self.state.put(old, op.ScatterND(old, self.slots, new), ["window", axis])
        return op.Concat(old, new, axis=1)
