"""What a classifier of the Long Range Arena makes of its documents, and of the steps that it pooled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnxscript import ir
from torch import nn

from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.linear import Linear, as_linear
from mega_deploy.exporters.paper.ops import activation
from mega_deploy.models.paper import MegaClassifier


def in_one_batch(graph: Graph, documents: Sequence[ir.Value], pad: int) -> ir.Value:
    """Documents [rows, steps of its own] as one batch, the shorter padded: [2 rows, steps].

    Args:
        graph: where the nodes go.
        documents: of a pair, as tokens.
        pad: the token that fills a document.
    """
    op = graph.op
    if len({_steps(tokens) for tokens in documents}) > 1:
        steps = [op.Shape(tokens, start=1, end=2) for tokens in documents]
        most = op.Max(*steps)
        documents = [
            op.Pad(
                tokens,
                op.Concat(graph.sizes(0, 0, 0), op.Sub(most, own), axis=0),
                op.Constant(value_int=pad),
            )
            for tokens, own in zip(documents, steps, strict=True)
        ]
    return op.Concat(*documents, axis=0)


def classified(graph: Graph, model: MegaClassifier, x: ir.Value) -> ir.Value:
    """Scores of the classes: [rows, D], of a pair [2 rows, D] -> [rows, classes].

    Args:
        graph: where the nodes go.
        model: trained.
        x: what was pooled of each document's steps.
    """
    op, config = graph.op, model.config
    dim = config.encoder.embed_dim
    layers = [_linear(layer) for layer in (*model.hidden, model.output)]
    if config.pair:
        x = op.Reshape(op.Transpose(op.Reshape(x, [2, -1, dim]), perm=[1, 0, 2]), [-1, 2 * dim])
        # The official code puts the second document first; here the rows of the layer behind are swapped for that.
        layers[0] = Linear(np.roll(layers[0].weight, dim, axis=0), layers[0].bias)
    for index, layer in enumerate(layers[:-1]):
        x = activation(graph, graph.linear(x, layer, f"hidden.{index}"), config.head_activation)
    return graph.linear(x, layers[-1], "output")


def _linear(layer: nn.Module) -> Linear:
    assert isinstance(layer, nn.Linear)
    return as_linear(layer)


def _steps(tokens: ir.Value) -> str:
    """The length of a document: a number, or the name of its axis."""
    assert tokens.shape is not None
    return str(tokens.shape.dims[1])
