"""The inputs and outputs of a paper's model as a stream: what stands before its layers, and what behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from onnxscript import ir

from mega_deploy.config.paper_signature import signature
from mega_deploy.config.tasks import PaperConfig
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.paper.embedding import TokenEmbedding, hugging_face_words, nonzero
from mega_deploy.exporters.paper.sequence_layout import SequenceLayout
from mega_deploy.exporters.paper.tasks.heads import headed, scores
from mega_deploy.models.paper import MegaEncoder, MegaHuggingFace, MegaLanguageModel, MegaStack, MegaTranslation
from mega_deploy.signature import SOURCE_AXIS, Dim, Range, TensorSpec

Values = Mapping[str, ir.Value]
StreamModel = MegaEncoder | MegaLanguageModel | MegaTranslation | MegaHuggingFace
WHOLE = ("seq_len", "tgt_len")
"""The axis of a whole sequence that a stream goes along."""


def stack_of(model: StreamModel) -> tuple[str, MegaStack]:
    """The layers that a stream goes through, and their name in the model."""
    if isinstance(model, MegaEncoder | MegaHuggingFace):
        return "encoder", model.encoder
    return "decoder", model.decoder


def source_inputs(config: PaperConfig, steps: Dim, batch: Range) -> tuple[TensorSpec, ...]:
    """The inputs of a model that are not of the sequence that a stream goes along, but of what it reads."""
    inputs = (spec for spec in signature(config, steps, batch).inputs if not set(WHOLE) & set(spec.axes))
    renamed = {"src_len": SOURCE_AXIS, "encoder_len": SOURCE_AXIS}
    return tuple(dataclasses.replace(spec, axes=tuple(renamed.get(a, a) for a in spec.axes)) for spec in inputs)


class StreamIO(Protocol):
    """The inputs and outputs of one graph of a stream. Rows are streams, steps those of the call."""

    @property
    def attention_mask(self) -> ir.Value | None:
        """Which steps are no padding: bool [rows, steps]; None where nothing pads."""

    def first(self, layout: SequenceLayout) -> ir.Value:
        """The first layer's input: [rows * steps, D]."""

    def last(self, x: ir.Value, layout: SequenceLayout) -> ir.Value:
        """The last layer's output as the outputs read it: [rows * steps, D]."""

    def outputs(self, x: ir.Value) -> Values:
        """Outputs by name, of one step of each row: x [rows, D] -> [rows, ...]."""


class FramesIO:
    """Frames -> features of bare layers, which nothing pads.

    Args:
        graph: where the nodes go.
        model: trained.
        inputs: by name, [rows, steps, D].
    """

    attention_mask = None

    def __init__(self, graph: Graph, model: MegaEncoder, inputs: Values) -> None:
        self.graph, self.dim = graph, model.config.embed_dim
        (self.frames,) = inputs.values()

    def first(self, layout: SequenceLayout) -> ir.Value:
        del layout
        return self.graph.rows(self.frames, self.dim)

    def last(self, x: ir.Value, layout: SequenceLayout) -> ir.Value:
        del layout
        return x

    def outputs(self, x: ir.Value) -> Values:
        return {"features": x}


class TokensIO:
    """Tokens -> scores of fairseq's language model, and of the decoder of its translation.

    Args:
        graph: where the nodes go.
        model: trained.
        inputs: by name, [rows, steps].
    """

    def __init__(self, graph: Graph, model: MegaLanguageModel | MegaTranslation, inputs: Values) -> None:
        self.graph, self.model = graph, model
        (self.tokens,) = inputs.values()
        dim, shared = model.config.decoder.embed_dim, model.config.output.tied
        if isinstance(model, MegaTranslation):
            shared = shared or model.config.shared
            embedding, self.table = model.target_embedding, model.target_table
            scope, self.name = "target_embedding", "target_table"
        else:
            embedding, self.table, scope, self.name = model.embedding, model.table, "embedding", "table"
        self.words = TokenEmbedding(graph, embedding, self.table, scope=scope, name=self.name, dim=dim, shared=shared)
        self.attention_mask = self.words.attention_mask(self.tokens)

    def first(self, layout: SequenceLayout) -> ir.Value:
        return self.words.write(self.tokens, layout)

    def last(self, x: ir.Value, layout: SequenceLayout) -> ir.Value:
        return layout.masked(x)

    def outputs(self, x: ir.Value) -> Values:
        (name,) = (spec.name for spec in signature(self.model.config, 1, Range(1, 1, 1)).outputs)
        return {name: scores(self.graph, x, self.model.output, self.table, self.name)}


class HuggingFaceIO:
    """Ids -> what a class of Hugging Face's returns; padding is embedded like all else.

    Args:
        graph: where the nodes go.
        model: trained.
        inputs: by name, [rows, steps].
    """

    def __init__(self, graph: Graph, model: MegaHuggingFace, inputs: Values) -> None:
        self.graph, self.model, self.inputs = graph, model, inputs
        self.attention_mask = nonzero(graph, inputs["attention_mask"])

    def first(self, layout: SequenceLayout) -> ir.Value:
        del layout
        return hugging_face_words(self.graph, self.model, self.inputs)

    def last(self, x: ir.Value, layout: SequenceLayout) -> ir.Value:
        del layout
        return x

    def outputs(self, x: ir.Value) -> Values:
        one = SequenceLayout(self.graph, 1, 1, None, None)
        found = headed(self.graph, self.model, x, one, self.inputs["input_ids"])
        return {name: self.graph.op.Squeeze(value, [1]) for name, value in found.items()}


def stream_io(graph: Graph, model: StreamModel, inputs: Values) -> StreamIO:
    """The inputs and outputs of a model; the arguments are those of its class."""
    if isinstance(model, MegaEncoder):
        return FramesIO(graph, model, inputs)
    if isinstance(model, MegaHuggingFace):
        return HuggingFaceIO(graph, model, inputs)
    return TokensIO(graph, model, inputs)
