"""Writing native checkpoints, which describe themselves, and telling where a model's weights came from."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mega_deploy.checkpoints.reading import NATIVE
from mega_deploy.checkpoints.sources.native import weights_sha256
from mega_deploy.config.common import Source
from mega_deploy.config.edifice import EdificeConfig
from mega_deploy.config.tasks import PaperConfig, architecture, to_dict
from mega_deploy.errors import CheckpointError, OptionError, require
from mega_deploy.files.npy import replacing

if TYPE_CHECKING:
    from mega_deploy.models.edifice import Mega
    from mega_deploy.models.paper import PaperModel

from mega_deploy.arrays import Array


def save_checkpoint(model: Mega | PaperModel, path: str | os.PathLike[str]) -> None:
    """Write a model's weights in float32 and all of its options; the file appears whole or not at all.

    Args:
        model: what to save.
        path: ending in .safetensors (the same model gives the same bytes) or .pt.

    Raises:
        OptionError: the name ends otherwise.
        CheckpointError: the file system refuses.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pt"):
        raise OptionError(f"{path} must end in .safetensors or .pt")
    header = config_header(model.config)
    with replacing(path, CheckpointError) as partial:
        if path.suffix == ".pt":
            torch = require("torch", "export", "saving a .pt file")
            state = {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
            # Into memory first: torch answers a full disk with errors of its own, which hide the system's.
            buffer = io.BytesIO()
            torch.save({NATIVE: header, "state_dict": state}, buffer)
            partial.write_bytes(buffer.getbuffer())
        else:
            numpy_format = require("safetensors.numpy", "export", "saving a .safetensors file")
            # One entry: safetensors writes several in an order that changes from run to run.
            partial.write_bytes(numpy_format.save(_weights(model), {NATIVE: json.dumps(header)}))


def config_header(config: EdificeConfig | PaperConfig) -> dict[str, Any]:
    """A configuration as native files and manifests have it: the architecture's name and its options, JSON values."""
    if isinstance(config, EdificeConfig):
        return {"architecture": "edifice", "config": config.to_dict()}
    return {"architecture": architecture(config), "config": to_dict(config)}


def model_source(model: Mega | PaperModel) -> Source:
    """Where the weights came from: the checkpoint that they were loaded from, unless they have changed since then."""
    digest = weights_sha256(_weights(model))
    if model.source is not None and model.source.weights_sha256 == digest:
        return model.source
    return Source("torch-module", digest, digest)


def _weights(model: Mega | PaperModel) -> dict[str, Array]:
    """The weights in float32, by name."""
    return {name: tensor.detach().cpu().float().contiguous().numpy() for name, tensor in model.state_dict().items()}
