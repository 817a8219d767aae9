"""From tokens, or real values, to the first layer's input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.tasks import EmbeddingConfig
from mega_deploy.models.paper.norm import make_norm


class ValueEmbedding(nn.Module):
    """x weight + bias: real values [B, L] -> [B, L, D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.empty(dim)) for _ in range(2))
        nn.init.normal_(self.weight, std=dim**-0.5)
        nn.init.zeros_(self.bias)

    def forward(self, values: Tensor) -> Tensor:
        return values[..., None].to(self.weight.dtype) * self.weight + self.bias


class AdaptiveEmbedding(nn.Module):
    """A table and a projection for each band of the vocabulary, the rarer the narrower: [B, L] -> [B, L, D]."""

    def __init__(self, config: EmbeddingConfig, dim: int) -> None:
        super().__init__()
        self.starts = (0, *config.cutoffs)
        self.sizes = [size for size, _ in config.bands]
        self.tables = nn.ModuleList(_table(size, width) for size, width in config.bands)
        self.projections = nn.ModuleList(nn.Linear(width, dim, bias=False) for _, width in config.bands)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor | None = None
        bands = zip(self.starts, self.sizes, self.tables, self.projections, strict=True)
        for start, size, table, projection in bands:
            band = projection(table((tokens - start).clamp(0, size - 1)))
            out = band if out is None else torch.where((tokens >= start)[..., None], band, out)
        assert out is not None
        return out

    def band(self, index: int) -> tuple[Tensor, Tensor]:
        """A band's table [words, width] and projection [D, width], for an output that is tied to them."""
        table, projection = self.tables[index], self.projections[index]
        assert isinstance(table, nn.Embedding) and isinstance(projection, nn.Linear)
        return table.weight, projection.weight


class Embedding(nn.Module):
    """The first layer's input and the steps that are no padding: [B, L] -> [B, L', D], [B, L'].

    Tokens beyond a chunk are padded on the right to whole chunks, L' steps. Real values are neither padded nor masked:
    the second result is None. Padding is zero in the first. The table is passed in, since outputs and the other side of
    a translation may share it.
    """

    def __init__(self, config: EmbeddingConfig, stack: MegaConfig) -> None:
        super().__init__()
        self.config, self.chunk_size = config, stack.chunk_size
        dim = stack.embed_dim
        self.scale = dim**0.5 if config.scaled else 1.0
        projected = config.vocab_size is not None and not config.cutoffs and config.dim != dim
        self.projection = nn.Linear(config.dim, dim, bias=False) if projected else nn.Identity()
        self.norm = make_norm(stack.norm, dim) if config.norm else nn.Identity()
        self.dropout = nn.Dropout(stack.dropout)

    def forward(self, tokens: Tensor, table: nn.Module) -> tuple[Tensor, Tensor | None]:
        if self.config.vocab_size is None:
            return self.dropout(self.norm(table(tokens))), None
        tokens = pad_to_chunks(tokens, self.chunk_size, self.config.pad)
        attention_mask = tokens != self.config.pad
        x = self.dropout(self.norm(self.projection(self.scale * table(tokens))))
        return x * attention_mask[..., None], attention_mask


def pad_to_chunks(tokens: Tensor, chunk_size: int | None, pad: int) -> Tensor:
    """Tokens [B, L] with padding up to a whole number of chunks, where they are more than one."""
    if chunk_size is None or tokens.shape[1] <= chunk_size:
        return tokens
    return F.pad(tokens, (0, -tokens.shape[1] % chunk_size), value=pad)


def make_table(config: EmbeddingConfig, stack: MegaConfig) -> nn.Module:
    """What is looked up: values, bands of tokens or tokens."""
    if config.vocab_size is None:
        return ValueEmbedding(stack.embed_dim)
    if config.cutoffs:
        return AdaptiveEmbedding(config, stack.embed_dim)
    return _table(config.vocab_size, config.dim)


def _table(size: int, dim: int) -> nn.Embedding:
    table = nn.Embedding(size, dim)
    nn.init.normal_(table.weight, std=dim**-0.5)
    return table
