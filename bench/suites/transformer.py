"""The Transformer that the paper measures Mega against on byte-level text, trained form and deployed graph.

It is that of the official code (fairseq's transformer_lra_imdb, of the size that the Long Range Arena set): a norm
behind each sum, sinusoidal positions, the mean over all steps, one hidden layer. It is here to be timed, with the same
care as Mega: the embedding's scale and positions are constants, attention's scale is in the queries' projection, and
attention comes in the ways that one would deploy it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from onnxscript import ir
from torch import Tensor, nn

from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.linear import Linear, as_array, as_linear
from mega_deploy.exporters.paper.chunks import ROWS

AttentionForm = Literal["plain", "parts", "fused"]
"""plain    all scores at once, as exporters write it
parts    as many queries at a time as Mega's graphs take
fused    onnxruntime's own operator, which holds no scores, and takes no padding"""
FORMS: tuple[AttentionForm, ...] = get_args(AttentionForm)
CONTRIB = "com.microsoft"


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The sizes of a Transformer."""

    vocab_size: int
    positions: int
    embed_dim: int
    heads: int
    ffn_dim: int
    num_layers: int
    head_width: int
    """Width of the hidden layer behind the mean."""
    classes: int = 2
    pad: int = 1


class Transformer(nn.Module):
    """src_tokens [B, L], padded on the right, and src_lengths [B] -> logits [B, classes]."""

    positions: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.table = nn.Embedding(config.vocab_size, dim)
        self.register_buffer("positions", _sinusoids(config.positions, dim))
        self.embedding_norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, config.heads, config.ffn_dim, dropout=0.0, activation="gelu", batch_first=True
            )
            for _ in range(config.num_layers)
        )
        self.hidden = nn.Linear(dim, config.head_width)
        self.output = nn.Linear(config.head_width, config.classes, bias=False)

    def forward(self, src_tokens: Tensor, src_lengths: Tensor) -> Tensor:
        pad = src_tokens == self.config.pad
        dim, steps = self.config.embed_dim, src_tokens.shape[1]
        x = self.table(src_tokens) * math.sqrt(dim) + self.positions[:steps]
        x = self.embedding_norm(x).masked_fill(pad[..., None], 0.0)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=pad)
        mean = x.masked_fill(pad[..., None], 0.0).sum(1) / src_lengths[:, None]
        return self.output(nn.functional.gelu(self.hidden(mean)))


def _sinusoids(positions: int, dim: int) -> Tensor:
    """Sines, then cosines: [positions, dim]; fairseq counts from the token behind padding's."""
    frequency = torch.exp(torch.arange(dim // 2) * -(math.log(10000) / (dim // 2 - 1)))
    angle = (torch.arange(positions) + 2)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)


def transformer_graph(model: Transformer, length: int, form: AttentionForm) -> ir.Model:
    """The deployed model for sequences of `length` steps, any batch.

    Args:
        model: in eval mode.
        length: steps.
        form: how attention is written; "fused" ignores padding.
    """
    graph, config = Graph("transformer"), model.config
    op, dim = graph.op, config.embed_dim
    tokens = graph.input("src_tokens", ["batch", length], ir.DataType.INT64)
    lengths = graph.input("src_lengths", ["batch"], ir.DataType.INT64)
    attention_mask = op.Not(op.Equal(tokens, op.Constant(value_int=config.pad)))
    kept = op.Cast(op.Reshape(attention_mask, [-1, 1]), to=graph.dtype)
    table = graph.constant("table", as_array(model.table.weight) * math.sqrt(dim))
    positions = graph.constant("positions", as_array(model.positions)[:length])
    x = graph.rows(op.Add(op.Gather(table, tokens), positions), dim)
    x = op.Mul(_norm(graph, x, model.embedding_norm, "embedding_norm"), kept)
    attention = _Attention(graph, config, length, form, attention_mask)
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, nn.TransformerEncoderLayer)
        with graph.scope(f"layers.{index}"):
            x = _norm(graph, op.Add(x, attention.write(x, layer.self_attn)), layer.norm1, "norm1")
            inner = op.Gelu(graph.linear(x, as_linear(layer.linear1), "linear1"))
            x = _norm(graph, op.Add(x, graph.linear(inner, as_linear(layer.linear2), "linear2")), layer.norm2, "norm2")
    total = op.ReduceSum(graph.windows(op.Mul(x, kept), length, dim), [1], keepdims=0)
    mean = op.Div(total, op.Unsqueeze(op.Cast(lengths, to=graph.dtype), [1]))
    hidden = op.Gelu(graph.linear(mean, as_linear(model.hidden), "hidden"))
    graph.output(graph.linear(hidden, as_linear(model.output), "output"), "logits", ["batch", config.classes])
    made = graph.model()
    if form == "fused":
        made.graph.opset_imports[CONTRIB] = 1
    return made


def _norm(graph: Graph, x: ir.Value, layer: nn.Module, name: str) -> ir.Value:
    assert isinstance(layer, nn.LayerNorm)
    gamma, beta = (graph.constant(f"{name}.{part}", as_array(getattr(layer, part))) for part in ("weight", "bias"))
    return graph.normalise(x, layer.normalized_shape[0], gamma, beta)


class _Attention:
    """Writes self attention with several heads: [batch * length, D] twice."""

    def __init__(
        self, graph: Graph, config: TransformerConfig, length: int, form: AttentionForm, attention_mask: ir.Value
    ) -> None:
        self.graph, self.op, self.config, self.length, self.form = graph, graph.op, config, length, form
        masked = graph.shared("mask.future", lambda: np.array(-np.inf))
        kept = graph.shared("mask.seen", lambda: np.array(0.0))
        self.mask = self.op.Where(self.op.Unsqueeze(attention_mask, [1, 2]), kept, masked)  # [batch, 1, 1, length]

    def write(self, x: ir.Value, layer: nn.MultiheadAttention) -> ir.Value:
        graph, dim = self.graph, self.config.embed_dim
        weights, biases = (as_array(tensor) for tensor in (layer.in_proj_weight, layer.in_proj_bias))
        scale = (dim // self.config.heads) ** -0.5
        parts = []
        for index, (name, factor) in enumerate((("q", scale), ("k", 1.0), ("v", 1.0))):
            rows = slice(index * dim, (index + 1) * dim)
            parts.append(graph.linear(x, Linear(weights[rows].T * factor, biases[rows] * factor), name))
        q, k, v = (graph.windows(part, self.length, dim) for part in parts)
        context = self._fused(q, k, v) if self.form == "fused" else self._written(q, k, v)
        return graph.linear(graph.rows(context, dim), as_linear(layer.out_proj), "out")

    def _fused(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        heads = self.config.heads
        return self.op.MultiHeadAttention(q, k, v, num_heads=heads, scale=1.0, _domain=CONTRIB, _version=1)

    def _written(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        op, rows = self.op, ROWS if self.form == "parts" else self.length
        q, v = (self._by_head(x, [0, 2, 1, 3]) for x in (q, v))
        k = self._by_head(k, [0, 2, 3, 1])
        context = []
        for start in range(0, self.length, rows):
            some = q if rows >= self.length else op.Slice(q, [start], [start + rows], [2])
            scores = op.Add(op.MatMul(some, k), self.mask)
            context.append(op.MatMul(op.Softmax(scores, axis=-1), v))
        joined = context[0] if len(context) == 1 else op.Concat(*context, axis=2)
        return op.Transpose(joined, perm=[0, 2, 1, 3])

    def _by_head(self, x: ir.Value, order: list[int]) -> ir.Value:
        heads = self.config.heads
        return self.op.Transpose(
            self.op.Reshape(x, [-1, self.length, heads, self.config.embed_dim // heads]), perm=order
        )
