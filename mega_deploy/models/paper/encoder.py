"""Layers of Mega, and the stack of them."""

from __future__ import annotations

from torch import Tensor, nn

from mega_deploy.config.common import Source
from mega_deploy.config.paper import MegaConfig
from mega_deploy.errors import OptionError
from mega_deploy.models.paper.activation import ACTIVATIONS
from mega_deploy.models.paper.attention import GatedAttention, GatedCrossAttention
from mega_deploy.models.paper.norm import make_norm


class FeedForward(nn.Module):
    """x + fc2(act(fc1(norm(x)))), or norm(x + fc2(act(fc1(x)))): [B, L, D] -> [B, L, D]."""

    def __init__(self, config: MegaConfig, ffn_dim: int) -> None:
        super().__init__()
        self.prenorm, self.activation = config.ffn_norm_first, config.activation
        self.norm = make_norm(config.norm, config.embed_dim, config.norm_affine)
        self.fc1 = nn.Linear(config.embed_dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, config.embed_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x) if self.prenorm else x
        h = self.activation_dropout(ACTIVATIONS[self.activation](self.fc1(n)))
        out = x + self.dropout(self.fc2(h))
        return out if self.prenorm else self.norm(out)


class MegaLayer(nn.Module):
    """Gated attention, then cross attention where the configuration has it, then the feed-forward network."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.attention = GatedAttention(config)
        reach = config.cross_positions
        self.cross_attention = None if reach is None else GatedCrossAttention(config, reach)
        self.ffn = None if config.ffn_dim is None else FeedForward(config, config.ffn_dim)

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        x = self.attention(x, attention_mask)
        if self.cross_attention is not None:
            x = self.cross_attention(x, memory, memory_mask)
        return x if self.ffn is None else self.ffn(x)


class MegaStack(nn.Module):
    """All layers and the final norm: [B, L, D] -> [B, L, D].

    `attention_mask` [B, L] and `memory_mask` [B, S] are True for steps that are no padding; None keeps all. What comes
    out at padding is finite and means nothing.
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(MegaLayer(config) for _ in range(config.num_layers))
        dim, affine = config.embed_dim, config.final_norm_affine
        self.final_norm = make_norm(config.norm, dim, affine) if config.has_final_norm else nn.Identity()
        self.layers.apply(_initialise)

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        for layer in self.layers:
            x = layer(x, attention_mask, memory, memory_mask)
        return self.final_norm(x)


def _initialise(module: nn.Module) -> None:
    """The official initial values of linear layers; other modules set their own."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class MegaEncoder(nn.Module):
    """The bare stack as a model: frames [B, L, D] -> features [B, L, D].

    Raises:
        OptionError: the layers have cross attention; a call's frames do not fit, are more than the positional bias
            reaches, or no whole number of chunks.
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        if config.cross_positions is not None:
            raise OptionError("an encoder has no cross attention; leave cross_positions out")
        self.config = config
        self.source: Source | None = None
        self.encoder = MegaStack(config)

    def forward(self, frames: Tensor) -> Tensor:
        if frames.ndim != 3 or frames.shape[2] != self.config.embed_dim or frames.shape[1] < 1:
            raise OptionError(
                f"frames must be [batch, seq_len, {self.config.embed_dim}], not empty, got {list(frames.shape)}"
            )
        return self.encoder(frames)
