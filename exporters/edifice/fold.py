"""Trained form -> deployment form: the same function, with all that does not depend on the input computed beforehand.

Everything is computed in float64 and exact in real arithmetic. The rules, for Edifice's Mega:

1. A norm's gamma and beta go into the linear layers behind it; what remains is the bare normalisation, written n below.
2. Softmax attention needs no keys. The scores of a single head are (n_i Q + a).(n_j K + b) / sqrt(H), and what of
   them does not depend on j drops out of the softmax: q'_i . n_j remains, with q' = (n Q + a) K^T / sqrt(H).
   (Not so for the l1 distance of Laplace attention, which keeps its keys.)
3. Where only the last frame is wanted, the last block computes query, gate, output and feed-forward for that one row,
   and projects the weighted sum of n instead of weighting the projected values; so does every block of a stream, which
   therefore has to remember n and nothing else of a frame. The softmax weights sum to 1; those of
   Laplace attention sum to s / (s + epsilon), by which the bias of the value projection is scaled.

Layers with one input stay apart: the results of one joint layer would have to be copied apart again, and three smaller
matrix products take no longer than one.

Weights are [in, out] here, so that a layer reads x @ weight + bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import nn

from mega_deploy.arrays import Float64Array
from mega_deploy.config.edifice import EdificeConfig
from mega_deploy.exporters.ema.kernel import DecaySum, MovingAverage
from mega_deploy.exporters.linear import Linear, as_array, as_linear, check_trained
from mega_deploy.models import edifice


@dataclass(frozen=True)
class FoldedEMA:
    """n -> out(ema(proj(n)))."""

    proj: Linear
    ema: MovingAverage
    out: Linear


@dataclass(frozen=True)
class FoldedAttention:
    """n -> out(sigmoid(gate) * attention)."""

    query: Linear
    key: Linear | None
    """None where scores need no keys, by rule 2."""
    value: Linear
    """Before the weighted sum; behind it where only the last row is computed."""
    gate: Linear
    out: Linear


@dataclass(frozen=True)
class FoldedFFN:
    """n -> down(silu(gate) * up)."""

    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class FoldedBlock:
    """One block; `last_row` tells that behind the moving average only the last row is computed."""

    ema: FoldedEMA
    attention: FoldedAttention
    ffn: FoldedFFN
    last_row: bool


@dataclass(frozen=True)
class FoldedMega:
    """The deployment form of an Edifice Mega; exporters.edifice.window writes what it computes."""

    config: EdificeConfig
    input_projection: Linear | None
    blocks: tuple[FoldedBlock, ...]
    final_gamma: Float64Array
    """Scale of the final norm, [hidden_size]: no linear layer follows it."""
    final_beta: Float64Array
    """Shift of the final norm, [hidden_size]."""


def fold(model: edifice.Mega, *, one_row: bool = False) -> FoldedMega:
    """The deployment form of a trained model, which stays as it is.

    Args:
        model: in eval mode.
        one_row: whether every block computes one row, as in a stream; otherwise only a last block does, by rule 3.

    Raises:
        OptionError: `model` is in training mode, where dropout makes it another function.
        InputError: a weight is NaN or infinite.
    """
    check_trained(model)
    config = model.config
    final = len(model.blocks) - 1
    return FoldedMega(
        config=config,
        input_projection=as_linear(model.input_projection) if isinstance(model.input_projection, nn.Linear) else None,
        blocks=tuple(
            _fold_block(
                cast(edifice.MegaBlock, block),
                config,
                last_row=one_row or (config.output == "last" and index == final),
            )
            for index, block in enumerate(model.blocks)
        ),
        final_gamma=as_array(model.final_norm.weight),
        final_beta=as_array(model.final_norm.bias),
    )


def _fold_block(block: edifice.MegaBlock, config: EdificeConfig, *, last_row: bool) -> FoldedBlock:
    alpha = as_array(block.ema.alpha)
    # sigmoid(alpha) and 1 - sigmoid(alpha), neither of which loses digits or overflows.
    decay, weight = np.exp(-np.logaddexp(0, -alpha)), np.exp(-np.logaddexp(0, alpha))
    return FoldedBlock(
        ema=FoldedEMA(
            proj=_behind(block.ema_norm, block.ema.proj),
            ema=MovingAverage(DecaySum(weight=weight[:, None], decay=decay[:, None])),
            out=as_linear(block.ema.out),
        ),
        attention=_fold_attention(block, config),
        ffn=FoldedFFN(
            gate=_behind(block.ffn_norm, block.ffn.gate),
            up=_behind(block.ffn_norm, block.ffn.up),
            down=as_linear(block.ffn.down),
        ),
        last_row=last_row,
    )


def _fold_attention(block: edifice.MegaBlock, config: EdificeConfig) -> FoldedAttention:
    attention = block.attention
    query, key, value, gate = (
        _behind(block.attention_norm, layer) for layer in (attention.q, attention.k, attention.v, attention.gate)
    )
    keyless = config.attention_traits.shift_invariant
    if keyless:
        query = Linear(query.weight @ key.weight.T, query.bias @ key.weight.T).scaled(config.hidden_size**-0.5)
    return FoldedAttention(
        query=query,
        key=None if keyless else key,
        value=value,
        gate=gate,
        out=as_linear(attention.out),
    )


def _behind(norm: nn.LayerNorm, layer: nn.Linear) -> Linear:
    """`layer` behind `norm`, as one layer behind the bare normalisation."""
    linear = as_linear(layer)
    return Linear(as_array(norm.weight)[:, None] * linear.weight, as_array(norm.bias) @ linear.weight + linear.bias)
