"""Names of the weights in fairseq's checkpoints and Hugging Face's, which share a layout, by our own module's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mega_deploy.arrays import Array
from mega_deploy.errors import CheckpointError

# In this order: what stands for one thing in a name, and what we call it.
_PARTS = [
    (r"\bmega_layer\.gamma$", "attention.qk_weight"),
    (r"\bmega_layer\.beta$", "attention.qk_bias"),
    (r"\bmega_layer\.qk_(weight|bias)$", r"attention.qk_\1"),
    (r"\bmega_layer\b", "attention"),
    (r"\bcross_attn\b", "cross_attention"),
    (r"\bnffn\b", "ffn"),
    (r"norm\.norm\.", "norm."),
    (r"\b(move|ema_gate)\b", "ema"),
    (r"\bema\.damping_factor$", "ema.delta"),
    (r"\bema\.decay_factor$", "ema.alpha"),
    (r"\bema\.ema_expansion_matrix$", "ema.beta"),
    (r"\bema\.kernel_projection_matrix$", "ema.gamma"),
    (r"\bema\.residual_weight$", "ema.omega"),
    (r"\brel_pos_bias\.rel_pos_bias$", "position.table"),
    (r"\brel_pos_bias\.b_param$", "position.beta"),
    (r"\brel_pos_bias\b", "position"),
]
# Buffers that carry no weight: versions, an anchor for the device, and a counter that only training reads.
_NO_WEIGHT = re.compile(r"(^|\.)(version|_float_tensor|num_batches_tracked)$")


def rename(
    tensors: Mapping[str, Array], patterns: Sequence[tuple[str, str]]
) -> tuple[dict[str, Array], dict[str, str]]:
    """The weights under our names and in our shapes, and for each of those names the file's.

    Args:
        tensors: by the file's names.
        patterns: regular expressions and what stands instead, for names outside of the layers.

    Raises:
        CheckpointError: two tensors are one weight.
    """
    weights: dict[str, Array] = {}
    names: dict[str, str] = {}
    for theirs, tensor in tensors.items():
        ours = own_name(theirs)
        if ours is None:
            continue
        for pattern, replacement in patterns:
            ours = re.sub(pattern, replacement, ours)
        if ours in weights:
            raise CheckpointError(f"the tensors {names[ours]} and {theirs} are the same weight of the model")
        weights[ours], names[ours] = tensor.reshape(own_shape(ours, tensor.shape)), theirs
    return weights, names


def carries_weight(name: str) -> bool:
    """Whether an array of this name is a weight, and not a version or a counter that only training reads."""
    return _NO_WEIGHT.search(name) is None


def own_name(name: str) -> str | None:
    """Our name for the weight of a layer or norm, or None for what carries no weight."""
    if not carries_weight(name):
        return None
    for pattern, ours in _PARTS:
        name = re.sub(pattern, ours, name)
    return name


def own_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Our shape of the weight of our name: theirs hold axes of length one, for broadcasting."""
    if re.search(r"\bema\.(delta|alpha|beta)$", name) and len(shape) == 3 and shape[2] == 1:
        return shape[:2]
    if re.search(r"\bposition\.(alpha|beta)$", name) and len(shape) == 2 and shape[0] == 1:
        return shape[1:]
    return shape
