"""Single-head gated attention: over the sequence itself, with the moving average inside, and over another one.

Shapes: B batch, L steps, D embed_dim, Z z_dim, V hidden_dim, N chunks of C steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mega_deploy.config.attention import TRAITS, Attention
from mega_deploy.config.paper import MegaConfig
from mega_deploy.errors import OptionError
from mega_deploy.models.paper.activation import ACTIVATIONS, ELEMENTWISE
from mega_deploy.models.paper.ema import MultiHeadEMA
from mega_deploy.models.paper.norm import make_norm
from mega_deploy.models.paper.position import position_bias


def attention_weights(
    kind: Attention, q: Tensor, k: Tensor, bias: Tensor, attention_mask: Tensor | None, *, causal: bool
) -> Tensor:
    """What each query takes of each key.

    softmax      softmax(q.k / sqrt(Z) + bias)
    laplace      laplace(q.k / n + bias), not normalised, where n counts the keys: those up to the query where causal,
                 else those kept, at least 1
    relu2        likewise, with relu(.)^2

    Args:
        kind: which of them.
        q: [..., M, Z].
        k: [..., N, Z].
        bias: [M, N].
        attention_mask: [..., N], True for keys that are no padding; None keeps all. Where softmax would have nothing to
            attend to, padding is attended to (as the official code does, except that causal ones are NaN there).
        causal: whether a query sees the keys up to its own step only.

    Returns:
        [..., M, N].
    """
    traits, (queries, keys) = TRAITS[kind], bias.shape
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=q.device)
    if causal:
        allowed = allowed.tril()
    kept = allowed if attention_mask is None else allowed & attention_mask[..., None, :]
    scores = q @ k.transpose(-1, -2)
    if traits.normalised:
        kept = torch.where(kept.any(-1, keepdim=True), kept, allowed)
        scores = scores * q.shape[-1] ** -0.5 + bias
        return scores.masked_fill(~kept, float("-inf")).softmax(-1)
    counted = allowed if causal else kept
    lengths = counted.sum(-1, keepdim=True).clamp(min=1).to(scores.dtype)
    return ELEMENTWISE[kind](scores / lengths + bias) * kept


class GatedAttention(nn.Module):
    """Mega's attention over its own sequence: [B, L, D] -> [B, L, D].

        n = norm(x),  m = EMA(n)
        u, z, r, hx = split(mx_proj(m)): D, Z, V, D;   u = sigmoid(u),  z = silu(z),  r = silu(r)
        q = qk_weight[0] z + qk_bias[0],  k = qk_weight[1] z + qk_bias[1],  v = act(v_proj(n))
        h = act(hx + h_proj(r * (weights(q, k) v)))
        out = x + u (h - x)

    With prenorm = False, n is x and the norm is taken of `out`. Attention stays within chunks, the moving average does
    not.
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        dim, z_dim, hidden = config.embed_dim, config.z_dim, config.hidden_dim
        self.config = config
        self.norm = make_norm(config.norm, dim, config.norm_affine)
        self.ema = MultiHeadEMA(config)
        self.v_proj = nn.Linear(dim, hidden)
        self.mx_proj = nn.Linear(dim, 2 * dim + z_dim + hidden)
        self.h_proj = nn.Linear(hidden, dim)
        self.qk_weight = nn.Parameter(torch.empty(2, z_dim))
        self.qk_bias = nn.Parameter(torch.zeros(2, z_dim))
        nn.init.normal_(self.qk_weight, std=0.02)
        self.position = position_bias(config, config.reach)
        self.dropout = nn.Dropout(config.dropout)
        self.attention_dropout = nn.Dropout(config.attention_dropout)
        self.hidden_dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The block's output; `attention_mask` [B, L] is True for steps that are no padding."""
        config = self.config
        act = ACTIVATIONS[config.activation]
        n = self.norm(x) if config.prenorm else x
        m = self.dropout(self.ema(n, attention_mask))
        widths = (config.embed_dim, config.z_dim, config.hidden_dim, config.embed_dim)
        u, z, r, hx = self.mx_proj(m).split(widths, -1)
        q, k = (F.silu(z)[:, :, None] * self.qk_weight + self.qk_bias).unbind(2)  # [B, L, Z]
        v = self.hidden_dropout(act(self.v_proj(n)))  # [B, L, V]
        h = act(hx + self.h_proj(F.silu(r) * self._attend(q, k, v, attention_mask)))
        out = x + torch.sigmoid(u) * (self.dropout(h) - x)
        return out if config.prenorm else self.norm(out)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The weighted values, chunk by chunk: [B, L, V]."""
        batch, length = q.shape[:2]
        chunk = chunk_of(length, self.config.chunk_size)
        q, k, v = (tensor.reshape(batch, -1, chunk, tensor.shape[2]) for tensor in (q, k, v))  # [B, N, C, .]
        attention_mask = None if attention_mask is None else attention_mask.reshape(batch, -1, chunk)
        bias = self.position(chunk, chunk)
        weights = attention_weights(self.config.attention, q, k, bias, attention_mask, causal=self.config.is_causal)
        return (self.attention_dropout(weights) @ v).reshape(batch, length, -1)


class GatedCrossAttention(nn.Module):
    """Mega's attention over another sequence: [B, L, D] and memory [B, S, D] -> [B, L, D].

        u, r, q = split(q_proj(norm(x))): D, D, Z;   u = sigmoid(u),  r = silu(r)
        k = k_proj(memory),  v = act(v_proj(memory))
        out = x + u (act(h_proj(r * (weights(q, k) v))) - x)

    Steps are counted from the beginning of either sequence, padding included. Never chunked.
    """

    def __init__(self, config: MegaConfig, reach: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.config = config
        self.norm = make_norm(config.norm, dim, config.norm_affine)
        self.q_proj = nn.Linear(dim, 2 * dim + config.z_dim)
        self.k_proj = nn.Linear(dim, config.z_dim)
        self.v_proj = nn.Linear(dim, dim)
        self.h_proj = nn.Linear(dim, dim)
        self.position = position_bias(config, reach)
        self.dropout = nn.Dropout(config.dropout)
        self.attention_dropout = nn.Dropout(config.attention_dropout)
        self.hidden_dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor, memory: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The block's output; `attention_mask` [B, S] is True for the memory's steps that are no padding."""
        config = self.config
        act = ACTIVATIONS[config.activation]
        n = self.norm(x) if config.prenorm else x
        u, r, q = self.q_proj(n).split((config.embed_dim, config.embed_dim, config.z_dim), -1)
        k = self.k_proj(memory)  # [B, S, Z]
        v = self.hidden_dropout(act(self.v_proj(memory)))  # [B, S, D]
        bias = self.position(q.shape[1], k.shape[1])
        weights = attention_weights(config.attention, q, k, bias, attention_mask, causal=False)
        h = act(self.h_proj(F.silu(r) * (self.attention_dropout(weights) @ v)))
        out = x + torch.sigmoid(u) * (self.dropout(h) - x)
        return out if config.prenorm else self.norm(out)


def chunk_of(length: int, chunk_size: int | None) -> int:
    """Steps of one chunk of a sequence: all of them where they are no more than a chunk.

    Raises:
        OptionError: the length is beyond a chunk and no multiple of it.
    """
    if chunk_size is None or length <= chunk_size:
        return length
    if length % chunk_size:
        raise OptionError(
            f"{length} steps are no whole number of chunks of {chunk_size}; pad them, and tell it by a mask"
        )
    return chunk_size
