"""A checkpoint file as weights and options: detected from its content, checked, without any code of its own run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mega_deploy.arrays import Array
from mega_deploy.checkpoints.containers import shards as sharded
from mega_deploy.checkpoints.containers.nx import is_nx, read_nx
from mega_deploy.checkpoints.containers.safetensors import read_bytes, read_safetensors
from mega_deploy.checkpoints.containers.torch_zip import read_pt
from mega_deploy.checkpoints.sources import edifice, paper
from mega_deploy.checkpoints.sources import native as state
from mega_deploy.checkpoints.sources.fairseq.reading import is_fairseq, read_fairseq
from mega_deploy.checkpoints.sources.huggingface import read_hugging_face
from mega_deploy.config.common import SourceName
from mega_deploy.config.edifice import EdificeConfig
from mega_deploy.config.tasks import ARCHITECTURES, PaperConfig, architecture, from_dict, to_dict
from mega_deploy.errors import CheckpointError, OptionError

NATIVE = "mega-deploy"
"""Where a native file keeps its header: the entry of the safetensors metadata, or of the dict in a .pt file."""
MAX_CONFIG_BYTES = 1 << 20
_FAMILY = {
    "native": "native",
    "torch-state-dict": "native",
    "edifice-safetensors": "edifice",
    "edifice-nx": "edifice",
    "fairseq": "fairseq",
    "huggingface": "huggingface",
}


_Told = tuple[str, int]
"""SHA-256 in hex, and bytes."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds."""

    format: str
    """"native", "torch-state-dict", "edifice-safetensors", "edifice-nx", "fairseq" or "huggingface"."""
    sha256: str
    """Of the file, in hex; of a folder's weights file, or of its index and shards (checkpoints.sharded)."""
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
        MissingComponentError: safetensors, or torch for a .pt file, is not installed.
    """
    if source not in get_args(SourceName):
        raise OptionError(f"there is no source {source!r}; there are {', '.join(get_args(SourceName))}")
    path = Path(path)
    try:
        checkpoint = _read_folder(path) if _is_folder(path) else _read(read_bytes(path))
        family = _FAMILY[checkpoint.format]
        if source not in ("auto", family):
            raise CheckpointError(f"it is a checkpoint of the source {family}, not {source}")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {_one_line(str(error))}") from error
    return checkpoint


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


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # such as a name that is too long
        raise CheckpointError(f"cannot be read: {error.strerror}") from None


def _read_folder(path: Path) -> Checkpoint:
    """A folder that transformers' save_pretrained wrote."""
    if not (path / "config.json").is_file():
        raise CheckpointError("it is a folder without config.json, expected a checkpoint file or a Hugging Face folder")
    try:
        options = json.loads(read_bytes(path / "config.json", MAX_CONFIG_BYTES))
    except CheckpointError as error:
        raise CheckpointError(f"its config.json {error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its config.json is no JSON ({error}); copy the folder again") from None
    if not isinstance(options, dict):
        raise CheckpointError("its config.json holds no object of options by name")
    for name in ("model.safetensors", sharded.INDEX, "pytorch_model.bin"):
        if (path / name).is_file():
            break
    else:
        raise CheckpointError(
            f"it is a Hugging Face folder without model.safetensors, or {sharded.INDEX} and its shards (or "
            "pytorch_model.bin, in one piece)"
        )
    if name == sharded.INDEX:
        tensors, digest, size = sharded.read_sharded(path)
        return _of_paper("huggingface", (digest, size), *read_hugging_face(options, tensors))
    try:
        data = read_bytes(path / name)
        tensors = read_safetensors(data)[0] if name == "model.safetensors" else read_pt(data)[0]
    except CheckpointError as error:
        raise CheckpointError(f"its {name}: {error}") from None
    return _of_paper("huggingface", _told(data), *read_hugging_face(options, tensors))


def _one_line(message: str) -> str:
    """A message as one line of bounded length: it may quote names from the file, which hold anything."""
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message[:1000])
    return line if len(line) <= 500 else f"{line[:400]} ... {line[-90:]}"


def _read(data: bytes) -> Checkpoint:
    if data[8:9] == b"{":
        tensors, header = read_safetensors(data)
        if NATIVE not in header and edifice.is_edifice(tensors):
            return _of_edifice("edifice-safetensors", data, tensors, {})
        return _of_state_dict(data, tensors, header)
    if data.startswith(b"PK\x03\x04"):
        tensors, beside = read_pt(data)
        if is_fairseq(beside):
            return _of_paper("fairseq", _told(data), *read_fairseq(beside["args"], tensors))
        return _of_state_dict(data, tensors, beside)
    if is_nx(data):
        tensors, build = read_nx(data)
        return _of_edifice("edifice-nx", data, tensors, edifice.spec_options(build))
    if data[:1] == b"\x80" or (data[:1] in (b"(", b"c", b"]", b"}") and data.endswith(b".")):
        raise CheckpointError(
            "it is a bare Python pickle, which can run code when read; use mega_deploy.save_checkpoint"
        )
    raise CheckpointError(
        f"is no checkpoint: it begins with {data[:8].hex(' ')}, expected safetensors, .nx or a .pt of torch.save"
    )


def _of_state_dict(data: bytes, tensors: dict[str, Array], header: Mapping[str, Any]) -> Checkpoint:
    """A file of our own, or weights under our own names."""
    if NATIVE in header:
        config = _native_config(header[NATIVE])
        if isinstance(config, EdificeConfig):
            return _of_edifice("native", data, tensors, config.to_dict())
        return _of_paper("native", _told(data), config, tensors, {})
    if any(name.endswith("mega_layer.mx_proj.weight") for name in tensors):
        raise CheckpointError(
            "it holds weights of the paper's Mega without their configuration; give the Hugging Face folder around it, "
            "or fairseq's whole checkpoint with its args"
        )
    return _of_edifice("torch-state-dict", data, tensors, {})


def _of_edifice(form: str, data: bytes, tensors: dict[str, Array], stated: Mapping[str, Any]) -> Checkpoint:
    """An Edifice Mega, with what the file states of its options."""
    names: dict[str, str] = {}
    if form.startswith("edifice"):
        tensors, names = edifice.rename(tensors)
    elif not state.is_state(tensors):
        raise CheckpointError(f"its tensors are no Mega's: {', '.join(list(tensors)[:3]) or 'there are none'}")
    told = state.dimensions(tensors, names)
    for name, value in told.items():
        if stated.get(name, value) != value:
            raise CheckpointError(f"it says {name} {stated[name]}, but its tensors make {value}")
    weights = state.as_float32(tensors, names)
    return Checkpoint(form, *_told(data), weights, {**told, **stated})


def _of_paper(
    form: str, told: _Told, config: PaperConfig, tensors: Mapping[str, Array], names: Mapping[str, str]
) -> Checkpoint:
    """A model of the paper's, once its weights are known to be all there."""
    paper.check_weights(config, tensors, names)
    weights = state.as_float32(tensors, names)
    return Checkpoint(form, *told, weights, to_dict(config), config)


def _told(data: bytes) -> _Told:
    return hashlib.sha256(data).hexdigest(), len(data)


def _native_config(header: Any) -> EdificeConfig | PaperConfig:
    """The configuration in the header of a file that save_checkpoint wrote; in safetensors it is JSON."""
    try:
        header = json.loads(header) if isinstance(header, str) else header
        name = header["architecture"]
        if name == "edifice":
            return EdificeConfig.from_dict(header["config"])
        if name not in ARCHITECTURES:
            raise CheckpointError(f"its architecture is {name!r}, which this version does not know")
        return from_dict(name, header["config"])
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"its header is impossible: {error}") from error
