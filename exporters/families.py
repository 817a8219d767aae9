"""What the pipeline must know of a trained model and only its family can tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from onnxscript import ir

from mega_deploy.config.edifice import EdificeConfig
from mega_deploy.config.paper_signature import check_lengths, stacks
from mega_deploy.config.paper_signature import signature as paper_signature
from mega_deploy.config.tasks import architecture, to_dict
from mega_deploy.errors import OptionError
from mega_deploy.exporters.edifice.fold import fold
from mega_deploy.exporters.edifice.window import MegaGraph, mega_graph
from mega_deploy.exporters.flops import counted_flops, trained_flops
from mega_deploy.exporters.paper.cases import paper_kinds
from mega_deploy.exporters.paper.heads import computed_row
from mega_deploy.exporters.paper.padding import reaching_padding
from mega_deploy.exporters.paper.tasks import paper_graph
from mega_deploy.exporters.reference.cases import Kinds, frame_kinds
from mega_deploy.models.edifice import Mega
from mega_deploy.models.paper import PaperModel
from mega_deploy.signature import SEQUENCE_AXES, Dim, Range, Signature, TensorSpec, largest

Model = Mega | PaperModel
"""A trained form."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A trained model, as the pipeline takes it."""

    config: Mapping[str, Any]
    """For the manifest; its `architecture` names the family."""
    length: int | None
    """Steps that it was trained for, where it says so: what a bundle takes unless another length is asked for."""
    signature: Callable[[Range, Dim], Signature]
    """For batches and lengths; OptionError where the model cannot take them."""
    graph: Callable[[Signature, str, ir.DataType], MegaGraph]
    """The deployed model for a signature, a lowering of the moving average (see exporters.ema.lowering.choose), and the
    type of its constants and arithmetic."""
    flops: Callable[[Signature], int]
    """Work of the trained form for one row of the usual length."""
    kinds: Callable[[Signature, np.random.Generator], Kinds]
    """Of inputs, for a parity reference."""
    width: Callable[[int], int]
    """Numbers that the widest activation, or attention's scores, hold for each of so many steps."""
    chunk: int | None
    """Steps whose attention sees each other, of the stack that gives the outputs; None for all."""
    computed_row: int | None
    """The only step that the graph computes behind the last block's moving average; None where it computes all."""


def family_of(model: Model) -> Family:
    """The family of a model.

    Raises:
        OptionError: it is of none that can be deployed.
    """
    # A subclass may compute anything, and what torch.compile returns is no Mega.
    if type(model) is Mega:
        return _edifice(model)
    if not isinstance(model, Mega) and type(model) in get_args(PaperModel):
        return _paper(model)
    raise OptionError(
        "a model must be a Mega of mega_deploy.models.edifice or one of the models of mega_deploy.models.paper itself, "
        f"or the path of a checkpoint, got {type(model)}; "
        "of a compiled model pass the one that was compiled"
    )


def _edifice(model: Mega) -> Family:
    config = model.config

    def graph(signature: Signature, ema: str, dtype: ir.DataType) -> MegaGraph:
        length = signature.dim("seq_len")
        return mega_graph(fold(model), ema=ema, seq_range=length if isinstance(length, Range) else None, dtype=dtype)

    return Family(
        config={"architecture": "edifice", **config.to_dict()},
        length=config.length,
        signature=lambda batch, length: _edifice_signature(config, batch, length),
        graph=graph,
        flops=lambda signature: trained_flops(config),
        kinds=lambda signature, random: frame_kinds("frames", config.embed_dim, random),
        width=lambda length: max(length, 4 * config.hidden_size),
        chunk=None,
        computed_row=-1 if config.output == "last" else None,
    )


def _paper(model: PaperModel) -> Family:
    config = model.config
    widest = max(
        max(2 * stack.embed_dim + stack.z_dim + stack.hidden_dim, stack.ffn_dim or 0) for stack in stacks(config)
    )
    chunks = [stack.chunk_size for stack in stacks(config)]
    largest_chunk = None if None in chunks else max(chunk for chunk in chunks if chunk is not None)

    def signature(batch: Range, length: Dim) -> Signature:
        check_lengths(config, length)
        return paper_signature(config, length, batch)

    def flops(signature: Signature) -> int:
        return counted_flops(reaching_padding(model, largest(signature.dim(*SEQUENCE_AXES))), signature)

    def width(length: int) -> int:
        return max(widest, min(length, largest_chunk or length))

    return Family(
        config={"architecture": architecture(config), **to_dict(config)},
        length=None,
        signature=signature,
        graph=lambda signature, ema, dtype: paper_graph(model, signature, ema=ema, dtype=dtype),
        flops=flops,
        kinds=lambda signature, random: paper_kinds(config, signature, random),
        width=width,
        chunk=chunks[-1],
        computed_row=computed_row(config),
    )


def _edifice_signature(config: EdificeConfig, batch: Range, length: Dim) -> Signature:
    """`frames` -> `features`."""
    inputs: dict[str, Dim] = {"batch": batch, "seq_len": length, "embed_dim": config.embed_dim}
    outputs: dict[str, Dim] = {"batch": batch, "seq_len": length, "hidden_size": config.hidden_size}
    if config.output == "last":
        del outputs["seq_len"]
    return Signature(
        inputs=(TensorSpec("frames", "float32", tuple(inputs.values()), tuple(inputs)),),
        outputs=(TensorSpec("features", "float32", tuple(outputs.values()), tuple(outputs)),),
    )
