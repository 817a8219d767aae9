"""fairseq's classifiers: of the Long Range Arena (LRAModel) and of raw speech (SCRawModel)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from mega_deploy.config.common import Source
from mega_deploy.config.tasks import ClassifierConfig
from mega_deploy.errors import OptionError
from mega_deploy.models.paper.activation import ACTIVATIONS
from mega_deploy.models.paper.embedding import Embedding, make_table
from mega_deploy.models.paper.encoder import MegaStack


class MegaClassifier(nn.Module):
    """Class scores of a sequence, or of a pair of them.

    src_tokens [B, L] (tokens, or real values) and src_lengths [B] -> logits [B, classes]; a matching model also takes
    src1_tokens and src1_lengths, whose representation stands before the first's, as in the official code. Lengths are
    what the mean is divided by.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.source: Source | None = None
        self.table = make_table(config.embedding, config.encoder)
        self.embedding = Embedding(config.embedding, config.encoder)
        self.encoder = MegaStack(config.encoder)
        widths = (config.encoder.embed_dim * (1 + config.pair), *config.widths)
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.output = nn.Linear(widths[-1], config.classes, bias=False)
        self.dropout = nn.Dropout(config.encoder.dropout)

    def represent(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """One vector for each sequence: [B, D]."""
        x, attention_mask = self.embedding(tokens, self.table)
        x = self.encoder(x, attention_mask)
        if self.config.pooling == "first":
            return x[:, 0] if attention_mask is None else x[:, 0] * attention_mask[:, :1]
        return (x if attention_mask is None else x * attention_mask[..., None]).sum(1) / lengths[:, None]

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        src1_tokens: Tensor | None = None,
        src1_lengths: Tensor | None = None,
    ) -> dict[str, Tensor]:
        x = self.represent(src_tokens, src_lengths)
        if self.config.pair:
            if src1_tokens is None or src1_lengths is None:
                raise OptionError("a matching model takes src1_tokens and src1_lengths as well")
            x = torch.cat([self.represent(src1_tokens, src1_lengths), x], -1)
        for layer in self.hidden:
            x = ACTIVATIONS[self.config.head_activation](self.dropout(layer(x)))
        return {"logits": self.output(x)}
