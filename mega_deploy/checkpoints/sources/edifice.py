"""Edifice's checkpoints (Edifice 0.2.0): its spec as options, and its names and layouts as our own module's.

Edifice's dense kernels are [in, out], torch's are [out, in]; the prefix of a block's moving average stands twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.checkpoints.containers.contents import Contents
from mega_deploy.checkpoints.containers.etf import Atom
from mega_deploy.checkpoints.sources.edifice_weights import edifice_model
from mega_deploy.checkpoints.sources.trained import Trained
from mega_deploy.config.edifice import EdificeConfig
from mega_deploy.errors import CheckpointError, OptionError

_BLOCK = re.compile(r"mega_block_([1-9][0-9]{0,5})_")
# Random state of the dropout layers, which training leaves in a checkpoint: u32 [2].
_RANDOM_STATE = re.compile(r"mega_block_[1-9][0-9]*_(ema_drop|attn_drop|ffn_dropout)\.key")
SPEC_KEY = b"__edifice_spec__"
_ALIASES = ("obs_size", "input_dim", "input_size")


def recognises(contents: Contents) -> bool:
    """Whether a file is one of Edifice's: an .nx file, or tensors by its names."""
    named = any(_BLOCK.match(name) for name in contents.arrays)
    return contents.container == "nx" or (contents.container == "safetensors" and named)


def read(contents: Contents) -> Trained:
    """The model of a file of Edifice's; CheckpointError where its spec or its weights are impossible."""
    stated = spec_options(_build_options(contents.header.get("metadata"))) if contents.container == "nx" else {}
    weights, names = rename(contents.arrays)
    return edifice_model(f"edifice-{contents.container}", weights, names, stated)


def _build_options(metadata: Any) -> dict[str, Any]:
    """The options of the spec that an .nx file's metadata may hold; none where it does not."""
    spec = metadata.get(SPEC_KEY) if isinstance(metadata, dict) else None
    if spec is None:
        return {}
    build = spec.get("build_opts") if isinstance(spec, dict) else None
    if not isinstance(build, list) or not all(isinstance(entry, tuple) and len(entry) == 2 for entry in build):
        raise CheckpointError("the spec has no keyword list `build_opts`")
    if spec.get("arch") != "mega":
        raise CheckpointError(f"the spec says architecture {spec.get('arch')!s:.100}, this reads `mega`")
    names = [entry[0] for entry in build]
    if not all(isinstance(name, Atom) for name in names) or len(set(names)) != len(names):
        raise CheckpointError("the spec's `build_opts` has an option twice, or one without a name")
    return {str(name): value for name, value in build if value is not None}


def rename(tensors: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, str]]:
    """Edifice's tensors under our module's names and layouts, and for each of those names Edifice's own.

    Raises:
        CheckpointError: a tensor is missing or unknown, or the blocks have gaps.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if not _is_random_state(name, tensor)}
    blocks = sorted({int(match[1]) for match in map(_BLOCK.match, tensors) if match})
    if blocks != list(range(1, len(blocks) + 1)):
        raise CheckpointError(f"the blocks must be numbered 1, 2, ... without gaps, got {blocks[:20]}")
    names = _names(len(blocks), projected="input_projection.kernel" in tensors or "input_projection.bias" in tensors)
    renamed: dict[str, Array] = {}
    for theirs, (ours, transposed) in names.items():
        if theirs not in tensors:
            raise CheckpointError(f"the tensor {theirs} is missing")
        renamed[ours] = tensors[theirs].T if transposed else tensors[theirs]
    if unknown := sorted(tensors.keys() - names.keys()):
        raise CheckpointError(f"the tensor {unknown[0]} belongs to no Edifice Mega")
    return renamed, {ours: theirs for theirs, (ours, _) in names.items()}


def spec_options(build: Mapping[str, Any]) -> dict[str, Any]:
    """The options of EdificeConfig that a spec's `build_opts` state.

    Raises:
        CheckpointError: an option is unknown or impossible, or an alias of embed_dim disagrees with it.
    """
    options = {name: value for name, value in build.items() if name not in _ALIASES}
    for alias in _ALIASES:
        if alias in build and build[alias] != options.setdefault("embed_dim", build[alias]):
            raise CheckpointError(f"the spec says {alias} {build[alias]!r} and embed_dim {options['embed_dim']!r}")
    try:
        EdificeConfig.from_dict({"embed_dim": 1, **options})
    except (OptionError, OverflowError) as error:  # OverflowError: a dropout beyond every float
        raise CheckpointError(f"the spec is impossible: {error}") from error
    return options


def _is_random_state(name: str, tensor: Array) -> bool:
    return _RANDOM_STATE.fullmatch(name) is not None and tensor.dtype == np.uint32 and tensor.shape == (2,)


def _names(layers: int, *, projected: bool) -> dict[str, tuple[str, bool]]:
    """Edifice's name -> our name, and whether the tensor is transposed."""
    names: dict[str, tuple[str, bool]] = {}

    def linear(theirs: str, ours: str) -> None:
        names[f"{theirs}.kernel"] = (f"{ours}.weight", True)
        names[f"{theirs}.bias"] = (f"{ours}.bias", False)

    def norm(theirs: str, ours: str) -> None:
        names[f"{theirs}.gamma"] = (f"{ours}.weight", False)
        names[f"{theirs}.beta"] = (f"{ours}.bias", False)

    if projected:
        linear("input_projection", "input_projection")
    for index in range(layers):
        theirs, ours = f"mega_block_{index + 1}", f"blocks.{index}"
        for short, long in (("ema", "ema"), ("attn", "attention"), ("ffn", "ffn")):
            norm(f"{theirs}_{short}_norm", f"{ours}.{long}_norm")
        ema = f"{theirs}_ema.{theirs}_ema"
        names[f"{ema}_alpha"] = (f"{ours}.ema.alpha", False)
        for part in ("proj", "out"):
            names[f"{ema}_{part}_w"] = (f"{ours}.ema.{part}.weight", True)
            names[f"{ema}_{part}_b"] = (f"{ours}.ema.{part}.bias", False)
        for part in ("q", "k", "v", "gate", "out"):
            linear(f"{theirs}_gattn_{part}", f"{ours}.attention.{part}")
        for part in ("gate", "up", "down"):
            linear(f"{theirs}_ffn_{part}", f"{ours}.ffn.{part}")
    norm("final_norm", "final_norm")
    return names
