"""From an input to the first layer's: real values, or tokens, padded to whole chunks and looked up.

What the trained form makes of a token depends on nothing else: scale, projection, norm and the zeros of padding go into
one table. Not where an output shares the table, which is then kept once, nor where it would be much larger than what it
stands for: then they are nodes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from onnxscript import ir
from torch import nn

from mega_deploy.arrays import Float64Array
from mega_deploy.exporters.graph import Graph, Length
from mega_deploy.exporters.linear import Linear, as_array, as_linear
from mega_deploy.exporters.paper.fold import fold_norm
from mega_deploy.exporters.paper.ops import normalise
from mega_deploy.exporters.paper.sequence_layout import SequenceLayout
from mega_deploy.models.paper import MegaHuggingFace
from mega_deploy.models.paper.embedding import AdaptiveEmbedding, Embedding, ValueEmbedding
from mega_deploy.signature import Dim, Range

LARGEST_TABLE = 1 << 24
"""Numbers that a table of all tokens may hold: 64 MB in float32."""


def padded(longest: int, chunk_size: int | None) -> int:
    """Steps of a sequence of tokens that is padded to whole chunks, where it is longer than one."""
    return longest if chunk_size is None or longest <= chunk_size else -(-longest // chunk_size) * chunk_size


def values(graph: Graph, x: ir.Value, table: ValueEmbedding, embedding: Embedding, dim: int) -> ir.Value:
    """The embedding of real values: [rows, steps] -> [rows * steps, D]."""
    op = graph.op
    weight, bias = (as_array(tensor) for tensor in (table.weight, table.bias))
    column = op.Reshape(x, [-1, 1])
    rows = op.Add(op.Mul(column, graph.constant("table.weight", weight)), graph.constant("table.bias", bias))
    return normalise(graph, rows, fold_norm(embedding.norm, dim))


class TokenEmbedding:
    """Tokens of one side of a model.

    Args:
        graph: where the nodes go.
        embedding: trained.
        table: trained.
        scope: name of the embedding in the trained form.
        name: name of the table there.
        dim: D.
        shared: whether an output reads the table, too.
    """

    def __init__(
        self, graph: Graph, embedding: Embedding, table: nn.Module, *, scope: str, name: str, dim: int, shared: bool
    ) -> None:
        self.graph, self.op = graph, graph.op
        self.embedding, self.table, self.name, self.dim = embedding, table, name, dim
        self.scope = scope
        words = embedding.config.vocab_size
        assert words is not None
        self.folded = not shared and words * dim <= max(LARGEST_TABLE, 2 * sum(p.numel() for p in table.parameters()))

    def pad(self, tokens: ir.Value, seq_len: Dim, chunk_size: int | None) -> tuple[ir.Value, Length]:
        """Tokens [rows, steps], and padding up to whole chunks; and their length."""
        op, graph, pad = self.op, self.graph, self.embedding.config.pad
        longest = seq_len.max if isinstance(seq_len, Range) else seq_len
        grows = chunk_size is not None and longest > chunk_size
        if not isinstance(seq_len, Range):
            if grows and padded(longest, chunk_size) > longest:
                missing = padded(longest, chunk_size) - longest
                tokens = op.Pad(tokens, [0, 0, 0, missing], op.Constant(value_int=pad))
            return tokens, padded(longest, chunk_size)
        if grows:
            assert chunk_size is not None
            steps, chunk = op.Shape(tokens, start=1, end=2), graph.sizes(chunk_size)
            missing = op.Mod(op.Neg(steps), chunk)  # of the divisor's sign
            missing = op.Mul(missing, op.Cast(op.Greater(steps, chunk), to=ir.DataType.INT64))
            pads = op.Concat(graph.sizes(0, 0, 0), missing, axis=0)
            tokens = op.Pad(tokens, pads, op.Constant(value_int=pad))
        return tokens, op.Shape(tokens)

    def attention_mask(self, tokens: ir.Value) -> ir.Value:
        """Which tokens are no padding: bool [rows, steps]."""
        return self.op.Not(self.op.Equal(tokens, self.op.Constant(value_int=self.embedding.config.pad)))

    def write(self, tokens: ir.Value, layout: SequenceLayout) -> ir.Value:
        """The first layer's input: [rows * steps, D], zeros at padding."""
        with self.graph.scope(self.scope):
            return self._write(tokens, layout)

    def _write(self, tokens: ir.Value, layout: SequenceLayout) -> ir.Value:
        graph, op = self.graph, self.op
        if self.folded:
            table = graph.constant("every_token", self._every_token())
            return graph.rows(op.Gather(table, tokens), self.dim)
        x = self._bands(tokens) if isinstance(self.table, AdaptiveEmbedding) else self._words(tokens)
        if self.embedding.scale != 1:
            x = op.Mul(x, graph.constant("scale", np.array(self.embedding.scale)))
        if isinstance(self.embedding.projection, nn.Linear):
            x = graph.linear(x, as_linear(self.embedding.projection), "projection")
        return layout.masked(normalise(graph, x, fold_norm(self.embedding.norm, self.dim)))

    @torch.no_grad()
    def _every_token(self) -> Float64Array:
        """What the trained form makes of each token, in float64: [words, D]."""
        embedding, words = self.embedding, self.embedding.config.vocab_size
        assert words is not None
        every = torch.arange(words)[None]
        exact = [copy.deepcopy(module).double() for module in (self.table, embedding.projection, embedding.norm)]
        x = exact[2](exact[1](embedding.scale * exact[0](every)))[0]
        return as_array(x * (every[0] != embedding.config.pad)[:, None])

    def _words(self, tokens: ir.Value) -> ir.Value:
        assert isinstance(self.table, nn.Embedding)
        table = tied_table(self.graph, self.name, self.table.weight)
        return self.graph.rows(self.op.Gather(table, tokens), self.table.embedding_dim)

    def _bands(self, tokens: ir.Value) -> ir.Value:
        """Each band's words through its own table and projection, chosen by the token."""
        op, graph, table = self.op, self.graph, self.table
        assert isinstance(table, AdaptiveEmbedding)
        flat = op.Reshape(tokens, [-1])
        out: ir.Value | None = None
        for index, (start, size) in enumerate(zip(table.starts, table.sizes, strict=True)):
            words, projection = table.band(index)
            inside = op.Clip(
                op.Sub(flat, graph.sizes(start)), op.Constant(value_int=0), op.Constant(value_int=size - 1)
            )
            x = op.Gather(tied_table(graph, f"{self.name}.tables.{index}", words), inside)
            weight = as_array(projection).T
            x = graph.linear(x, Linear(weight, np.zeros(weight.shape[1])), f"projections.{index}")
            here = op.Unsqueeze(op.GreaterOrEqual(flat, graph.sizes(start)), [1])
            out = x if out is None else op.Where(here, x, out)
        assert out is not None
        return out


def tied_table(graph: Graph, name: str, weight: torch.Tensor) -> ir.Value:
    """A table [words, width] that stands once in the graph, for an embedding and an output alike."""
    return graph.shared(f"{name}.weight", lambda: as_array(weight))


def hugging_face_words(graph: Graph, model: MegaHuggingFace, inputs: Mapping[str, ir.Value]) -> ir.Value:
    """Hugging Face's embedding, the first layer's input: `inputs` by name, [rows, steps] -> [rows * steps, D]."""
    op = graph.op
    x = op.Gather(tied_table(graph, "words", model.words.weight), inputs["input_ids"])
    if model.token_types is not None:
        types = graph.constant("token_types.weight", as_array(model.token_types.weight))
        x = op.Add(x, op.Gather(types, inputs["token_type_ids"]))
    return graph.rows(x, model.config.encoder.embed_dim)


def nonzero(graph: Graph, mask: ir.Value) -> ir.Value:
    """An attention mask of numbers, such as Hugging Face's, as bool of the same shape."""
    op = graph.op
    return op.Not(op.Equal(mask, op.Constant(value_int=0)))
