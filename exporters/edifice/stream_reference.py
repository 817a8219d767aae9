"""The sequences of an Edifice stream's parity reference, and the trained form that sees a window alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from mega_deploy.config.common import Precision
from mega_deploy.config.edifice import EdificeConfig
from mega_deploy.exporters.edifice.signature import window_signature
from mega_deploy.exporters.reference.cases import Inputs
from mega_deploy.exporters.reference.sequences import BEYOND, GIVEN, SHORT, Sequences
from mega_deploy.exporters.reference.trained import AUTOCAST
from mega_deploy.models.edifice import GatedAttention, Mega, MegaBlock
from mega_deploy.signature import Range, Signature

NEARBY = 2
"""Runs on inputs a last place apart, besides the one on the inputs themselves: over a whole stream one is no lucky one.
PyTorch takes long for half precision on a CPU, where that one is all."""
QUERIES = 256
"""Rows of the attention's matrix that are computed at once."""
ONE = Range(1, 1, 1)


def stream_sequences(
    config: EdificeConfig, length: int, most: int, *, samples: int, seed: int, precision: Precision
) -> Sequences:
    """A sequence of the window and BEYOND frames more, its beginning, and shorter ones of many kinds.

    Args:
        config: of the model.
        length: frames of the window.
        most: streams that the bundle serves at once.
        samples: shorter random sequences, at least 1.
        seed: of the random ones.
        precision: of the bundle.
    """
    random, features = np.random.default_rng(seed), config.embed_dim
    short, longest = length + SHORT, length + BEYOND
    normal = random.standard_normal((short, features))
    impulse = np.zeros((short, features))
    impulse[0] = normal[0]
    long = random.standard_normal((1, longest, features))
    kinds = {
        "random, the first window": long[:, :length],
        f"random, {BEYOND} frames beyond the window": long,
        "random, together": random.standard_normal((samples, short, features)),
        "zeros": np.zeros((1, short, features)),
        "constant": np.broadcast_to(normal[:1], (1, short, features)),
        "huge (1e4)": 1e4 * normal[None],
        "tiny (1e-4)": 1e-4 * normal[None],
        "an impulse, then silence": impulse[None],
    }
    return Sequences(
        signature=_every_frame(config, Range(length, short, longest)),
        pools={name: {"frames": kind.astype(np.float32)} for name, kind in kinds.items()},
        most=most,
        nearby=_nearby(precision),
    )


def given_sequences(config: EdificeConfig, inputs: Inputs, precision: Precision) -> Sequences:
    """Sequences of one's own: `frames` [batch, frames, embed_dim]."""
    rows, frames = inputs["frames"].shape[:2]
    lengths = Range(frames, frames, frames)
    return Sequences(
        signature=_every_frame(config, lengths), pools={GIVEN: inputs}, most=rows, nearby=_nearby(precision)
    )


def _nearby(precision: Precision) -> int:
    return 0 if precision in AUTOCAST else NEARBY


def _every_frame(config: EdificeConfig, lengths: Range) -> Signature:
    """The signature of the trained form over whole sequences, of which it gives every frame's features."""
    return window_signature(dataclasses.replace(config, output="sequence"), ONE, lengths)


class LimitedMega(nn.Module):
    """A Mega whose attention sees the last `window` frames: [batch, frames, D] -> every frame's [batch, frames, H].

    Args:
        model: trained, in float32 or float64; it is shared, not copied.
        window: frames that attention reaches back, the present one included.
    """

    def __init__(self, model: Mega, window: int) -> None:
        super().__init__()
        self.model, self.window = model, window

    def forward(self, frames: Tensor) -> Tensor:
        x = self.model.input_projection(frames)
        for block in cast(Sequence[MegaBlock], self.model.blocks):
            x = x + block.ema(block.ema_norm(x))
            x = x + _limited_attention(block.attention, block.attention_norm(x), self.window)
            x = x + block.ffn(block.ffn_norm(x))
        features: Tensor = self.model.final_norm(x)
        return features


def _limited_attention(attention: GatedAttention, n: Tensor, window: int) -> Tensor:
    """n: [batch, frames, H] -> the same: GatedAttention, where frame i sees those from i - window + 1 to i."""
    q, k, v = attention.q(n), attention.k(n), attention.v(n)
    rows = []
    for start in range(0, n.shape[1], QUERIES):
        end, first = min(start + QUERIES, n.shape[1]), max(0, start - window + 1)
        age = torch.arange(start, end)[:, None] - torch.arange(first, end)
        scores = q[:, start:end] @ k[:, first:end].transpose(1, 2) / q.shape[2] ** 0.5
        weights = scores.masked_fill((age < 0) | (age >= window), float("-inf")).softmax(-1)
        rows.append(weights.to(v.dtype) @ v[:, first:end])
    return attention.out(torch.sigmoid(attention.gate(n)) * torch.cat(rows, 1))
