"""The layers of the paper's Mega in their deployment form: the same function, with all constants computed beforehand.

Everything is computed in float64 and exact in real arithmetic. The rules:

1. Linear layers with one input are one: those of the moving average's output (gates, shared representation, candidate),
   keys and values of cross attention, its query and gates.
2. Queries and keys are affine in the shared z. Where attention is shift-invariant, as a softmax is, both maps are one
   on the queries' side, scale included, for what of a score does not depend on the key drops out: q'_i . z_j, with
   q' = ((z g_q + b_q) g_k) / sqrt(Z). Likewise the bias of cross attention's keys drops out. laplace and relu2 keep
   both.
3. A norm's affine map, of a batch norm all of it, goes into the layer behind it, where only that one reads it: the
   feed-forward network's, and cross attention's. The norm before the moving average keeps its own, which costs nothing
   in a layer norm: the padding that is left out behind it knows no bias.
4. Relative biases depend on the distance alone, simple or rotary: one number for each. Causal attention that is written
   in plain operators has -infinity there for the keys ahead, so that no mask is added.
5. The residual omega x of the moving average is a tap of its kernel at distance 0, where no padding parts the two.

Weights are [in, out] here, so that a layer reads x @ weight + bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from mega_deploy.arrays import Float64Array
from mega_deploy.config.norm import NORM_EPSILON
from mega_deploy.config.paper import MegaConfig
from mega_deploy.errors import OptionError
from mega_deploy.exporters.ema.kernel import DecaySum, MovingAverage
from mega_deploy.exporters.linear import Linear, as_array, as_linear, join
from mega_deploy.models.paper.attention import GatedAttention, GatedCrossAttention
from mega_deploy.models.paper.ema import MultiHeadEMA
from mega_deploy.models.paper.encoder import FeedForward, MegaLayer, MegaStack
from mega_deploy.models.paper.norm import BatchNorm, RMSNorm, ScaleNorm, Scaling
from mega_deploy.models.paper.position import RotaryBias, SimpleBias


@dataclass(frozen=True)
class Norm:
    """weight * normalised(x) + bias."""

    kind: Literal["layer", "rms", "affine"]
    """"affine" normalises nothing: a batch norm by running statistics, or Hugging Face's RMSNorm."""
    weight: Float64Array
    """Scale of each channel, [D]."""
    bias: Float64Array
    """Shift of each channel, [D]; zeros for "rms"."""


@dataclass(frozen=True)
class FoldedAttention:
    """Gated attention with its moving average; see models.paper.attention.GatedAttention."""

    norm: Norm | None
    """Before all."""
    post_norm: Norm | None
    """Behind the residual."""
    ema: MovingAverage
    omega: Float64Array
    """[D]: the moving average's residual."""
    value: Linear
    joint: Linear
    """The moving average's output -> [u | z | r | candidate], D + Z + V + D."""
    hidden: Linear
    query: Linear
    """Unlike the others element by element: z * weight + bias, both [Z]."""
    key: Linear | None
    """The same; None for z itself."""
    distances: Float64Array
    """Bias by j - i, from 1 - reach to reach - 1: [2 reach - 1]."""


@dataclass(frozen=True)
class FoldedCross:
    """Gated cross attention."""

    norm: Norm | None
    post_norm: Norm | None
    joint: Linear
    """[u | r | query], D + D + Z."""
    memory: Linear
    """[key | value], Z + D."""
    hidden: Linear
    distances: Float64Array
    """As in FoldedAttention."""


@dataclass(frozen=True)
class FoldedFFN:
    """x + fc2(act(fc1(norm(x)))), and a norm behind it or not."""

    norm: Norm | None
    post_norm: Norm | None
    first: Linear
    second: Linear


@dataclass(frozen=True)
class FoldedLayer:
    """One layer."""

    attention: FoldedAttention
    cross: FoldedCross | None
    ffn: FoldedFFN | None


@dataclass(frozen=True)
class FoldedStack:
    """All layers, and the final norm."""

    config: MegaConfig
    layers: tuple[FoldedLayer, ...]
    final_norm: Norm | None


def fold_stack(stack: MegaStack, longest: int) -> FoldedStack:
    """The deployment form of a stack, which stays as it is.

    Args:
        stack: in eval mode.
        longest: steps of the longest sequence, of a decoder's memory too.
    """
    config = stack.config
    layers = tuple(_fold_layer(layer, config, longest) for layer in stack.layers)
    return FoldedStack(config, layers, fold_norm(stack.final_norm, config.embed_dim))


def _fold_layer(layer: nn.Module, config: MegaConfig, longest: int) -> FoldedLayer:
    assert isinstance(layer, MegaLayer)
    cross, ffn = layer.cross_attention, layer.ffn
    return FoldedLayer(
        _fold_attention(layer.attention, config, longest),
        None if cross is None else _fold_cross(cross, config, longest),
        None if ffn is None else _fold_ffn(ffn, config),
    )


def _fold_attention(layer: GatedAttention, config: MegaConfig, longest: int) -> FoldedAttention:
    norm = fold_norm(layer.norm, config.embed_dim)
    weight, bias = as_array(layer.qk_weight), as_array(layer.qk_bias)
    query, key = Linear(weight[0], bias[0]), Linear(weight[1], bias[1])
    traits = config.attention_traits
    if traits.shift_invariant:
        query = Linear(query.weight * key.weight, query.bias * key.weight)
    if not traits.divides_by_keys:
        query = query.scaled(config.z_dim**-0.5)
    reach = longest if config.chunk_size is None else min(longest, config.chunk_size)
    distances = fold_distances(layer.position, reach)
    if config.is_causal and not traits.masks_itself:
        distances[reach:] = -np.inf
    omega = as_array(layer.ema.omega)
    return FoldedAttention(
        norm=norm if config.prenorm else None,
        post_norm=None if config.prenorm else norm,
        ema=fold_ema(layer.ema),
        omega=omega,
        value=as_linear(layer.v_proj),
        joint=as_linear(layer.mx_proj),
        hidden=as_linear(layer.h_proj),
        query=query,
        key=None if traits.shift_invariant else key,
        distances=distances,
    )


def fold_ema(layer: MultiHeadEMA) -> MovingAverage:
    """Equations 5 and 6 in closed form: weight p beta gamma / sqrt(h), decay 1 - p sigmoid(alpha)."""
    delta, alpha, beta, gamma = (
        tensor.detach().double() for tensor in (layer.delta, layer.alpha, layer.beta, layer.gamma)
    )
    p = torch.sigmoid(delta)
    weight = as_array(p * beta * gamma * gamma.shape[1] ** -0.5)
    decay = as_array(1 - p * torch.sigmoid(alpha))
    if not layer.bidirectional:
        return MovingAverage(DecaySum(weight, decay), None, layer.truncation)
    channels = len(weight) // 2
    past, future = (DecaySum(weight[rows], decay[rows]) for rows in (slice(channels), slice(channels, None)))
    return MovingAverage(past, future, layer.truncation)


def _fold_cross(layer: GatedCrossAttention, config: MegaConfig, longest: int) -> FoldedCross:
    dim = config.embed_dim
    norm = fold_norm(layer.norm, dim)
    joint, key = as_linear(layer.q_proj), as_linear(layer.k_proj)
    traits = config.attention_traits
    if not traits.divides_by_keys:
        scale = np.concatenate([np.ones(2 * dim), np.full(config.z_dim, config.z_dim**-0.5)])
        joint = Linear(joint.weight * scale, joint.bias * scale)
    if traits.shift_invariant:
        key = Linear(key.weight, np.zeros_like(key.bias))
    bare, joint = behind(norm, joint) if config.prenorm else (None, joint)
    return FoldedCross(
        norm=bare,
        post_norm=None if config.prenorm else norm,
        joint=joint,
        memory=join(key, as_linear(layer.v_proj)),
        hidden=as_linear(layer.h_proj),
        distances=fold_distances(layer.position, longest),
    )


def _fold_ffn(layer: FeedForward, config: MegaConfig) -> FoldedFFN:
    norm, first = fold_norm(layer.norm, config.embed_dim), as_linear(layer.fc1)
    bare, first = behind(norm, first) if layer.prenorm else (None, first)
    return FoldedFFN(bare, None if layer.prenorm else norm, first, as_linear(layer.fc2))


def fold_norm(layer: nn.Module, dim: int) -> Norm | None:
    """Any of the norms; None for none."""
    if isinstance(layer, nn.Identity):
        return None
    ones, zeros = np.ones(dim), np.zeros(dim)
    found = dict(layer.named_parameters())
    weight = as_array(found["weight"]) if "weight" in found else ones
    bias = as_array(found["bias"]) if "bias" in found else zeros
    if isinstance(layer, nn.LayerNorm):
        return Norm("layer", weight, bias)
    if isinstance(layer, ScaleNorm):
        return Norm("rms", ones if layer.scalar is None else ones * as_array(layer.scalar), zeros)
    if isinstance(layer, RMSNorm):
        return Norm("rms", weight, zeros)
    if isinstance(layer, BatchNorm):
        weight = weight / np.sqrt(as_array(layer.running_var) + NORM_EPSILON)
        return Norm("affine", weight, bias - as_array(layer.running_mean) * weight)
    assert isinstance(layer, Scaling)
    return Norm("affine", weight, zeros)


def behind(norm: Norm | None, layer: Linear) -> tuple[Norm | None, Linear]:
    """The norm without its affine map, None where that is all of it, and the layer behind it with that map."""
    if norm is None or norm.kind == "rms":  # whose weight costs nothing, and is what onnxruntime knows the pattern by
        return norm, layer
    folded = Linear(norm.weight[:, None] * layer.weight, norm.bias @ layer.weight + layer.bias)
    bare = Norm("layer", np.ones_like(norm.weight), np.zeros_like(norm.bias)) if norm.kind == "layer" else None
    return bare, folded


def fold_distances(position: SimpleBias | RotaryBias, reach: int) -> Float64Array:
    """The bias for each distance j - i from 1 - reach to reach - 1: [2 reach - 1]."""
    if isinstance(position, SimpleBias):
        if reach > position.reach:
            raise OptionError(
                f"{reach} steps are more than the simple positional bias reaches: at most {position.reach}"
            )
        centre = position.reach - 1
        return as_array(position.table)[centre + 1 - reach : centre + reach].copy()
    exact = RotaryBias(position.alpha.shape[0]).double()
    exact.load_state_dict(position.state_dict())
    with torch.no_grad():
        ahead, back = exact(1, reach)[0], exact(reach, 1)[:, 0]
    return np.concatenate([as_array(back)[:0:-1], as_array(ahead)])
