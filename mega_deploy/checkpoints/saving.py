"""Writing native checkpoints, which describe themselves, and telling where a model's weights came from."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mega_deploy.arrays import Array
from mega_deploy.bundle import refuse_within_bundle
from mega_deploy.checkpoints.sources.native import NATIVE, config_header
from mega_deploy.checkpoints.sources.trained import weights_sha256
from mega_deploy.config.common import Source
from mega_deploy.errors import CheckpointError, OptionError, require
from mega_deploy.files.writing import write_bytes

if TYPE_CHECKING:
    from mega_deploy.models.edifice import Mega
    from mega_deploy.models.paper import PaperModel


def save_checkpoint(model: Mega | PaperModel, path: str | os.PathLike[str]) -> None:
    """Write a model's weights in float32 and all of its options; the file appears whole or not at all.

    Args:
        model: what to save.
        path: ending in .safetensors (the same model gives the same bytes) or .pt.

    Raises:
        OptionError: the name ends otherwise.
        CheckpointError: the file system refuses.
        BundleError: it would lie in a bundle.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pt"):
        raise OptionError(f"{path} must end in .safetensors or .pt")
    refuse_within_bundle(path)
    header = config_header(model.config)
    if path.suffix == ".pt":
        torch = require("torch", "export", "saving a .pt file")
        state = {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
        # Into memory first: torch answers a full disk with errors of its own, which hide the system's.
        buffer = io.BytesIO()
        torch.save({NATIVE: header, "state_dict": state}, buffer)
        write_bytes(path, buffer.getbuffer(), CheckpointError)
    else:
        numpy_format = require("safetensors.numpy", "export", "saving a .safetensors file")
        # One entry: safetensors writes several in an order that changes from run to run.
        write_bytes(path, numpy_format.save(_weights(model), {NATIVE: json.dumps(header)}), CheckpointError)


def model_source(model: Mega | PaperModel) -> Source:
    """Where the weights came from: the checkpoint that they were loaded from, unless they have changed since then."""
    digest = weights_sha256(_weights(model))
    if model.source is not None and model.source.weights_sha256 == digest:
        return model.source
    return Source("torch-module", digest, digest)


def _weights(model: Mega | PaperModel) -> dict[str, Array]:
    """The weights in float32, by name."""
    return {name: tensor.detach().cpu().float().contiguous().numpy() for name, tensor in model.state_dict().items()}
