"""The graphs of a paper's model as a stream: its input, the layers over what is carried, and what the task makes of it.

A step takes one step of each stream, [batch, ...], and gives its output, [batch, ...]. A prefill takes many, [batch,
steps, ...], and gives the last one's output.
"""

from __future__ import annotations

import dataclasses

from onnxscript import ir

from mega_deploy.exporters.ema.carry import END
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.paper.embedding import TokenEmbedding
from mega_deploy.exporters.paper.fold import fold_stack
from mega_deploy.exporters.paper.outputs import scores
from mega_deploy.exporters.paper.steps import Steps
from mega_deploy.exporters.streams.paper.layers import LayerWriter
from mega_deploy.exporters.streams.paper.prefill import MOST_STEPS, ManySteps
from mega_deploy.exporters.streams.paper.step import OneStep
from mega_deploy.exporters.streams.step import BATCH, OPSET, State, StreamGraph
from mega_deploy.models.paper import MegaLanguageModel
from mega_deploy.paper.signatures import signature as whole_signature
from mega_deploy.signature import Dim, Range, Signature, TensorSpec

STEPS = "steps"
"""The axis of a prefill behind the batch."""


class StreamWriter:
    """Writes the graphs of a model.

    Args:
        model: trained, in eval mode; it stays as it is.
        window: steps of a chunk; without chunks all that a stream can hold.
        batch: streams that are served at once.
        dtype: of constants and arithmetic.

    Raises:
        InputError: from the methods: a weight exceeds the dtype.
    """

    def __init__(
        self, model: MegaLanguageModel, window: int, batch: Range, dtype: ir.DataType = ir.DataType.FLOAT
    ) -> None:
        self.model, self.config, self.window, self.batch, self.dtype = model, model.config, window, batch, dtype
        self.folded = fold_stack(model.decoder, window)
        self.limit = window if self.config.decoder.chunk_size is None else None
        whole = whole_signature(self.config, 1, batch)
        inputs, outputs = (tuple(map(_without_steps, side)) for side in (whole.inputs, whole.outputs))
        self.signature = Signature(inputs, outputs)
        """Of a step, without the state."""

    def step(self) -> StreamGraph:
        """The graph of one step."""
        graph = Graph("mega_step", self.dtype, OPSET)
        state = State(graph, self.batch)
        tokens = graph.op.Unsqueeze(graph.input("tokens", [BATCH], ir.DataType.INT64), [1])
        words = self._words(graph)
        steps = Steps(graph, 1, 1, None, words.keep(tokens))
        past = OneStep(graph, state, self.config.decoder, steps, window=self.window, limit=self.limit)
        x = LayerWriter(graph, self.folded, "decoder", past).write(words.write(tokens, steps))
        return self._finished(graph, state, steps.masked(x), self.signature.inputs)

    def prefill(self) -> StreamGraph:
        """The graph of many steps."""
        graph = Graph("mega_prefill", self.dtype, OPSET)
        op, state, most = graph.op, State(graph, self.batch), min(MOST_STEPS, self.window)
        tokens = graph.input("tokens", [BATCH, STEPS], ir.DataType.INT64)
        words, extent = self._words(graph), op.Shape(tokens)
        steps = Steps(graph, extent, most, None, words.keep(tokens))
        past = ManySteps(graph, state, self.config.decoder, steps, window=self.window, limit=self.limit)
        x = LayerWriter(graph, self.folded, "decoder", past).write(words.write(tokens, steps))
        x = graph.windows(steps.masked(x), extent, self.config.decoder.embed_dim)
        inputs = tuple(_with_steps(spec, most) for spec in self.signature.inputs)
        return self._finished(graph, state, op.Squeeze(op.Slice(x, [-1], [END], [1]), [1]), inputs)

    def _words(self, graph: Graph) -> TokenEmbedding:
        dim, tied, model = self.config.decoder.embed_dim, self.config.output.tied, self.model
        return TokenEmbedding(
            graph, model.embedding, model.table, scope="embedding", name="table", dim=dim, shared=tied
        )

    def _finished(self, graph: Graph, state: State, x: ir.Value, inputs: tuple[TensorSpec, ...]) -> StreamGraph:
        """With the scores of x [batch, D]."""
        (spec,) = self.signature.outputs
        found = scores(graph, x, self.model.output, self.model.table, "table")
        words = spec.dims[-1]
        assert isinstance(words, int)
        graph.output(found, spec.name, [BATCH, words])
        state.give()
        return StreamGraph(graph.model(), Signature(inputs, self.signature.outputs, state.specs))


def _without_steps(spec: TensorSpec) -> TensorSpec:
    """Of a whole sequence -> of one step."""
    kept: dict[str, Dim] = {a: dim for a, dim in zip(spec.axes, spec.dims, strict=True) if a != "seq_len"}
    return dataclasses.replace(spec, dims=tuple(kept.values()), axes=tuple(kept))


def _with_steps(spec: TensorSpec, most: int) -> TensorSpec:
    """Of one step -> of up to `most`."""
    batch, *sizes = spec.dims
    return dataclasses.replace(spec, dims=(batch, Range(1, most, most), *sizes), axes=(BATCH, STEPS, *spec.axes[1:]))
