"""The files of a bundle that make its whole windows, and the report on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnxscript import ir

from mega_deploy.bundle import MODEL, PARITY, REFERENCE, write_json
from mega_deploy.errors import QualityGateError
from mega_deploy.exporters import save_graph
from mega_deploy.exporters.assemble.part import Part, summary
from mega_deploy.exporters.ema.lowering import Lowering
from mega_deploy.exporters.family import Family
from mega_deploy.exporters.flops import graph_flops
from mega_deploy.exporters.options import ExportOptions
from mega_deploy.exporters.precision.fp32_fallback import measure_float32_fallback
from mega_deploy.exporters.precision.lowering import lower
from mega_deploy.exporters.reference.recorder import record
from mega_deploy.parity import Reference, Report
from mega_deploy.runtime import parity_session
from mega_deploy.runtime.compare import compare, compare_blocks
from mega_deploy.signature import Signature


def assemble_window(
    family: Family, signature: Signature, options: ExportOptions, folder: Path, on_step: Callable[[str], None]
) -> Part:
    """Write model.onnx and its parity into `folder`.

    Args:
        family: the trained model's.
        signature: of the model, in float32.
        options: what is asked of the deployed model.
        folder: of the bundle on its way.
        on_step: called with the name of each step as it begins.

    Raises:
        OptionError: the model cannot be deployed so.
        QualityGateError: the deployed model is not equal to the trained one.
    """
    precision, path = options.precision, folder / MODEL
    on_step("fold the weights")
    graph = family.graph(signature, options.ema, ir.DataType.FLOAT)
    on_step("write the ONNX graph")
    lowered = lower(graph.model, precision, keep_float32=options.float32, half_io=options.half_io)
    proto = save_graph.save(lowered.model, path)
    on_step("run the trained model in float64")
    reference = record(family, signature, graph.block_outputs, precision=precision, keep_float32=options.float32)
    reference.save(folder / REFERENCE)
    reference = Reference.load(folder / REFERENCE)
    served = signature.in_float16() if options.half_io else signature
    report = _check_parity(path, served, reference, on_step)
    parity = report.to_json()
    if precision != "float32":
        on_step("weigh the worst block")
        parity["worst_block_in_float32"] = measure_float32_fallback(
            graph.model, report, reference, served, path, keep_float32=options.float32, half_io=options.half_io
        )
    write_json(folder / PARITY, parity)
    return Part(
        signature=served,
        lowered=lowered,
        ema=_describe_average(graph.lowering),
        flops=graph_flops(path, served, precision),
        parity=summary(parity),
        plugins=_plugins(proto),
    )


def _describe_average(lowering: Lowering) -> dict[str, Any]:
    averages = [block.to_json() for block in lowering.blocks]
    return {
        "lowering": lowering.name,
        "reason": lowering.reason,
        "taps": max(average["taps"] for average in averages),
        "bound": max(average["bound"] for average in averages),
        "blocks": averages,
    }


def _plugins(model: onnx.ModelProto) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"name": function.name, "version": "1", "namespace": function.domain, "function": True}
        for function in model.functions[:1]
    )


def _check_parity(model: Path, signature: Signature, reference: Reference, on_step: Callable[[str], None]) -> Report:
    """The report on a model that is about to be shipped.

    Raises:
        QualityGateError: it is not equal to the trained one.
    """
    session = parity_session(model, signature, reference.precision)
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
    """The end of the line that refuses a lower precision: which layer to keep in float32, and why it may be needed."""
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
