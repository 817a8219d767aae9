"""The heads of Hugging Face's classes, and which models need the first step alone."""

from __future__ import annotations

from onnxscript import ir
from torch import nn

from mega_deploy.config.tasks import ClassifierConfig, HuggingFaceConfig, PaperConfig
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.linear import as_array, as_linear
from mega_deploy.exporters.paper.outputs import by_table
from mega_deploy.exporters.paper.sequence_layout import SequenceLayout
from mega_deploy.models.paper import MegaHuggingFace


def computed_row(config: PaperConfig) -> int | None:
    """0 where a task reads the first step of the last layer alone, None where it reads all.

    A last layer with cross attention computes all of them even so.
    """
    match config:
        case ClassifierConfig():
            return 0 if config.pooling == "first" else None
        case HuggingFaceConfig() if config.encoder.cross_positions is None:
            return 0 if config.head in ("sequence_classification", "multiple_choice") else None
        case _:
            return None


def headed(
    graph: Graph, model: MegaHuggingFace, x: ir.Value, layout: SequenceLayout, ids: ir.Value
) -> dict[str, ir.Value]:
    """What a class returns.

    Args:
        graph: where the nodes go.
        model: trained.
        x: the last layer's output [rows * steps, D], or the first step's [rows, D] where that is all.
        layout: of the ids.
        ids: as they were given, [batch, steps] or [batch, choices, steps].
    """
    op, config = graph.op, model.config
    dim = config.encoder.embed_dim

    def first() -> ir.Value:
        return x if computed_row(config) is not None else layout.first(x, dim)

    match config.head:
        case "masked_lm" | "causal_lm":
            if config.dense:
                x = op.Tanh(_linear(graph, x, model.dense, "dense"))
            assert model.output_bias is not None
            bias = graph.constant("output_bias", as_array(model.output_bias))
            if config.tied:
                logits = by_table(graph, x, "words", model.words.weight, bias)
            else:
                logits = op.Add(_linear(graph, x, model.output, "output"), bias)
            return {"logits": graph.windows(logits, layout.length, config.vocab_size)}
        case "token_classification":
            logits = _linear(graph, x, model.output, "output")
            return {"logits": graph.windows(logits, layout.length, config.labels)}
        case "question_answering":
            both = graph.windows(_linear(graph, x, model.output, "output"), layout.length, 2)
            start, end = graph.split(both, 2)
            return {"start_logits": op.Squeeze(start, [2]), "end_logits": op.Squeeze(end, [2])}
        case "sequence_classification":
            hidden = op.Tanh(_linear(graph, first(), model.dense, "dense"))
            return {"logits": _linear(graph, hidden, model.output, "output")}
        case "multiple_choice":
            hidden = op.Tanh(_linear(graph, first(), model.pooler, "pooler"))
            return {"logits": op.Reshape(_linear(graph, hidden, model.output, "output"), op.Shape(ids, start=0, end=2))}
        case "model":
            found = {"last_hidden_state": graph.windows(x, layout.length, dim)}
            if config.pooler:
                found["pooler_output"] = op.Tanh(_linear(graph, first(), model.pooler, "pooler"))
            return found


def _linear(graph: Graph, x: ir.Value, layer: nn.Module, name: str) -> ir.Value:
    assert isinstance(layer, nn.Linear)
    return graph.linear(x, as_linear(layer), name)
