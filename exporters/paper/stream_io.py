"""What stands before and behind the layers of a paper's model as a stream: its inputs, and the outputs of a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from onnxscript import ir

from mega_deploy.config.paper_signature import signature
from mega_deploy.config.tasks import PaperConfig
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.paper.embedding import TokenEmbedding
from mega_deploy.exporters.paper.heads import headed
from mega_deploy.exporters.paper.outputs import scores
from mega_deploy.exporters.paper.sequence_layout import Steps
from mega_deploy.exporters.paper.tasks import hugging_face_words, nonzero
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


class Frames:
    """The ends of bare layers; arguments and methods as of `Tokens`."""

    keep = None

    def __init__(self, graph: Graph, model: MegaEncoder, inputs: Values) -> None:
        self.graph, self.dim = graph, model.config.embed_dim
        (self.frames,) = inputs.values()

    def first(self, steps: Steps) -> ir.Value:
        del steps
        return self.graph.rows(self.frames, self.dim)

    def last(self, x: ir.Value, steps: Steps) -> ir.Value:
        del steps
        return x

    def outputs(self, x: ir.Value) -> Values:
        return {"features": x}


class Tokens:
    """The ends of fairseq's language model, and of the decoder of its translation.

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
            embedding, self.table, scope, self.name = (
                model.target_embedding,
                model.target_table,
                "target_embedding",
                "target_table",
            )
        else:
            embedding, self.table, scope, self.name = model.embedding, model.table, "embedding", "table"
        self.words = TokenEmbedding(graph, embedding, self.table, scope=scope, name=self.name, dim=dim, shared=shared)
        self.keep = self.words.keep(self.tokens)
        """Where there is no padding: bool [rows, steps]."""

    def first(self, steps: Steps) -> ir.Value:
        """The first layer's input: [rows * steps, D]."""
        return self.words.write(self.tokens, steps)

    def last(self, x: ir.Value, steps: Steps) -> ir.Value:
        """The last layer's output as the outputs read it: [rows * steps, D]."""
        return steps.masked(x)

    def outputs(self, x: ir.Value) -> Values:
        """By name, of one step of each row: x [rows, D] -> [rows, ...]."""
        (name,) = (spec.name for spec in signature(self.model.config, 1, Range(1, 1, 1)).outputs)
        return {name: scores(self.graph, x, self.model.output, self.table, self.name)}


class HuggingFace:
    """The ends of Hugging Face's classes; arguments and methods as of `Tokens`."""

    def __init__(self, graph: Graph, model: MegaHuggingFace, inputs: Values) -> None:
        self.graph, self.model, self.inputs = graph, model, inputs
        self.keep = nonzero(graph.op, inputs["attention_mask"])

    def first(self, steps: Steps) -> ir.Value:
        del steps  # padding is embedded like all else
        return hugging_face_words(self.graph, self.model, self.inputs)

    def last(self, x: ir.Value, steps: Steps) -> ir.Value:
        del steps
        return x

    def outputs(self, x: ir.Value) -> Values:
        one = Steps(self.graph, 1, 1, None, None)
        found = headed(self.graph, self.model, x, one, self.inputs["input_ids"])
        return {name: self.graph.op.Squeeze(value, [1]) for name, value in found.items()}


def ends(graph: Graph, model: StreamModel, inputs: Values) -> Frames | Tokens | HuggingFace:
    """Those of a model."""
    if isinstance(model, MegaEncoder):
        return Frames(graph, model, inputs)
    if isinstance(model, MegaHuggingFace):
        return HuggingFace(graph, model, inputs)
    return Tokens(graph, model, inputs)
