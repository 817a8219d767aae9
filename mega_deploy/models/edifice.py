"""Edifice's Mega (Edifice.Attention.Mega 0.2.0) in its trained form: trainable, and without any trick.

What Edifice calls Mega is a simplified relative of arXiv 2209.10655: the moving average has one real decay per channel
and its own residual, attention is single-head with a sigmoid gate, and the feed-forward network is a SwiGLU.

Shapes: B batch, L sequence length, D embed_dim, H hidden_size, E ema_dim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mega_deploy.config.common import Source
from mega_deploy.config.edifice import EdificeConfig
from mega_deploy.config.norm import FLOAT32_NORM_EPSILON
from mega_deploy.errors import OptionError
from mega_deploy.plugins.laplace.torch_op import laplace_attention


class ExponentialMovingAverage(nn.Module):
    """h_t = a h_{t-1} + (1 - a) u_t with u = proj(x) and a = sigmoid(alpha), then out(h): [B, L, H] -> [B, L, H]."""

    def __init__(self, config: EdificeConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.hidden_size, config.ema_dim)
        self.alpha = nn.Parameter(torch.zeros(config.ema_dim))
        self.out = nn.Linear(config.ema_dim, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        u = self.proj(x)  # [B, L, E]
        a = torch.sigmoid(self.alpha)  # [E]
        h = torch.zeros_like(u[:, 0])  # [B, E]
        states = []
        for u_t in u.unbind(1):
            h = a * h + (1 - a) * u_t
            states.append(h)
        return self.out(torch.stack(states, 1))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, weights softmax(q.k / sqrt(H)): three [B, L, H] -> [B, L, H].

    Edifice adds 1e-8 to the sum of the exponentials. They are taken after subtracting the maximum, so that the sum is
    at least 1, and in float32, in which Edifice computes, the addition changes no bit: this is the same function.
    """
    length = q.shape[1]
    scores = q @ k.transpose(1, 2) / q.shape[2] ** 0.5  # [B, L, L]
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1) @ v


class GatedAttention(nn.Module):
    """out(sigmoid(gate(x)) * attention(q(x), k(x), v(x))): [B, L, H] -> [B, L, H].

    Laplace attention weighs by 1 / (1 + |q_i - k_j|_1), normalised, unscaled and NOT causal.
    """

    def __init__(self, config: EdificeConfig) -> None:
        super().__init__()
        self.q, self.k, self.v, self.gate, self.out = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(5)
        )
        self.attend: Callable[[Tensor, Tensor, Tensor], Tensor] = (
            laplace_attention if config.laplace_attention else softmax_attention
        )
        """The attention function of q, k and v."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.sigmoid(self.gate(x)) * self.attend(self.q(x), self.k(x), self.v(x)))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)): [B, L, H] -> [B, L, H]."""

    def __init__(self, config: EdificeConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.inner_size)
        self.up = nn.Linear(config.hidden_size, config.inner_size)
        self.down = nn.Linear(config.inner_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class MegaBlock(nn.Module):
    """Moving average, gated attention and SwiGLU, each pre-norm with its own residual: [B, L, H] -> [B, L, H]."""

    def __init__(self, config: EdificeConfig) -> None:
        super().__init__()
        self.ema_norm = nn.LayerNorm(config.hidden_size, FLOAT32_NORM_EPSILON)
        self.ema = ExponentialMovingAverage(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, FLOAT32_NORM_EPSILON)
        self.attention = GatedAttention(config)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, FLOAT32_NORM_EPSILON)
        self.ffn = SwiGLU(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.ema(self.ema_norm(x)))
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class Mega(nn.Module):
    """A stack of Mega blocks over a window of frames: [B, L, D] -> [B, H], or [B, L, H] with output="sequence".

    Any length L may be passed; `config.length` is the one that an export is made for.

    Args:
        config: the options; `Mega.build(...)` takes them as keywords.

    `source` is None for a model that was built, and says where the weights came from for one that was loaded.
    """

    def __init__(self, config: EdificeConfig) -> None:
        super().__init__()
        self.config = config
        self.source: Source | None = None
        same = config.embed_dim == config.hidden_size
        self.input_projection = nn.Identity() if same else nn.Linear(config.embed_dim, config.hidden_size)
        self.blocks = nn.ModuleList(MegaBlock(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, FLOAT32_NORM_EPSILON)
        self.apply(_initialise)

    @classmethod
    def build(cls, **options: Any) -> Mega:
        """A freshly initialised model from keyword options (EdificeConfig's fields); only `embed_dim` is required.

        Raises:
            OptionError: an option is unknown or impossible.
        """
        return cls(EdificeConfig.from_dict(options))

    def with_length(self, frames: int) -> Mega:
        """The same model for windows of so many frames: another module, which shares its layers with this one.

        Raises:
            OptionError: a window cannot have so many.
        """
        with torch.device("meta"):  # takes no memory and no random numbers for layers that are not kept
            other = Mega(dataclasses.replace(self.config, seq_len=frames))
        other.source, other.training = self.source, self.training
        other.input_projection, other.blocks, other.final_norm = self.input_projection, self.blocks, self.final_norm
        return other

    def forward(self, frames: Tensor) -> Tensor:
        if frames.ndim != 3 or frames.shape[2] != self.config.embed_dim or frames.shape[1] < 1:
            raise OptionError(
                f"frames must be [batch, seq_len, {self.config.embed_dim}], not empty, got {list(frames.shape)}"
            )
        x = self.input_projection(frames)  # [B, L, H]
        for block in self.blocks:
            x = block(x)
        x = self.final_norm(x)
        return x if self.config.output == "sequence" else x[:, -1]


def build_mega_block(**options: Any) -> MegaBlock:
    """One freshly initialised block, from `hidden_size`, `ema_dim`, `dropout` and `laplace_attention`.

    Raises:
        OptionError: an option is unknown or impossible.
    """
    allowed = ("hidden_size", "ema_dim", "dropout", "laplace_attention")
    for name in options:
        if name not in allowed:
            raise OptionError(f"a block has no option {name!r}; its options are {', '.join(allowed)}")
    block = MegaBlock(EdificeConfig(embed_dim=1, **options))
    return block.apply(_initialise)


def output_size(**options: Any) -> int:
    """Features of the output, hidden_size, for the same options as `Mega.build` (none of them required)."""
    return EdificeConfig.from_dict({"embed_dim": 1, **options}).hidden_size


def recommended_defaults() -> dict[str, Any]:
    """The options that Edifice recommends; `embed_dim` depends on the data and is not among them."""
    names = ("hidden_size", "ema_dim", "num_layers", "window_size", "dropout", "laplace_attention")
    defaults: Mapping[str, Any] = EdificeConfig(embed_dim=1).to_dict()
    return {name: defaults[name] for name in names}


def _initialise(module: nn.Module) -> None:
    """Axon's initial values: Glorot-uniform weights, zero biases, and for a norm's gamma Glorot over a vector."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.uniform_(module.weight, -(3.0**0.5), 3.0**0.5)
