"""torch's .pt files: only the zip format, only tensors and plain containers, nothing executed."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mega_deploy.errors import CheckpointError, require

Array = npt.NDArray[Any]


def read_pt(data: bytes) -> tuple[dict[str, Array], dict[str, Any]]:
    """Tensors by name, and the header of a file that save_checkpoint wrote (empty for a bare state dict).

    Raises:
        CheckpointError: the archive is damaged, or holds anything but tensors.
        MissingComponentError: torch is not installed.
    """
    torch = require("torch", "export", "reading a .pt file")
    _check_archive(data)
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "argparse.Namespace" in str(error):
            raise CheckpointError("it is a fairseq checkpoint, which this version does not read") from None
        raise CheckpointError(
            "it holds Python objects, which can run code when read; save model.state_dict(), "
            "or use mega_deploy.save_checkpoint"
        ) from None
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"torch cannot read it: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from None
    header: dict[str, Any] = {}
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        header = {name: value for name, value in content.items() if name != "state_dict"}
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"it holds a {type(content).__name__}, expected a state dict: tensors by name")
    tensors = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"its entry {name!r} is a {type(value).__name__}, expected a tensor")
        if value.layout is not torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
            raise CheckpointError(f"the tensor {name} is not a plain dense tensor")
        dense = value.detach().to(torch.float32) if value.dtype is torch.bfloat16 else value.detach()
        tensors[name] = np.asarray(dense.numpy())
    return tensors, header


def _check_archive(data: bytes) -> None:
    """Torch writes its archives uncompressed: one that is not is made to fill the memory."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError, EOFError) as error:
        raise CheckpointError(f"it is a damaged zip archive: {error}") from None
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"its entry {entry.filename} is compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > len(data):
        raise CheckpointError("its entries overlap: together they are larger than the file")
