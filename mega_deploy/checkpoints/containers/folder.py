"""A folder as transformers' save_pretrained writes it: config.json, and the weights beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mega_deploy.checkpoints.containers.bounded import parse_json, read_bytes
from mega_deploy.checkpoints.containers.contents import Contents
from mega_deploy.checkpoints.containers.safetensors import read_safetensors
from mega_deploy.checkpoints.containers.shards import INDEX, read_sharded
from mega_deploy.checkpoints.containers.torch_zip import read_pt
from mega_deploy.errors import CheckpointError

CONFIG = "config.json"
WHOLE, TORCH = "model.safetensors", "pytorch_model.bin"
MAX_CONFIG_BYTES = 1 << 20


def read_folder(path: Path) -> Contents:
    """The weights of a folder, with the options of its config.json in the header.

    Raises:
        CheckpointError: a file is missing, damaged or hostile.
        MissingComponentError: safetensors is not installed.
    """
    if not (path / CONFIG).is_file():
        raise CheckpointError("it is a folder without config.json, expected a checkpoint file or a Hugging Face folder")
    try:
        text = read_bytes(path / CONFIG, MAX_CONFIG_BYTES)
    except CheckpointError as error:
        raise CheckpointError(f"its {CONFIG} {error}") from None
    options = parse_json(text, f"its {CONFIG}")
    if not isinstance(options, dict):
        raise CheckpointError(f"its {CONFIG} holds no object of options by name")
    header = {CONFIG: options}
    # As transformers does, one file is taken before an index.
    name = next((name for name in (WHOLE, INDEX, TORCH) if (path / name).is_file()), None)
    if name is None:
        raise CheckpointError(
            f"it is a Hugging Face folder without {WHOLE}, or {INDEX} and its shards (or {TORCH}, in one piece)"
        )
    if name == INDEX:
        arrays, digest, size = read_sharded(path)
        return Contents("folder", arrays, header, digest, size)
    try:
        data = read_bytes(path / name)
        arrays = read_safetensors(data)[0] if name == WHOLE else read_pt(data)[0]
    except CheckpointError as error:
        raise CheckpointError(f"its {name}: {error}") from None
    return Contents("folder", arrays, header, hashlib.sha256(data).hexdigest(), len(data))
