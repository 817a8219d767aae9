"""Everything that a bundle holds, made from a trained model and held against it."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxscript import ir

from mega_deploy import bundle as files
from mega_deploy.bundle import Manifest
from mega_deploy.checkpoints import model_source, save_checkpoint
from mega_deploy.config.common import Form as FormName
from mega_deploy.config.common import Precision
from mega_deploy.errors import OptionError, QualityGateError
from mega_deploy.exporters import PACKAGES
from mega_deploy.exporters import save_graph as onnx_file
from mega_deploy.exporters.assemble_stream import assemble_stream
from mega_deploy.exporters.families import Family, Model, family_of
from mega_deploy.exporters.flops import graph_flops
from mega_deploy.exporters.precision.fp32_fallback import weigh_worst_block
from mega_deploy.exporters.precision.lowering import lower
from mega_deploy.exporters.reference.recorder import record
from mega_deploy.exporters.stream_families import check as check_stream
from mega_deploy.exporters.stream_families import own_window
from mega_deploy.parity import Reference, Report
from mega_deploy.runtime import judging_session
from mega_deploy.runtime.compare import compare, compare_blocks
from mega_deploy.signature import Dim, Range, Signature, largest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """What is asked of the deployed model."""

    batch: Range
    seq_len: Dim | None
    """Of every sequence; None for the model's own."""
    ema: str
    """How the moving average is lowered: see exporters.ema.lowering.choose."""
    precision: Precision
    keep: tuple[str, ...]
    """Further float32 islands: see exporters.precision.lower."""
    half_io: bool
    forms: tuple[FormName, ...] = ("window",)


def assemble(model: Model, form: Form, folder: Path, on_step: Callable[[str], None]) -> Manifest:
    """Write all files of a bundle but the manifest into `folder`, and return that.

    Args:
        model: trained, in eval mode.
        form: what is asked of the deployed model.
        folder: empty.
        on_step: called with the name of each step as it begins.

    Raises:
        OptionError: the model has no such form.
        QualityGateError: the deployed model is not equal to the trained one.
    """
    family = family_of(model)
    if "stream" in form.forms:
        check_stream(model)
    seq_len = form.seq_len or family.length
    if seq_len is None and "window" not in form.forms:
        seq_len = own_window(model)
    if seq_len is None:
        ways = "--seq-len N" if "stream" in form.forms else "--seq-len N or --seq-range MIN:OPT:MAX"
        raise OptionError(f"this model takes sequences of any length; say which with {ways}")
    signature = family.signature(form.batch, seq_len)
    stream = lowered_step = None
    if "stream" in form.forms:
        length = largest(seq_len)
        stream, lowered_step = assemble_stream(
            model, folder, length=length, batch=form.batch, precision=form.precision, keep=form.keep, on_step=on_step
        )
    if "window" not in form.forms:
        assert stream is not None and lowered_step is not None
        save_checkpoint(model, folder / files.TRAINED)
        return Manifest(
            **_about(model, form, family, folder),
            signature=stream.step,
            float32_islands=lowered_step.islands,
            advice=lowered_step.advice,
            ema={
                "lowering": "recurrence",
                "reason": f"a stream carries the moving average, which {stream.moving_average}",
                "taps": None,
                "bound": 0.0,
            },
            flops={"trained": family.flops(signature), "deployed": stream.flops},
            parity=stream.parity,
            stream=stream,
        )
    on_step("fold the weights")
    graph = family.graph(signature, form.ema, ir.DataType.FLOAT)
    on_step("write the ONNX graph")
    lowered = lower(graph.model, form.precision, keep=form.keep, half_io=form.half_io)
    proto = onnx_file.save(lowered.model, folder / files.MODEL)
    save_checkpoint(model, folder / files.TRAINED)
    on_step("run the trained model in float64")
    reference = record(model, signature, graph.block_outputs, precision=form.precision, kept=form.keep)
    reference.save(folder / files.REFERENCE)
    reference = Reference.load(folder / files.REFERENCE)
    signature = signature.in_float16() if form.half_io else signature
    report = _judge(folder / files.MODEL, signature, reference, on_step)
    parity = report.to_json()
    if form.precision != "float32":
        on_step("weigh the worst block")
        parity["worst_block_in_float32"] = weigh_worst_block(
            graph.model,
            report,
            reference,
            signature,
            folder / files.MODEL,
            keep=form.keep,
            half_io=form.half_io,
        )
    files.write_json(folder / files.PARITY, parity)
    summary = {key: value for key, value in parity.items() if key not in ("cases", "blocks")}
    averages = [block.to_json() for block in graph.lowering.blocks]
    return Manifest(
        **_about(model, form, family, folder),
        signature=dataclasses.replace(signature, state=stream.step.state) if stream else signature,
        float32_islands=lowered.islands,
        advice=lowered.advice,
        ema={
            "lowering": graph.lowering.name,
            "reason": graph.lowering.reason,
            "taps": max(average["taps"] for average in averages),
            "bound": max(average["bound"] for average in averages),
            "blocks": averages,
        },
        flops={
            "trained": family.flops(signature),
            "deployed": graph_flops(folder / files.MODEL, signature, form.precision),
        },
        parity=summary,
        stream=stream,
        plugins=tuple(
            {"name": function.name, "version": "1", "namespace": function.domain, "function": True}
            for function in proto.functions[:1]
        ),
    )


def _about(model: Model, form: Form, family: Family, folder: Path) -> dict[str, Any]:
    """What a manifest says of every form, once all files are written."""
    source = model_source(model)
    return {
        "config": family.config,
        "source": {"format": source.format, "sha256": source.sha256},
        "precision": form.precision,
        "tools": {"mega-deploy": metadata.version("mega-deploy")}
        | {name: importlib.import_module(name).__version__ for name in (*PACKAGES, "onnxruntime", "numpy")},
        "files": files.describe_files(folder),
    }


def _judge(model: Path, signature: Signature, reference: Reference, on_step: Callable[[str], None]) -> Report:
    """The report on a model that is about to be shipped.

    Raises:
        QualityGateError: it is not equal to the trained one.
    """
    session = judging_session(model, signature, reference.precision)
    report = compare(
        session, reference, reference.precision, lambda case: on_step(f"compare the deployed model with it: {case}")
    )
    on_step("compare its blocks")
    report = dataclasses.replace(report, blocks=compare_blocks(model, signature, reference))
    if not report.passed:
        worst = report.worst
        bad = next((block.name for block in report.blocks if not block.passed), "none of the blocks by itself")
        raise QualityGateError(
            f'parity failed in case "{worst.name}": relative error {worst.error.relative_l2:.2g}, limit '
            f"{worst.limit.relative_l2:.2g} ({worst.floor.relative_l2:.2g} is PyTorch's own); first bad block: {bad}; "
            f"no bundle was written{_way_out(report)}"
        )
    return report


def _way_out(report: Report) -> str:
    """What to do about a lower precision that is not near enough."""
    block = report.worst_block
    if report.precision == "float32" or block is None:
        return ""
    name = block.name.removesuffix(".output")
    why = ""
    if report.precision == "int8":
        why = (
            "; int8's limit is fixed, and each product adds some 1e-2: models that are narrow or untrained, whose "
            "features do not yet stand out from that, often exceed it"
        )
    keep = f"; keep blocks in float32, {name} first (--float32 {name}), or take a higher precision than"
    return f"{why}{keep} {report.precision}"
