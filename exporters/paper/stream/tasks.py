"""The graphs of a paper's model as a stream: its input, the layers over what is carried, and what the task makes of it.

A step takes one step of each stream, [batch, ...], and gives its output, [batch, ...]. A prefill takes many, [batch,
steps, ...], and gives the last one's output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from onnxscript import ir

from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.paper_signature import signature as whole_signature
from mega_deploy.errors import OptionError
from mega_deploy.exporters.graph import END, Graph
from mega_deploy.exporters.paper.fold import fold_stack
from mega_deploy.exporters.paper.layer import LayerWriter
from mega_deploy.exporters.paper.sequence_layout import SequenceLayout
from mega_deploy.exporters.paper.stream.context import StreamContext
from mega_deploy.exporters.paper.stream.prefill import MOST_STEPS, ManySteps
from mega_deploy.exporters.paper.stream.source import Source
from mega_deploy.exporters.paper.stream.step import OneStep
from mega_deploy.exporters.paper.stream.stream_io import (
    WHOLE,
    StreamModel,
    Values,
    source_inputs,
    stack_of,
    stream_io,
)
from mega_deploy.exporters.state import BATCH, OPSET, State, StreamGraph
from mega_deploy.signature import Dim, Range, Signature, TensorSpec

STEPS = "steps"
"""The axis of a prefill behind the batch."""


class StreamWriter:
    """Writes the graphs of a model.

    Args:
        model: trained, in eval mode; it stays as it is.
        length: steps that a stream can have where nothing else ends it: attention over all steps, without chunks, or
            over a source, which can have as many.
        batch: streams that are served at once.
        dtype: of constants and arithmetic.

    Raises:
        InputError: from the methods: a weight exceeds the dtype.
    """

    def __init__(self, model: StreamModel, length: int, batch: Range, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
        self.model, self.batch, self.dtype = model, batch, dtype
        whole = whole_signature(model.config, 1, batch)
        read = {spec.name for spec in source_inputs(model.config, 1, batch)}
        inputs = (_without_steps(spec) for spec in whole.inputs if spec.name not in read)
        self.signature = Signature(tuple(inputs), tuple(map(_without_steps, whole.outputs)))
        """What a step takes and gives, without the state."""
        self.name, stack = stack_of(model)
        self.window, self.limit = reach(stack.config, length)
        self.folded = fold_stack(stack, self.limit or self.window)

    def step(self) -> StreamGraph:
        """The graph of one step."""
        graph = Graph("mega_step", self.dtype, OPSET)
        given = self._inputs(graph, [BATCH])
        rows = {name: graph.op.Unsqueeze(value, [1]) for name, value in given.items()}
        return self._written(graph, rows, OneStep, 1)

    def prefill(self) -> StreamGraph:
        """The graph of many steps."""
        graph = Graph("mega_prefill", self.dtype, OPSET)
        return self._written(graph, self._inputs(graph, [BATCH, STEPS]), ManySteps, min(MOST_STEPS, self.window))

    def _inputs(self, graph: Graph, axes: Sequence[str]) -> Values:
        """The inputs by name: tokens [*axes], frames [*axes, D]."""

        def taken(spec: TensorSpec) -> ir.Value:
            sizes = [dim for dim in spec.dims[1:] if isinstance(dim, int)]
            kind = None if spec.dtype == "float32" else ir.DataType.from_numpy(np.dtype(spec.dtype))
            return graph.input(spec.name, [*axes, *sizes], kind)

        return {spec.name: taken(spec) for spec in self.signature.inputs}

    def _written(self, graph: Graph, given: Values, past: type[OneStep | ManySteps], most: int) -> StreamGraph:
        """The graph of up to `most` steps, inputs [batch, steps], of which the last gives the outputs."""
        op, state, config = graph.op, State(graph, self.batch), self.folded.config
        single = past is OneStep
        length = 1 if single else op.Shape(next(iter(given.values())), start=0, end=2)
        io = stream_io(graph, self.model, given)
        layout = SequenceLayout(graph, length, most, None, io.attention_mask)
        seen = past(graph, state, config, layout, window=self.window, limit=self.limit)
        source = None
        if config.cross_positions is not None:
            assert self.limit is not None
            source = Source(graph, state, config, layout, number=seen.number, capacity=self.limit)
        context = StreamContext(graph, config, seen, source)
        x = io.last(LayerWriter(graph, self.folded, self.name).write(io.first(layout), context), layout)
        if not single:
            x = op.Squeeze(op.Slice(graph.windows(x, length, config.embed_dim), [-1], [END], [1]), [1])
        found = io.outputs(x)
        for spec in self.signature.outputs:
            graph.output(found[spec.name], spec.name, [BATCH, *(dim for dim in spec.dims[1:] if isinstance(dim, int))])
        state.give()
        inputs = self.signature.inputs
        inputs = inputs if single else tuple(_with_steps(spec, most) for spec in inputs)
        return StreamGraph(graph.model(), Signature(inputs, self.signature.outputs, state.specs))


def reach(config: MegaConfig, length: int) -> tuple[int, int | None]:
    """Steps that attention reaches back at most, and that a stream can have, None for any number."""
    if config.cross_positions is None and config.chunk_size is not None:
        return config.chunk_size, None
    return min(length, config.chunk_size or length), length


def check_stream(model: StreamModel) -> None:
    """Refuse a model that has no stream.

    Raises:
        OptionError: its layers look ahead, or an output is of a whole sequence.
    """
    _, stack = stack_of(model)
    if stack.config.bidirectional or not stack.config.is_causal:
        raise OptionError(
            "this model has no stream: it is not causal, every step looks at later ones; export it with --form window"
        )
    outputs = whole_signature(model.config, 1, Range(1, 1, 1)).outputs
    if summaries := [spec.name for spec in outputs if not set(WHOLE) & set(spec.axes)]:
        raise OptionError(
            f"this model has no stream: {summaries[0]} is of a whole sequence, not of its steps; export it with "
            "--form window"
        )


def _without_steps(spec: TensorSpec) -> TensorSpec:
    """A tensor of a whole sequence -> the one of a single step."""
    kept: dict[str, Dim] = {a: dim for a, dim in zip(spec.axes, spec.dims, strict=True) if a not in WHOLE}
    return dataclasses.replace(spec, dims=tuple(kept.values()), axes=tuple(kept))


def _with_steps(spec: TensorSpec, most: int) -> TensorSpec:
    """A tensor of one step -> the one of up to `most`."""
    batch, *sizes = spec.dims
    return dataclasses.replace(spec, dims=(batch, Range(1, most, most), *sizes), axes=(BATCH, STEPS, *spec.axes[1:]))
