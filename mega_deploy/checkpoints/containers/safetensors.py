"""safetensors files: a JSON header of names, dtypes and places, then the arrays' bytes."""

from __future__ import annotations

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.checkpoints.containers.bounded import parse_json, widened
from mega_deploy.errors import CheckpointError, require

# Some 50,000 arrays; safetensors itself takes 100 MB of header, whose entries would fill gigabytes.
MAX_HEADER_BYTES = 8 << 20
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def is_safetensors(data: bytes) -> bool:
    """Whether a file's content begins as a safetensors file."""
    return data[8:9] == b"{"


def read_safetensors(data: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays by name, bfloat16 as float32, and the metadata.

    Raises:
        CheckpointError: the file is damaged, names an array twice, or holds a dtype that is not read.
        MissingComponentError: safetensors is not installed.
    """
    safetensors = require("safetensors", "export", "reading a .safetensors file")
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"it is a damaged safetensors file (its header takes {size} bytes, more than {MAX_HEADER_BYTES}); "
            "copy it again"
        )
    # safetensors takes the last of two entries with one name.
    header = parse_json(data[8 : 8 + size], "its header")
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"it is a damaged safetensors file ({error}); copy it again") from None
    arrays = {}
    for name, entry in entries:
        kind, shape, raw = entry["dtype"], entry["shape"], entry["data"]
        if kind == "BF16":
            flat = widened(np.frombuffer(raw, "<u2"))
        elif kind in _DTYPES:
            flat = np.frombuffer(raw, _DTYPES[kind])
        else:
            raise CheckpointError(f"the tensor {name} is {kind}, which this version does not read")
        try:
            arrays[name] = flat.reshape(shape)
        except ValueError as error:  # more axes than numpy has
            raise CheckpointError(f"the tensor {name} has an impossible shape: {error}") from None
    return arrays, header.get("__metadata__") or {}
