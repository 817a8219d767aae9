"""The graph that takes the source of a stream once, and gives what exporters.paper.stream.source reads of it."""

from __future__ import annotations

import numpy as np
from onnxscript import ir

from mega_deploy.exporters.paper.ops import memory_keys_and_values
from mega_deploy.exporters.paper.padding import reaching_padding
from mega_deploy.exporters.paper.stream.source import KEYS, SEEN, VALUES
from mega_deploy.exporters.paper.stream.stream_io import StreamModel, source_inputs, stack_of
from mega_deploy.exporters.paper.tasks.writer import Task
from mega_deploy.exporters.state import BATCH, StreamGraph
from mega_deploy.signature import SOURCE_AXIS, Range, Signature, TensorSpec


def encode_graph(
    model: StreamModel, capacity: int, batch: Range, dtype: ir.DataType = ir.DataType.FLOAT
) -> StreamGraph:
    """Write the graph for sources of up to `capacity` steps: those of fairseq's encoder, or of hidden states.

    Args:
        model: trained, in eval mode, with cross attention.
        capacity: steps that a source can have.
        batch: sources that are taken at once.
        dtype: of constants and arithmetic.

    Raises:
        InputError: a weight exceeds the dtype.
    """
    model = reaching_padding(model, capacity)
    inputs = source_inputs(model.config, Range(1, capacity, capacity), batch)
    task = Task(model, Signature(inputs, ()), dtype=dtype)
    memory, graph, name = task.memory(), task.graph, stack_of(model)[0]
    folded = task.writers[name].folded
    config, layout = folded.config, memory.layout
    assert layout.attention_mask is not None and isinstance(layout.length, ir.Value)
    op = graph.op
    missing = op.Sub(graph.sizes(capacity), graph.frames(layout.length))
    given: list[TensorSpec] = []

    def give(called: str, value: ir.Value, dtype: ir.DataType, **sizes: int) -> None:
        """A value [batch, steps, ...], filled up to the capacity; TensorRT's parser has to be told that it is."""
        full = op.Pad(value, op.Concat(graph.sizes(0), missing, axis=0), None, [1])
        graph.output(
            op.Reshape(full, graph.sizes(0, capacity, *sizes.values())),
            called,
            [BATCH, capacity, *sizes.values()],
            dtype,
        )
        axes = (BATCH, SOURCE_AXIS, *sizes)
        given.append(TensorSpec(called, dtype.numpy().name, (batch, capacity, *sizes.values()), axes))

    some = op.ReduceMax(op.Cast(layout.attention_mask, to=ir.DataType.INT64), [1], keepdims=1)  # [batch, 1]
    nothing = op.Equal(some, graph.integers("none", np.array(0)))
    give(SEEN, op.Or(layout.attention_mask, nothing), ir.DataType.BOOL)
    for index, layer in enumerate(folded.layers):
        layer_name = f"{name}.layers.{index}"
        assert layer.cross is not None
        with graph.scope(layer_name), graph.scope("cross_attention"):
            key, value = memory_keys_and_values(graph, memory.x, layer.cross, config)
        value = value if config.attention_traits.normalised else layout.masked(value)
        key = graph.windows(key, layout.length, config.z_dim)
        value = graph.windows(value, layout.length, config.embed_dim)
        give(f"{layer_name}.{KEYS}", key, dtype, z_dim=config.z_dim)
        give(f"{layer_name}.{VALUES}", value, dtype, embed_dim=config.embed_dim)
    return StreamGraph(graph.model(), Signature(inputs, tuple(given)))
