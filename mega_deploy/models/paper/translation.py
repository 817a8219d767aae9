"""fairseq's translation model (MegaModel)."""

from __future__ import annotations

from torch import Tensor, nn

from mega_deploy.config.common import Source
from mega_deploy.config.tasks import TranslationConfig
from mega_deploy.models.paper.embedding import Embedding, make_table
from mega_deploy.models.paper.encoder import MegaStack
from mega_deploy.models.paper.output import make_output


class MegaTranslation(nn.Module):
    """Scores of each next target token, given the source and the target so far.

    src_tokens [B, S], src_lengths [B] and prev_output_tokens [B, T] -> logits [B, T, V]. src_lengths is an input of
    fairseq's that nothing reads: padding is told by its token. Positions of cross attention count the source's padding,
    so that sentences padded on the left (fairseq's default) and on the right give different numbers, as they do there.
    """

    def __init__(self, config: TranslationConfig) -> None:
        super().__init__()
        self.config = config
        self.source: Source | None = None
        vocab_size = config.target.vocab_size
        assert vocab_size is not None
        self.source_table = None if config.shared else make_table(config.source, config.encoder)
        self.target_table = make_table(config.target, config.decoder)
        self.source_embedding = Embedding(config.source, config.encoder)
        self.target_embedding = Embedding(config.target, config.decoder)
        self.encoder = MegaStack(config.encoder)
        self.decoder = MegaStack(config.decoder)
        self.output = make_output(config.output, vocab_size, config.decoder.embed_dim)

    def encode(self, src_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The source as the decoder reads it, and its steps that are no padding: [B, S, D], [B, S]."""
        table = self.target_table if self.source_table is None else self.source_table
        x, attention_mask = self.source_embedding(src_tokens, table)
        x = self.encoder(x, attention_mask) * attention_mask[..., None]
        length = src_tokens.shape[1]
        return x[:, :length], attention_mask[:, :length]

    def decode(self, prev_output_tokens: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Scores of the next target tokens, given what `encode` gave: [B, T, V]."""
        x, attention_mask = self.target_embedding(prev_output_tokens, self.target_table)
        x = self.decoder(x, attention_mask, memory, memory_mask) * attention_mask[..., None]
        return self.output(x[:, : prev_output_tokens.shape[1]], self.target_table)

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor) -> dict[str, Tensor]:
        scores = self.decode(prev_output_tokens, *self.encode(src_tokens))
        return {"log_probs" if self.config.output.cutoffs else "logits": scores}
