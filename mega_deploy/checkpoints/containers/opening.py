"""Any container, told by its content and not by its name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mega_deploy.arrays import Array
from mega_deploy.checkpoints.containers.bounded import read_bytes
from mega_deploy.checkpoints.containers.contents import ContainerName, Contents
from mega_deploy.checkpoints.containers.folder import read_folder
from mega_deploy.checkpoints.containers.nx import is_nx, read_nx
from mega_deploy.checkpoints.containers.safetensors import is_safetensors, read_safetensors
from mega_deploy.checkpoints.containers.torch_zip import is_torch_zip, read_pt
from mega_deploy.errors import CheckpointError

_Read = Callable[[bytes], tuple[dict[str, Array], dict[str, Any]]]
# One row a format of files: what tells it, and what reads it.
FORMATS: tuple[tuple[ContainerName, Callable[[bytes], bool], _Read], ...] = (
    ("safetensors", is_safetensors, read_safetensors),
    ("torch", is_torch_zip, read_pt),
    ("nx", is_nx, read_nx),
)


def read_container(path: Path) -> Contents:
    """The arrays of a file, or of a folder with config.json.

    Raises:
        CheckpointError: it is missing, damaged, hostile, or of an unknown format.
        MissingComponentError: safetensors is not installed.
    """
    try:
        folder = path.is_dir()
    except OSError as error:  # such as a name that is too long
        raise CheckpointError(f"cannot be read: {error.strerror}") from None
    if folder:
        return read_folder(path)
    data = read_bytes(path)
    for name, recognises, read in FORMATS:
        if recognises(data):
            arrays, header = read(data)
            return Contents(name, arrays, header, hashlib.sha256(data).hexdigest(), len(data))
    if data[:1] == b"\x80" or (data[:1] in (b"(", b"c", b"]", b"}") and data.endswith(b".")):
        raise CheckpointError(
            "it is a bare Python pickle, which can run code when read; use mega_deploy.save_checkpoint"
        )
    raise CheckpointError(
        f"is no checkpoint: it begins with {data[:8].hex(' ')}, expected safetensors, .nx or a .pt of torch.save"
    )
