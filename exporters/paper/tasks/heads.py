"""What a task makes of the last layer's output: scores of the vocabulary, and the heads of Hugging Face's classes."""

from __future__ import annotations

import numpy as np
import torch
from onnxscript import ir
from torch import nn

from mega_deploy.config.tasks import ClassifierConfig, HuggingFaceConfig, PaperConfig
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.linear import Linear, as_array, as_linear, join
from mega_deploy.exporters.paper.embedding import tied_table
from mega_deploy.exporters.paper.sequence_layout import SequenceLayout
from mega_deploy.models.paper import MegaHuggingFace
from mega_deploy.models.paper.embedding import AdaptiveEmbedding
from mega_deploy.models.paper.output import AdaptiveSoftmax, Output


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


def scores(graph: Graph, x: ir.Value, output: Output | AdaptiveSoftmax, table: nn.Module, table_name: str) -> ir.Value:
    """Logits, or an adaptive softmax's logarithms of probabilities: [rows, D] -> [rows, words].

    Args:
        graph: where the nodes go.
        x: the last layer's output.
        output: trained.
        table: of the embedding, which a tied output reads.
        table_name: its name in the trained form.
    """
    if isinstance(output, AdaptiveSoftmax):
        return _adaptive(graph, x, output, table, table_name)
    if output.linear is not None:
        return graph.linear(x, as_linear(output.linear), "output")
    assert isinstance(table, nn.Embedding)
    return by_table(graph, x, table_name, table.weight)


def by_table(graph: Graph, x: ir.Value, name: str, weight: torch.Tensor, bias: ir.Value | None = None) -> ir.Value:
    """x [rows, width] with the words of a table [words, width] -> [rows, words]."""
    factors = (x, tied_table(graph, name, weight))
    return graph.op.Gemm(*factors, *(() if bias is None else (bias,)), transB=1)


def _adaptive(graph: Graph, x: ir.Value, output: AdaptiveSoftmax, table: nn.Module, table_name: str) -> ir.Value:
    """One layer of x makes the head's scores of bands and the narrow inputs of all tails; words may be a tied table."""
    op, tails = graph.op, output.bands.out_features
    embedding = table if isinstance(table, AdaptiveEmbedding) else None
    narrow = [_narrow(output, embedding, band) for band in range(tails)]
    widths = [layer.weight.shape[1] for layer in narrow]
    if output.words is None:
        assert embedding is not None
        first = by_table(graph, x, f"{table_name}.tables.0", embedding.band(0)[0])
        joint = graph.linear(x, join(as_linear(output.bands), *narrow), "joint")
        parts = op.Split(joint, [tails, *widths], axis=-1, _outputs=1 + tails)
        head, rest = op.Concat(first, parts[0], axis=-1), parts[1:]
        words = embedding.sizes[0]
    else:
        words = output.words.out_features
        joint = graph.linear(x, join(as_linear(output.words), as_linear(output.bands), *narrow), "joint")
        head, *rest = op.Split(joint, [words + tails, *widths], axis=-1, _outputs=1 + tails)
    head = op.LogSoftmax(head, axis=-1)
    first, *bands = op.Split(head, [words, *[1] * tails], axis=-1, _outputs=1 + tails)
    found = [first]
    for band, (of_band, inner) in enumerate(zip(bands, rest, strict=True)):
        if output.tied:
            assert embedding is not None
            tail = by_table(graph, inner, f"{table_name}.tables.{band + 1}", embedding.band(band + 1)[0])
        else:
            tail = graph.linear(inner, _layer(output.tails[band]), f"tails.{band}")
        found.append(op.Add(op.LogSoftmax(tail, axis=-1), of_band))
    return op.Concat(*found, axis=-1)


def _narrow(output: AdaptiveSoftmax, embedding: AdaptiveEmbedding | None, band: int) -> Linear:
    """The layer that narrows x for a tail."""
    if not output.tied_projections:
        return _layer(output.projections[band])
    assert embedding is not None
    weight = as_array(embedding.band(band + 1)[1])  # [D, width], transposed in use: it is [in, out] as it stands
    return Linear(weight, np.zeros(weight.shape[1]))


def _layer(module: nn.Module) -> Linear:
    assert isinstance(module, nn.Linear)
    return as_linear(module)


def _linear(graph: Graph, x: ir.Value, layer: nn.Module, name: str) -> ir.Value:
    return graph.linear(x, _layer(layer), name)
