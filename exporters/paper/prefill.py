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
from mega_deploy.exporters.paper.sequence_layout import Steps
from mega_deploy.exporters.paper.stream_attention import attend, causal, every_count
from mega_deploy.exporters.state import State

MOST_STEPS = 64
"""Of one call: the powers of the decays grow with it. Longer inputs take several calls."""
FIRST, LAST = int(np.iinfo(np.int64).min), -1


class ManySteps:
    """The past of the steps of a call; rows are the steps of each stream.

    Args:
        graph: where the nodes go.
        state: as in `OneStep`.
        config: of the stack.
        steps: of this call; `longest` of them at most, and no more than the window.
        window: slots for keys and values.
        limit: steps that a stream can have, None for any number.
    """

    def __init__(
        self, graph: Graph, state: State, config: MegaConfig, steps: Steps, *, window: int, limit: int | None
    ) -> None:
        self.graph, self.op, self.state, self.config = graph, graph.op, state, config
        self.steps, self.window = steps, window
        assert isinstance(steps.length, ir.Value)
        op, self.extent = graph.op, steps.length  # batch, steps
        self.count = graph.frames(steps.length)
        size = graph.integers("window", np.array(window))
        seen = state.take("steps_seen", [], ir.DataType.INT64)
        state.put(seen, op.Add(seen, op.Squeeze(self.count, [0])), limit=limit)
        seen = op.Unsqueeze(seen, [1])
        number = self.number = op.Add(seen, op.Range(0, op.Squeeze(self.count, [0]), 1))
        """Of each stream's steps, from 0 on: [batch, steps]."""
        position = op.Mod(number, size)
        stream = op.Range(0, op.Squeeze(op.Slice(self.extent, [0], [1]), [0]), 1)
        stream = op.Expand(op.Unsqueeze(stream, [1, 2]), op.Concat(self.extent, graph.sizes(1), axis=0))
        self.slots = op.Concat(stream, op.Unsqueeze(position, [2]), axis=2)  # [batch, steps, 2]
        # The slots hold a chunk up to the position of the first new step; behind it is what nobody sees.
        slot = graph.integers("slot", np.arange(window))
        first = op.Mod(seen, size)  # [batch, 1]
        none = graph.integers("no_step", np.array(-1))
        old = op.Where(op.Less(slot, first), op.Add(op.Sub(seen, first), slot), none)  # [batch, window]
        keys = op.Unsqueeze(op.Concat(old, number, axis=1), [1])  # [batch, 1, window + steps]
        places = op.Unsqueeze(op.Concat(op.Expand(slot, op.Shape(old)), position, axis=1), [1])
        queries, here = op.Unsqueeze(number, [2]), op.Unsqueeze(position, [2])  # [batch, steps, 1]
        self.distance = op.Add(op.Sub(places, here), graph.integers("nearest", np.array(window - 1)))
        # A key is seen if it is neither later nor of an earlier chunk.
        unseen = op.Or(op.Greater(keys, queries), op.Less(keys, op.Sub(queries, here)))
        if steps.keep is not None and config.attention == "softmax":
            was = state.take("padding", [window], ir.DataType.BOOL)
            pads = op.Not(steps.keep)
            state.put(was, op.ScatterND(was, self.slots, pads), ["window"])
            padding = op.Unsqueeze(op.Concat(was, pads, axis=1), [1])
            # A step that sees padding alone attends to it, as in the trained form.
            kept = op.Cast(op.Not(op.Or(unseen, padding)), to=ir.DataType.INT64)
            kept = op.Greater(op.ReduceMax(kept, [2]), graph.integers("none", np.array(0)))  # [batch, steps, 1]
            unseen = op.Or(unseen, op.And(padding, kept))
        self.mask = op.Where(
            unseen, graph.constant("mask.unseen", np.array(-np.inf)), graph.constant("mask.seen", np.array(0.0))
        )
        self.per_key = None
        if config.attention != "softmax":
            self.per_key = op.Gather(every_count(graph, window), position)  # [batch, steps]

    def average(self, n: ir.Value, ema: DecaySum, name: str) -> ir.Value:
        """n: [batch * steps, D] -> the same."""
        op, graph, (dim, states) = self.op, self.graph, ema.decay.shape
        most = self.steps.longest
        old = self.state.take(f"{name}.average", [PARTS, dim, states])
        x = graph.windows(self.steps.masked(n), self.extent, dim)
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
        """q: [batch * steps, Z], k: [batch * steps, Z], v: [batch * steps, V] -> [batch * steps, V]."""
        op, graph, config = self.op, self.graph, self.config
        keys = self._seen(f"{name}.keys", k, config.z_dim, "z_dim")
        v = v if config.attention == "softmax" else self.steps.masked(v)
        values = self._seen(f"{name}.values", v, config.hidden_dim, "hidden_dim")
        bias = op.Add(op.Gather(graph.constant("bias", causal(distances)), self.distance), self.mask)
        q = graph.windows(q, self.extent, config.z_dim)
        context = attend(graph, config.attention, q, keys, values, bias=bias, per_key=self.per_key, single=False)
        return graph.rows(context, config.hidden_dim)

    def _seen(self, name: str, new: ir.Value, features: int, axis: str) -> ir.Value:
        """The slots as they were, and this call's steps: [batch, window + steps, features]."""
        op = self.op
        old = self.state.take(name, [self.window, features])
        new = self.graph.windows(new, self.extent, features)
        self.state.put(old, op.ScatterND(old, self.slots, new), ["window", axis])
        return op.Concat(old, new, axis=1)
