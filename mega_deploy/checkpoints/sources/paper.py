"""Checkpoints of the paper's Mega, whoever wrote them: what the model is, and whether the caller agrees."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.paper_signature import check_lengths, longest, pads_to_chunks, signature, stacks
from mega_deploy.config.tasks import HuggingFaceConfig, PaperConfig, architecture, to_dict
from mega_deploy.errors import OptionError
from mega_deploy.signature import LARGEST_SIZE, Range


def agree(
    config: PaperConfig, given: Mapping[str, Any], attention: str | None, seq_len: int | None, output: str | None
) -> None:
    """Refuse, with OptionError, whatever a caller says that the checkpoint contradicts."""
    if not isinstance(given, Mapping):
        raise OptionError(f"the config must map options to values, got a {type(given).__name__}")
    stated = json.loads(json.dumps(to_dict(config)))  # tuples as JSON has them
    for name, value in given.items():
        if name not in stated:
            raise OptionError(f"unknown option {name!r}; the options of this checkpoint are {', '.join(stated)}")
        if stated[name] != value:
            raise OptionError(f"{name} is {value!r} in the config, but the checkpoint says {stated[name]!r}")
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
    described = {name: getattr(stack, name) for name in (*names, "chunk_size", "truncation", "bidirectional")}
    name = "decoder" if stack.is_causal else "encoder"
    return (
        {"name": name} | described | {"causal": stack.is_causal, "cross_attention": stack.cross_positions is not None}
    )


def _chunks(config: PaperConfig) -> str | None:
    """How a length must sit with the chunks of attention."""
    sizes = sorted({stack.chunk_size for stack in stacks(config) if stack.chunk_size is not None})
    if not sizes:
        return None
    how = ", to which the model pads" if pads_to_chunks(config) else ": whole ones, or less than one"
    return f"of {' and '.join(map(str, sizes))}{how}"
