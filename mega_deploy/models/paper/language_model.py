"""fairseq's language model (MegaLanguageModel)."""

from __future__ import annotations

from torch import Tensor, nn

from mega_deploy.config.common import Source
from mega_deploy.config.tasks import LanguageModelConfig
from mega_deploy.models.paper.embedding import Embedding, make_table
from mega_deploy.models.paper.encoder import MegaStack
from mega_deploy.models.paper.output import make_output


class MegaLanguageModel(nn.Module):
    """Scores of each next token: tokens [B, L] -> logits [B, L, V], or log_probs of an adaptive softmax.

    A whole sequence at once, padded on the right where it is padded. Decoding one token a time must give the same
    numbers; the official code differs there once a truncation of the moving average is passed, or when a prompt ends
    inside a chunk, and is not followed in that.
    """

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.source: Source | None = None
        vocab_size = config.embedding.vocab_size
        assert vocab_size is not None
        self.table = make_table(config.embedding, config.decoder)
        self.embedding = Embedding(config.embedding, config.decoder)
        self.decoder = MegaStack(config.decoder)
        self.output = make_output(config.output, vocab_size, config.decoder.embed_dim)

    def features(self, tokens: Tensor) -> Tensor:
        """What the scores are made of, zero at padding: [B, L, D]."""
        x, attention_mask = self.embedding(tokens, self.table)
        x = self.decoder(x, attention_mask) * attention_mask[..., None]
        return x[:, : tokens.shape[1]]

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        scores = self.output(self.features(tokens), self.table)
        return {"log_probs" if self.config.output.cutoffs else "logits": scores}
