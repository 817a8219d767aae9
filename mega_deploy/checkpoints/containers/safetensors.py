"""The bytes of a file, and the tensors of a safetensors file."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.checkpoints.sources.paper_names import own_name
from mega_deploy.errors import CheckpointError, require

MAX_FILE_BYTES = 8 << 30
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "U32": "<u4"}


def read_bytes(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """All bytes of a regular file; CheckpointError where there is none, or more than `limit` bytes."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # asked before opening: opening a pipe waits for a writer
            raise CheckpointError("it is not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise CheckpointError(f"takes {size} bytes, more than the {limit} that this version reads")
            data = file.read(size)
    except FileNotFoundError:
        raise CheckpointError("does not exist; look for a slip in the path") from None
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise CheckpointError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not data:
        raise CheckpointError("it is empty; copy it again")
    return data


def read_safetensors(data: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors by name, without those that carry no weight, and the metadata.

    Raises:
        CheckpointError: the file is damaged, names a tensor twice, or holds what no Mega has.
        MissingComponentError: safetensors is not installed.
    """
    safetensors = require("safetensors", "export", "reading a .safetensors file")
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"it is a damaged safetensors file ({error}); copy it again") from None
    tensors = {}
    for name, entry in entries:
        kind, shape, raw = entry["dtype"], entry["shape"], entry["data"]
        if own_name(name) is None:
            continue
        if kind == "BF16":
            flat = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif kind in _FLOATS:
            flat = np.frombuffer(raw, _FLOATS[kind])
        else:
            raise CheckpointError(f"the tensor {name} is {kind}, which no Mega has")
        tensors[name] = flat.reshape(shape)
    # safetensors takes the last of two entries with one name; which one was meant, nobody can tell.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")], object_pairs_hook=unique)
    return tensors, header.get("__metadata__") or {}


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, which may have no name twice; CheckpointError where it has."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise CheckpointError(f"it has the entry {twice} twice")
    return found
