"""The source of a stream: what cross attention reads at each step, and no step changes.

- `source_seen` [batch, capacity]: the source's steps that are no padding; of a source that is all padding, all of them;
  behind its end, none. A stream whose source is not there yet has none at all.
- `LAYER.source_keys` [batch, capacity, Z] and `LAYER.source_values` [batch, capacity, D]: by the step's place in the
  source, padding included, for the bias counts it. Values are zero behind the source's end, and unless
  attention is normalised at its padding.

exporters.paper.stream.encode makes them.
"""

from __future__ import annotations

import numpy as np
from onnxscript import ir

from mega_deploy.arrays import Float64Array
from mega_deploy.config.paper import MegaConfig
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.paper.attention import weighted_values
from mega_deploy.exporters.paper.sequence_layout import SequenceLayout
from mega_deploy.exporters.paper.stream.scores import StreamScores
from mega_deploy.exporters.state import State
from mega_deploy.signature import SOURCE_AXIS

SEEN, KEYS, VALUES = "source_seen", "source_keys", "source_values"


class Source:
    """The source of the streams of a batch.

    Args:
        graph: where the nodes go.
        state: where it is read.
        config: of the stack.
        layout: of this call's steps.
        number: which step of its stream each of them is, from 0 on: [batch, steps].
        capacity: steps that a source can have, and a stream.
    """

    def __init__(
        self, graph: Graph, state: State, config: MegaConfig, layout: SequenceLayout, *, number: ir.Value, capacity: int
    ) -> None:
        self.graph, self.op, self.state, self.config = graph, graph.op, state, config
        self.layout, self.capacity = layout, capacity
        op = graph.op
        seen = state.read(SEEN, [capacity], [SOURCE_AXIS], ir.DataType.BOOL)
        place = graph.integers("source_place", np.arange(capacity) + capacity - 1)
        self.distance = op.Sub(place, op.Unsqueeze(number, [2]))  # [batch, steps, capacity]
        self.mask = self.per_key = None
        if config.attention_traits.normalised:
            self.mask = op.Where(
                op.Unsqueeze(seen, [1]),
                graph.constant("source_mask.seen", np.array(0.0)),
                graph.constant("source_mask.unseen", np.array(-np.inf)),
            )
        if config.attention_traits.divides_by_keys:
            count = op.ReduceSum(op.Cast(seen, to=graph.dtype), [1], keepdims=1)
            self.per_key = op.Expand(op.Reciprocal(count), op.Shape(number))

    def attend(self, q: ir.Value, distances: Float64Array, name: str) -> ir.Value:
        """The weighted values of each query: q [rows, Z] -> [rows, D]; `distances` and `name` as in `Past.attend`."""
        op, graph, config = self.op, self.graph, self.config
        keys = self.state.read(f"{name}.{KEYS}", [self.capacity, config.z_dim], [SOURCE_AXIS, "z_dim"])
        values = self.state.read(f"{name}.{VALUES}", [self.capacity, config.embed_dim], [SOURCE_AXIS, "embed_dim"])
        bias = op.Gather(graph.constant("bias", distances), self.distance)
        bias = bias if self.mask is None else op.Add(bias, self.mask)
        q = graph.windows(q, self.layout.length, config.z_dim)
        scores = StreamScores(graph, bias, self.per_key, single=self.layout.longest == 1)
        context = weighted_values(graph, config.attention, q, keys, values, scores=scores)
        return graph.rows(context, config.embed_dim)
