"""From the last layer's output to scores of the vocabulary."""

from __future__ import annotations

import numpy as np
import torch
from onnxscript import ir
from torch import nn

from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.linear import Linear, as_array, as_linear, join
from mega_deploy.exporters.paper.embedding import tied_table
from mega_deploy.models.paper.embedding import AdaptiveEmbedding
from mega_deploy.models.paper.output import AdaptiveSoftmax, Output


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
    """What a tail reads."""
    if not output.tied_projections:
        return _layer(output.projections[band])
    assert embedding is not None
    weight = as_array(embedding.band(band + 1)[1])  # [D, width], transposed in use: it is [in, out] as it stands
    return Linear(weight, np.zeros(weight.shape[1]))


def _layer(module: nn.Module) -> Linear:
    assert isinstance(module, nn.Linear)
    return as_linear(module)
