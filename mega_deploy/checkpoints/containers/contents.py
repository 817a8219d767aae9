"""What a container holds, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mega_deploy.arrays import Array

ContainerName = Literal["safetensors", "torch", "nx", "folder"]


@dataclass(frozen=True)
class Contents:
    """Arrays by name, and what stands beside them."""

    container: ContainerName
    """The format: a safetensors file, a .pt file of torch, an .nx file, or a folder with config.json beside weights."""
    arrays: dict[str, Array]
    """By the file's own names, in its own dtypes (bfloat16 as float32) and layouts."""
    header: Mapping[str, Any]
    """Whatever else the container says, as plain values by name: safetensors' metadata, what lies beside a state dict,
    an .nx file's metadata term as "metadata", a folder's "config.json"."""
    sha256: str
    """SHA-256 of the file's bytes, in hex; of a folder's weights file, or of its index and then its shards by name."""
    bytes: int
    """Size of what was hashed."""
