"""Hugging Face's Mega classes (transformers' models/deprecated/mega)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mega_deploy.config.common import Source
from mega_deploy.config.tasks import HuggingFaceConfig
from mega_deploy.errors import OptionError
from mega_deploy.models.paper.encoder import MegaStack


class MegaHuggingFace(nn.Module):
    """MegaModel, or one of the MegaFor... classes, by `config.head`; inputs and outputs are named as there.

    input_ids [B, L] with attention_mask (1 keeps; all ones where left out), token_type_ids where the model has such
    (zeros where left out), and with cross attention encoder_hidden_states [B, S, D] and encoder_attention_mask.
    Multiple choice takes [B, choices, L]. Unlike fairseq's models nothing is padded, zeroed or scaled.

    Decoding step by step must give the numbers of the whole sequence. transformers' own cached steps do not: the
    elementwise attentions divide by 1 there, cross attention skips its second position, and truncation is ignored
    unless use_cache is off. None of that is copied.
    """

    def __init__(self, config: HuggingFaceConfig) -> None:
        super().__init__()
        dim = config.encoder.embed_dim
        self.config = config
        self.source: Source | None = None
        self.words = nn.Embedding(config.vocab_size, dim)
        self.token_types = None if config.token_types is None else nn.Embedding(config.token_types, dim)
        self.encoder = MegaStack(config.encoder)
        self.pooler = nn.Linear(dim, dim) if config.has_pooler else nn.Identity()
        self.dense = nn.Linear(dim, dim) if config.has_dense else nn.Identity()
        self.dropout = nn.Dropout(config.encoder.hidden_dropout)
        self.output: nn.Module = nn.Identity()
        self.output_bias: nn.Parameter | None = None
        match config.head:
            case "masked_lm" | "causal_lm":
                self.output = nn.Identity() if config.tied else nn.Linear(dim, config.vocab_size, bias=False)
                self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
            case "sequence_classification" | "token_classification":
                self.output = nn.Linear(dim, config.labels)
            case "question_answering":
                self.output = nn.Linear(dim, 2)
            case "multiple_choice":
                self.output = nn.Linear(dim, 1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        shape = input_ids.shape
        ids = input_ids.flatten(0, -2)
        x = self.words(ids)
        if self.token_types is not None:
            x = x + self.token_types(torch.zeros_like(ids) if token_type_ids is None else token_type_ids.flatten(0, -2))
        attention_mask = None if attention_mask is None else attention_mask.flatten(0, -2) != 0
        memory_mask = None if encoder_attention_mask is None else encoder_attention_mask != 0
        if (encoder_hidden_states is None) != (self.config.encoder.cross_positions is None):
            raise OptionError("encoder_hidden_states go with cross attention, and only with it")
        x = self.encoder(x, attention_mask, encoder_hidden_states, memory_mask)
        return self.headed(x, shape)

    def headed(self, x: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        """What the class returns, of the last layer's output [rows, L, D] for ids of `shape`."""
        match self.config.head:
            case "masked_lm" | "causal_lm":
                x = torch.tanh(self.dense(x)) if self.config.dense else x
                assert self.output_bias is not None
                scores = F.linear(x, self.words.weight) if self.config.tied else self.output(x)
                return {"logits": scores + self.output_bias}
            case "token_classification":
                return {"logits": self.output(self.dropout(x))}
            case "question_answering":
                start, end = self.output(x).unbind(-1)
                return {"start_logits": start, "end_logits": end}
            case "sequence_classification":
                first = torch.tanh(self.dense(self.dropout(x[:, 0])))
                return {"logits": self.output(self.dropout(first))}
            case "multiple_choice":
                pooled = torch.tanh(self.pooler(x[:, 0]))
                return {"logits": self.output(self.dropout(pooled)).reshape(shape[:-1])}
            case "model":
                found = {"last_hidden_state": x}
                return found | {"pooler_output": torch.tanh(self.pooler(x[:, 0]))} if self.config.pooler else found
