"""A checkpoint file as weights and options: detected from its content, checked, without any code of its own run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mega_deploy.arrays import Array
from mega_deploy.checkpoints.containers.contents import Contents
from mega_deploy.checkpoints.containers.opening import read_container
from mega_deploy.checkpoints.sources import edifice, huggingface, native, paper
from mega_deploy.checkpoints.sources.fairseq import reading as fairseq
from mega_deploy.checkpoints.sources.paper_names import carries_weight
from mega_deploy.checkpoints.sources.trained import Trained
from mega_deploy.config.common import SourceName
from mega_deploy.config.tasks import PaperConfig, architecture
from mega_deploy.errors import CheckpointError, OptionError
from mega_deploy.text import printable

MESSAGE = 500
"""Letters of what is said of a file, besides its path."""

# One row a source: its name, what tells its files, and what reads them. The first that recognises a file reads it.
SOURCES: tuple[tuple[SourceName, Callable[[Contents], bool], Callable[[Contents], Trained]], ...] = (
    ("fairseq", fairseq.recognises, fairseq.read),
    ("native", native.recognises, native.read),
    ("edifice", edifice.recognises, edifice.read),
    ("huggingface", huggingface.recognises, huggingface.read),
)


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds."""

    format: str
    """"native", "torch-state-dict", "edifice-safetensors", "edifice-nx", "fairseq" or "huggingface"."""
    sha256: str
    """The file's SHA-256 in hex; a folder's is its weights file's, or of its index and shards (containers.shards)."""
    bytes: int
    """Size of the file."""
    weights: dict[str, Array]
    """float32, by the names and in the layouts of our torch module."""
    options: dict[str, Any]
    """Fields of EdificeConfig that the file states or that its tensors tell; of the paper's Mega, all of `paper`."""
    paper: PaperConfig | None = None
    """The configuration of a model of the paper's, which is always whole; None for Edifice's."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """What must be said besides: "attention", "seq_len"."""
        if self.paper is not None:
            return ("seq_len",)
        lacking = [] if "laplace_attention" in self.options else ["attention"]
        if not {"window_size", "seq_len"} & self.options.keys():
            lacking.append("seq_len")
        return tuple(lacking)


def read_checkpoint(path: str | os.PathLike[str], source: str = "auto") -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: of the file, or of a Hugging Face folder.
        source: "auto" decides from the content; the others insist on theirs.

    Raises:
        CheckpointError: the file is missing, damaged, hostile, of an unknown format, or not of the source insisted on.
        MissingComponentError: what the file needs is not installed: safetensors, or torch for the paper's Mega.
    """
    if source not in get_args(SourceName):
        raise OptionError(f"there is no source {source!r}; there are {', '.join(get_args(SourceName))}")
    path = Path(path)
    try:
        contents = read_container(path)
        family, trained = _read(contents)
        if source not in ("auto", family):
            raise CheckpointError(f"it is a checkpoint of the source {family}, not {source}")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {printable(error, MESSAGE)}") from error
    return Checkpoint(trained.format, contents.sha256, contents.bytes, trained.weights, trained.options, trained.paper)


def describe_checkpoint(path: str | os.PathLike[str], source: str = "auto") -> dict[str, Any]:
    """What `inspect` says of a checkpoint, as JSON values; see read_checkpoint for arguments and errors."""
    checkpoint = read_checkpoint(path, source)
    return {
        "kind": "checkpoint",
        "architecture": "edifice" if checkpoint.paper is None else architecture(checkpoint.paper),
        "format": checkpoint.format,
        "sha256": checkpoint.sha256,
        "bytes": checkpoint.bytes,
        # Without the statistics of batch norms, which are measured and not trained.
        "parameters": sum(tensor.size for name, tensor in checkpoint.weights.items() if ".running_" not in name),
        "config": checkpoint.options,
        "unknown": list(checkpoint.unknown),
        "tensors": {name: list(tensor.shape) for name, tensor in checkpoint.weights.items()},
        **({} if checkpoint.paper is None else paper.describe(checkpoint.paper)),
    }


def _read(contents: Contents) -> tuple[SourceName, Trained]:
    """The source that recognises the contents, and the model that it reads from them."""
    arrays = {name: array for name, array in contents.arrays.items() if carries_weight(name)}
    contents = dataclasses.replace(contents, arrays=arrays)
    for name, recognises, read in SOURCES:
        if recognises(contents):
            return name, read(contents)
    if any(name.endswith("mega_layer.mx_proj.weight") for name in arrays):
        raise CheckpointError(
            "it holds weights of the paper's Mega without their configuration; give the Hugging Face folder around it, "
            "or fairseq's whole checkpoint with its args"
        )
    raise CheckpointError(f"its tensors are no Mega's: {', '.join(list(arrays)[:3]) or 'there are none'}")
