"""Files of our own, which describe themselves, and state dicts of our modules, which do not."""

from __future__ import annotations

from typing import Any

from mega_deploy.checkpoints.containers.contents import Contents
from mega_deploy.checkpoints.sources.edifice_weights import edifice_model, is_state
from mega_deploy.checkpoints.sources.paper_weights import paper_model
from mega_deploy.checkpoints.sources.trained import Trained
from mega_deploy.config.edifice import EdificeConfig
from mega_deploy.config.tasks import ARCHITECTURES, PaperConfig, architecture, from_dict, to_dict
from mega_deploy.errors import CheckpointError
from mega_deploy.files.strict_json import parse_json

NATIVE = "mega-deploy"
"""Where a native file keeps its header: the entry of the safetensors metadata, or of the dict in a .pt file."""


def recognises(contents: Contents) -> bool:
    """Whether a file has our header, or arrays by our own names."""
    return contents.container in ("safetensors", "torch") and (NATIVE in contents.header or is_state(contents.arrays))


def read(contents: Contents) -> Trained:
    """The model of a native file or of a state dict; CheckpointError where its header or its weights are impossible."""
    if NATIVE not in contents.header:
        return edifice_model("torch-state-dict", contents.arrays, {}, {})
    config = _config(contents.header[NATIVE])
    if isinstance(config, EdificeConfig):
        return edifice_model("native", contents.arrays, {}, config.to_dict())
    return paper_model("native", config, contents.arrays, {})


def config_header(config: EdificeConfig | PaperConfig) -> dict[str, Any]:
    """A configuration as native files and manifests have it: the architecture's name and its options, JSON values."""
    if isinstance(config, EdificeConfig):
        return {"architecture": "edifice", "config": config.to_dict()}
    return {"architecture": architecture(config), "config": to_dict(config)}


def _config(header: Any) -> EdificeConfig | PaperConfig:
    """The configuration in the header of a file that save_checkpoint wrote; in safetensors it is JSON."""
    try:
        header = parse_json(header, finite=False) if isinstance(header, str) else header
        name = header["architecture"]
        if name == "edifice":
            return EdificeConfig.from_dict(header["config"])
        if name not in ARCHITECTURES:
            raise CheckpointError(f"its architecture is {name!r:.100}, which this version does not know")
        return from_dict(name, header["config"])
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"its header is impossible: {error}") from error
