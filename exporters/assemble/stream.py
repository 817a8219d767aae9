"""The files of a bundle that make its stream, and the report on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mega_deploy.bundle import ENCODE, PREFILL, STEP, STREAM_PARITY, STREAM_REFERENCE, write_json
from mega_deploy.errors import MegaDeployError, QualityGateError
from mega_deploy.exporters import save_graph
from mega_deploy.exporters.assemble.part import Part, summary
from mega_deploy.exporters.family import Family
from mega_deploy.exporters.flops import graph_flops
from mega_deploy.exporters.options import ExportOptions
from mega_deploy.exporters.precision.float32_nodes import has, layers
from mega_deploy.exporters.precision.lowering import Lowered, lower
from mega_deploy.exporters.reference.streams import record_stream
from mega_deploy.exporters.state import StreamGraph, StreamGraphs
from mega_deploy.parity import Reference
from mega_deploy.runtime import parity_stream
from mega_deploy.runtime.compare import compare_stream
from mega_deploy.signature import Range
from mega_deploy.signature.stream_form import Encoding, StreamForm


def assemble_stream(
    family: Family, length: int, options: ExportOptions, folder: Path, on_step: Callable[[str], None]
) -> tuple[Part, StreamForm]:
    """Write step.onnx, prefill.onnx, where there is a source encode.onnx, and their parity into `folder`.

    Args:
        family: the trained model's.
        length: steps that the stream is exported for: see Family.
        options: what is asked of the deployed model; streams are served from one on in any case.
        folder: of the bundle on its way.
        on_step: called with the name of each step as it begins.

    Raises:
        OptionError: the model has no stream.
        QualityGateError: the stream is not equal to the trained model.
    """
    precision, batch = options.precision, options.batch
    on_step("write the graphs of the stream")
    graphs = family.stream_graphs(length, Range(1, batch.opt, batch.max))
    _check_readers(graphs.step)
    lowered = _save_graphs(graphs, options, folder)
    on_step("run the trained model over a long stream in float64")
    record_stream(family, length, batch.max, precision=precision).save(folder / STREAM_REFERENCE)
    form = StreamForm(
        step=graphs.step.signature,
        prefill=graphs.prefill.signature,
        window=family.window(length),
        moving_average=family.moving_average,
        flops=graph_flops(folder / STEP, graphs.step.signature.with_state, precision),
        parity={},
        encode=None if graphs.encode is None else Encoding(graphs.encode.signature, graphs.encode.seen),
    )
    parity = _check_parity(folder, form, graphs, options, on_step)
    write_json(folder / STREAM_PARITY, parity)
    form = dataclasses.replace(form, parity=summary(parity))
    ema = {
        "lowering": "recurrence",
        "reason": f"a stream carries the moving average, which {form.moving_average}",
        "taps": None,
        "bound": 0.0,
    }
    part = Part(signature=form.step, lowered=lowered, ema=ema, flops=form.flops, parity=form.parity)
    return part, form


def _save_graphs(graphs: StreamGraphs, options: ExportOptions, folder: Path) -> Lowered:
    """Write the graphs in the bundle's precision; the step's, lowered.

    A name to keep in float32 may be of the source alone, or of the steps, or of both.
    """
    precision, source, step = options.precision, graphs.encode, graphs.step.model
    in_source = [name for name in options.float32 if source is not None and has(source.model, name)]
    in_steps = [name for name in options.float32 if name not in in_source or has(step, name)]
    lowered = lower(step, precision, keep_float32=in_steps, part="steps")
    save_graph.save(lowered.model, folder / STEP)
    prefill = lower(graphs.prefill.model, precision, keep_float32=in_steps, part="steps")
    save_graph.save(prefill.model, folder / PREFILL)
    if source is not None:
        encode = lower(source.model, precision, keep_float32=in_source, part="source")
        save_graph.save(encode.model, folder / ENCODE)
    return lowered


def _check_parity(
    folder: Path, form: StreamForm, graphs: StreamGraphs, options: ExportOptions, on_step: Callable[[str], None]
) -> dict[str, Any]:
    """The report on a stream that is about to be shipped, as JSON.

    Raises:
        QualityGateError: it is not equal to the trained model.
    """
    precision, reference = options.precision, Reference.load(folder / STREAM_REFERENCE)
    session = parity_stream(folder, form, precision)
    report = compare_stream(session, reference, precision, lambda case: on_step(f"compare the stream with it: {case}"))
    if not report.passed:
        bad = report.worst
        way_out = ""
        if precision != "float32":
            layer = layers(graphs.step.model)[0]
            way_out = f"; keep layers in float32 (--float32 {layer}), or take a higher precision than {precision}"
        raise QualityGateError(
            f'parity of the stream failed in case "{bad.name}": relative error {bad.error.relative_l2:.2g}, limit '
            f"{bad.limit.relative_l2:.2g} ({bad.floor.relative_l2:.2g} is PyTorch's own); no bundle was "
            f"written{way_out}"
        )
    return report.to_json()


def _check_readers(step: StreamGraph) -> None:
    """Raise unless each state has one reader, for only then may the new value take its place."""
    inputs = {value.name: value for value in step.model.graph.inputs}
    for spec in step.signature.state:
        if spec.output is not None and len(list(inputs[spec.name].uses())) != 1:
            raise MegaDeployError(f"the state {spec.name} has not one reader: its memory cannot be reused")
