"""What the steps of a stream read of its source, through cross attention, and never change.

- `source_seen` [batch, capacity]: the source's steps that are no padding; of a source that is all padding, all of them;
  behind its end, none. A stream whose source is not there yet has none at all.
- `LAYER.source_keys` [batch, capacity, Z] and `LAYER.source_values` [batch, capacity, D]: by the step's place in the
  source, padding included, for the bias counts it. Values are zero behind the source's end, and unless for softmax at
  its padding.

exporters.paper.encode makes them.
"""

from __future__ import annotations

import numpy as np
from onnxscript import ir

from mega_deploy.arrays import Float64Array
from mega_deploy.config.paper import MegaConfig
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.paper.sequence_layout import Steps
from mega_deploy.exporters.paper.stream_attention import attend
from mega_deploy.exporters.state import State
from mega_deploy.signature import SOURCE_AXIS

SEEN, KEYS, VALUES = "source_seen", "source_keys", "source_values"


class Source:
    """The source of the streams of a batch.

    Args:
        graph: where the nodes go.
        state: where it is read.
        config: of the stack.
        steps: of this call.
        number: of each of them in its stream, from 0 on: [batch, steps].
        capacity: steps that a source can have, and a stream.
    """

    def __init__(
        self, graph: Graph, state: State, config: MegaConfig, steps: Steps, *, number: ir.Value, capacity: int
    ) -> None:
        self.graph, self.op, self.state, self.config = graph, graph.op, state, config
        self.steps, self.capacity = steps, capacity
        op = graph.op
        seen = state.read(SEEN, [capacity], [SOURCE_AXIS], ir.DataType.BOOL)
        place = graph.integers("source_place", np.arange(capacity) + capacity - 1)
        self.distance = op.Sub(place, op.Unsqueeze(number, [2]))  # [batch, steps, capacity]
        self.mask = self.per_key = None
        if config.attention == "softmax":
            self.mask = op.Where(
                op.Unsqueeze(seen, [1]),
                graph.constant("source_mask.seen", np.array(0.0)),
                graph.constant("source_mask.unseen", np.array(-np.inf)),
            )
        else:
            count = op.ReduceSum(op.Cast(seen, to=graph.dtype), [1], keepdims=1)
            self.per_key = op.Expand(op.Reciprocal(count), op.Shape(number))

    def attend(self, q: ir.Value, distances: Float64Array, name: str) -> ir.Value:
        """The weighted values of each query: q [rows, Z] -> [rows, D]; `distances` and `name` as of `Past.attend`."""
        op, graph, config = self.op, self.graph, self.config
        keys = self.state.read(f"{name}.{KEYS}", [self.capacity, config.z_dim], [SOURCE_AXIS, "z_dim"])
        values = self.state.read(f"{name}.{VALUES}", [self.capacity, config.embed_dim], [SOURCE_AXIS, "embed_dim"])
        bias = op.Gather(graph.constant("bias", distances), self.distance)
        bias = bias if self.mask is None else op.Add(bias, self.mask)
        q = graph.windows(q, self.steps.length, config.z_dim)
        single = self.steps.longest == 1
        context = attend(graph, config.attention, q, keys, values, bias=bias, per_key=self.per_key, single=single)
        return graph.rows(context, config.embed_dim)
