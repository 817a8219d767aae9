"""Trained form -> deployment form: the same function, with all that does not depend on the input computed beforehand.

Everything is computed in float64 and exact in real arithmetic. The rules, for Edifice's Mega:

1. A norm's gamma and beta go into the linear layers behind it; what remains is the bare normalisation, written n below.
2. Linear layers with one input become one: query, value and gate; SwiGLU's gate and up.
3. Softmax attention needs no keys. The scores of a single head are (n_i Q + a).(n_j K + b) / sqrt(H), and what of
   them does not depend on j drops out of the softmax: q'_i . n_j remains, with q' = (n Q + a) K^T / sqrt(H).
   (Not so for the l1 distance of Laplace attention, which keeps its keys.)
4. Where only the last frame is wanted, the last block computes query, gate, output and feed-forward for that one row,
   and projects the weighted sum of n instead of weighting the projected values; so does every block of a stream, which
   therefore has to remember n and nothing else of a frame. The softmax weights sum to 1; those of
   Laplace attention sum to s / (s + epsilon), by which the bias of the value projection is scaled.

Weights are [in, out] here, so that a layer reads x @ weight + bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mega_deploy.config import EdificeConfig
from mega_deploy.errors import InputError, OptionError
from mega_deploy.exporters.ema import DecaySum
from mega_deploy.models import edifice

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """x @ weight + bias, float64: [..., in] -> [..., out]."""

    weight: Array
    """[in, out]."""
    bias: Array
    """[out]."""

    def scaled(self, factor: float) -> Linear:
        """The layer whose output is `factor` times this one's."""
        return Linear(self.weight * factor, self.bias * factor)


@dataclass(frozen=True)
class FoldedEMA:
    """n -> out(ema(proj(n)))."""

    proj: Linear
    ema: DecaySum
    out: Linear


@dataclass(frozen=True)
class FoldedAttention:
    """n -> out(gate * attention); which layers there are depends on the attention function and on the rows wanted."""

    kind: Literal["softmax", "laplace"]
    joint: Linear
    """All rows: [query | value | gate], for laplace [query | key | value | gate]. The last row only: [query | gate]."""
    key: Linear | None
    """Laplace with the last row only: the keys of all rows."""
    value: Linear | None
    """The last row only: the value projection, behind the weighted sum."""
    out: Linear


@dataclass(frozen=True)
class FoldedFFN:
    """n -> down(silu(gate) * up)."""

    joint: Linear
    """[gate | up]."""
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
    """The deployment form of an Edifice Mega; exporters.edifice writes what it computes."""

    config: EdificeConfig
    input_projection: Linear | None
    blocks: tuple[FoldedBlock, ...]
    final_gamma: Array
    """[hidden_size]: no linear layer follows the final norm."""
    final_beta: Array
    """[hidden_size]."""


def fold(model: edifice.Mega, *, one_row: bool = False) -> FoldedMega:
    """The deployment form of a trained model, which stays as it is.

    Args:
        model: in eval mode.
        one_row: whether every block computes one row, as in a stream; otherwise only a last block does, by rule 4.

    Raises:
        OptionError: `model` is in training mode, where dropout makes it another function.
        InputError: a weight is NaN or infinite.
    """
    if any(module.training for module in model.modules()):
        raise OptionError("the model, or a part of it, is in training mode; call model.eval() first")
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise InputError(
                f"the weight {name} holds NaN or infinite values; a model that diverged cannot be deployed"
            )
    config = model.config
    final = len(model.blocks) - 1
    return FoldedMega(
        config=config,
        input_projection=_linear(model.input_projection) if isinstance(model.input_projection, nn.Linear) else None,
        blocks=tuple(
            _fold_block(
                cast(edifice.MegaBlock, block),
                config,
                last_row=one_row or (config.output == "last" and index == final),
            )
            for index, block in enumerate(model.blocks)
        ),
        final_gamma=_array(model.final_norm.weight),
        final_beta=_array(model.final_norm.bias),
    )


def _fold_block(block: edifice.MegaBlock, config: EdificeConfig, *, last_row: bool) -> FoldedBlock:
    alpha = _array(block.ema.alpha)
    decay, weight = (
        np.exp(-np.logaddexp(0, -alpha)),
        np.exp(-np.logaddexp(0, alpha)),
    )  # sigmoid(alpha), 1 - sigmoid(alpha)
    return FoldedBlock(
        ema=FoldedEMA(
            proj=_behind(block.ema_norm, block.ema.proj),
            ema=DecaySum(weight=weight[:, None], decay=decay[:, None]),
            out=_linear(block.ema.out),
        ),
        attention=_fold_attention(block, config, last_row=last_row),
        ffn=FoldedFFN(
            joint=_join(_behind(block.ffn_norm, block.ffn.gate), _behind(block.ffn_norm, block.ffn.up)),
            down=_linear(block.ffn.down),
        ),
        last_row=last_row,
    )


def _fold_attention(block: edifice.MegaBlock, config: EdificeConfig, *, last_row: bool) -> FoldedAttention:
    attention = block.attention
    query, key, value, gate = (
        _behind(block.attention_norm, layer) for layer in (attention.q, attention.k, attention.v, attention.gate)
    )
    keys: tuple[Linear, ...] = (key,)
    if config.attention == "softmax":
        query = Linear(query.weight @ key.weight.T, query.bias @ key.weight.T).scaled(config.hidden_size**-0.5)
        keys = ()
    return FoldedAttention(
        kind=config.attention,
        joint=_join(query, gate) if last_row else _join(query, *keys, value, gate),
        key=keys[0] if keys and last_row else None,
        value=value if last_row else None,
        out=_linear(attention.out),
    )


def _behind(norm: nn.LayerNorm, layer: nn.Linear) -> Linear:
    """`layer` behind `norm`, as one layer behind the bare normalisation."""
    linear = _linear(layer)
    return Linear(_array(norm.weight)[:, None] * linear.weight, _array(norm.bias) @ linear.weight + linear.bias)


def _join(*layers: Linear) -> Linear:
    """Layers with one input as one layer with their outputs side by side."""
    return Linear(
        np.concatenate([layer.weight for layer in layers], axis=1), np.concatenate([layer.bias for layer in layers])
    )


def _linear(layer: nn.Linear) -> Linear:
    return Linear(_array(layer.weight).T, _array(layer.bias))


def _array(tensor: torch.Tensor) -> Array:
    return tensor.detach().to("cpu", torch.float64).numpy()
