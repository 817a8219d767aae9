"""Checkpoints of the paper's Mega, whoever wrote them: are all weights there, what is it, and does the caller agree."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mega_deploy.arrays import Array
from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.paper_signature import check_lengths, longest, pads_to_chunks, signature, stacks
from mega_deploy.config.tasks import HuggingFaceConfig, PaperConfig, architecture, to_dict
from mega_deploy.errors import CheckpointError, OptionError, require
from mega_deploy.signature import LARGEST_SIZE, Range

_LAYER = re.compile(r"(?P<stack>encoder|decoder)\.layers\.([0-9]{1,6})\.")


def check_weights(config: PaperConfig, weights: Mapping[str, Array], names: Mapping[str, str]) -> None:
    """Refuse weights that are not exactly those of the model.

    Args:
        config: of the model.
        weights: by our names.
        names: for each of those what the file calls it; names that are not in it stand for themselves.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape.
    """
    torch = require("torch", "export", "reading a checkpoint of the paper's Mega")
    from mega_deploy.models.paper import build_model

    # Counted first: a number of layers from a hostile file must not be built on its word.
    found: dict[str, set[int]] = {}
    for match in filter(None, map(_LAYER.match, weights)):
        found.setdefault(match["stack"], set()).add(int(match[2]))
    layers = sum(stack.num_layers for stack in stacks(config))
    if layers != sum(map(len, found.values())):
        raise CheckpointError(
            f"its configuration has {layers} layers, but its tensors are of {sum(map(len, found.values()))}"
        )
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build_model(config).state_dict().items()}
    like = _foreign(names)
    for name, shape in expected.items():
        if name not in weights:
            raise CheckpointError(f"the tensor {names.get(name, name)} is missing{like}")
        if weights[name].shape != shape:
            raise CheckpointError(
                f"the tensor {names.get(name, name)} has the shape {list(weights[name].shape)}, expected {list(shape)}"
            )
    if unknown := sorted(weights.keys() - expected.keys()):
        raise CheckpointError(f"the tensor {names.get(unknown[0], unknown[0])} belongs to no such model")


def _foreign(names: Mapping[str, str]) -> str:
    return " (by our name for it)" if names else ""


def agree(
    config: PaperConfig, given: Mapping[str, Any], attention: str | None, seq_len: int | None, output: str | None
) -> None:
    """Refuse, with OptionError, whatever a caller says that the checkpoint contradicts."""
    if not isinstance(given, Mapping):
        raise OptionError(f"the config must map options to values, got a {type(given).__name__}")
    told = json.loads(json.dumps(to_dict(config)))  # tuples as JSON has them
    for name, value in given.items():
        if name not in told:
            raise OptionError(f"unknown option {name!r}; the options of this checkpoint are {', '.join(told)}")
        if told[name] != value:
            raise OptionError(f"{name} is {value!r} in the config, but the checkpoint says {told[name]!r}")
    if attention is not None and attention not in {stack.attention for stack in stacks(config)}:
        said = stacks(config)[0].attention
        raise OptionError(f"attention {attention} was asked for, but the checkpoint says {said}; leave the option out")
    if output is not None:
        raise OptionError("output is for checkpoints of Edifice; this model has the outputs of its source")
    if seq_len is not None:
        check_lengths(config, seq_len)


def describe(config: PaperConfig) -> dict[str, Any]:
    """What `inspect` says besides of such a checkpoint, as JSON values: task, layers, lengths, inputs and outputs."""
    limit = longest(config)
    most = limit or LARGEST_SIZE
    shape = signature(config, Range(1, min(most, 512), most), Range(1, 1, 64))
    return {
        "family": "the paper's Mega (arXiv 2209.10655)",
        "task": _task(config),
        "layers": [_layers(stack) for stack in stacks(config)],
        "lengths": {"max": limit, "chunks": _chunks(config)},
        **shape.to_json(),
        "export_needs": "--seq-len N, or --seq-range MIN:OPT:MAX",
    }


_TASKS = {
    "mega-encoder": "features of frames",
    "mega-classifier": "classification of sequences",
    "mega-language-model": "language model",
    "mega-translation": "translation",
}


def _task(config: PaperConfig) -> str:
    return config.head.replace("_", " ") if isinstance(config, HuggingFaceConfig) else _TASKS[architecture(config)]


def _layers(stack: MegaConfig) -> dict[str, Any]:
    names = ("num_layers", "embed_dim", "z_dim", "hidden_dim", "ffn_dim", "ema_dim", "attention", "position", "norm")
    told = {name: getattr(stack, name) for name in (*names, "chunk_size", "truncation", "bidirectional")}
    name = "decoder" if stack.is_causal else "encoder"
    return {"name": name} | told | {"causal": stack.is_causal, "cross_attention": stack.cross_positions is not None}


def _chunks(config: PaperConfig) -> str | None:
    """How a length must sit with the chunks of attention."""
    sizes = sorted({stack.chunk_size for stack in stacks(config) if stack.chunk_size is not None})
    if not sizes:
        return None
    how = ", to which the model pads" if pads_to_chunks(config) else ": whole ones, or less than one"
    return f"of {' and '.join(map(str, sizes))}{how}"
