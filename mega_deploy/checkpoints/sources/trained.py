"""A Mega's weights as a source brings them, and what all sources share: float32, finite, and a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.config.tasks import PaperConfig
from mega_deploy.errors import CheckpointError


@dataclass(frozen=True)
class Trained:
    """The weights of a Mega, all there and of the right shapes, and what the checkpoint says of its options."""

    format: str
    """"native", "torch-state-dict", "edifice-safetensors", "edifice-nx", "fairseq" or "huggingface"."""
    weights: dict[str, Array]
    """float32, by the names and in the layouts of our torch module."""
    options: dict[str, Any]
    """Fields of EdificeConfig that the file states or that its tensors tell; of the paper's Mega, all of `paper`."""
    paper: PaperConfig | None = None
    """The configuration of a model of the paper's, which is always whole; None for Edifice's."""


def is_transposed(name: str, names: Mapping[str, str]) -> bool:
    """Whether the file has its own name for a weight: then its matrices are the transposes of ours, as Edifice's."""
    return names.get(name, name) != name


def as_float32(state: Mapping[str, Array], names: Mapping[str, str]) -> dict[str, Array]:
    """The weights in float32.

    Args:
        state: weights by our module's names.
        names: for each of those names what the file calls it; names that are not in it stand for themselves.

    Raises:
        CheckpointError: one is not a floating-point tensor, or holds NaN or infinite values; by the file's own name.
    """
    converted = {}
    for name, tensor in state.items():
        if tensor.dtype.kind != "f":
            raise CheckpointError(f"the tensor {names.get(name, name)} is {tensor.dtype}, not floating-point")
        with np.errstate(over="ignore"):
            converted[name] = np.ascontiguousarray(tensor, np.float32)
        finite = np.isfinite(converted[name])
        if bad := int(finite.size - finite.sum()):
            first = [int(axis) for axis in np.argwhere(~finite)[0]]
            if is_transposed(name, names) and len(first) == 2:
                first.reverse()
            raise CheckpointError(
                f"the tensor {names.get(name, name)} holds {bad} NaN or infinite values (as float32), the first at "
                f"{first}; a model that diverged cannot be deployed"
            )
    return converted


def weights_sha256(state: Mapping[str, Array]) -> str:
    """SHA-256, in hex, over names, dtypes, shapes and values, whatever the order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = np.ascontiguousarray(state[name])
        digest.update(f"{name}\0{tensor.dtype.str}\0{tensor.shape}\0".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
