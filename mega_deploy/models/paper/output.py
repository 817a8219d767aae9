"""From the last layer's output to scores of the vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mega_deploy.config.tasks import OutputConfig, band_sizes
from mega_deploy.models.paper.embedding import AdaptiveEmbedding


class Output(nn.Module):
    """Logits [B, L, D] -> [B, L, V]: by the embedding's own table where tied, which holds the weights then."""

    def __init__(self, config: OutputConfig, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.linear = None if config.tied else nn.Linear(dim, vocab_size, bias=False)

    def forward(self, x: Tensor, table: nn.Module) -> Tensor:
        if self.linear is not None:
            return self.linear(x)
        assert isinstance(table, nn.Embedding)
        return F.linear(x, table.weight)


class AdaptiveSoftmax(nn.Module):
    """Logarithms of probabilities [B, L, D] -> [B, L, V], band by band (Grave et al., arXiv 1609.04309).

        log p(word of the first band) = log softmax(head)_word
        log p(word of band i)         = log softmax(head)_{band i} + log softmax(tail_i)_word

    Tied, the words of each band are scored by the embedding's table for it, and with `tied_projections` its projection,
    transposed, leads there: the embedding holds these weights.
    """

    def __init__(self, config: OutputConfig, vocab_size: int, dim: int) -> None:
        super().__init__()
        bands = band_sizes(config.cutoffs, vocab_size, dim, config.factor)
        tails = bands[1:]
        self.tied, self.tied_projections = config.tied, config.tied_projections
        self.words = None if config.tied else nn.Linear(dim, bands[0][0], bias=False)
        self.bands = nn.Linear(dim, len(tails), bias=False)
        self.projections = nn.ModuleList(
            nn.Linear(dim, width, bias=False) for _, width in tails if not config.tied_projections
        )
        self.tails = nn.ModuleList(nn.Linear(width, size, bias=False) for size, width in tails if not config.tied)

    def forward(self, x: Tensor, table: nn.Module) -> Tensor:
        words = F.linear(x, self._tied(table, 0)[0]) if self.words is None else self.words(x)
        head = torch.cat([words, self.bands(x)], -1).log_softmax(-1)
        count = words.shape[-1]
        scores = [head[..., :count]]
        for band in range(self.bands.out_features):
            narrow = x @ self._tied(table, band + 1)[1] if self.tied_projections else self.projections[band](x)
            tail = F.linear(narrow, self._tied(table, band + 1)[0]) if self.tied else self.tails[band](narrow)
            scores.append(tail.log_softmax(-1) + head[..., count + band, None])
        return torch.cat(scores, -1)

    def _tied(self, table: nn.Module, band: int) -> tuple[Tensor, Tensor]:
        assert isinstance(table, AdaptiveEmbedding)
        return table.band(band)


def make_output(config: OutputConfig, vocab_size: int, dim: int) -> Output | AdaptiveSoftmax:
    """The output that a configuration asks for."""
    return (AdaptiveSoftmax if config.cutoffs else Output)(config, vocab_size, dim)
