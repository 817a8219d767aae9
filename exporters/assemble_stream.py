"""The files of a bundle that make its stream, and the report on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from mega_deploy import bundle as files
from mega_deploy.config.common import Precision
from mega_deploy.errors import MegaDeployError, QualityGateError
from mega_deploy.exporters import save_graph as onnx_file
from mega_deploy.exporters.families import Model
from mega_deploy.exporters.flops import graph_flops
from mega_deploy.exporters.paper.source import SEEN
from mega_deploy.exporters.precision.float32_nodes import has, layers
from mega_deploy.exporters.precision.lowering import Lowered, lower
from mega_deploy.exporters.state import StreamGraph
from mega_deploy.exporters.stream_families import SAMPLES, streamed
from mega_deploy.parity import Reference
from mega_deploy.runtime.compare import compare_stream
from mega_deploy.runtime.streams.replay import judging_stream
from mega_deploy.signature import Range
from mega_deploy.signature.stream_form import Encoding, StreamForm


def assemble_stream(
    model: Model,
    folder: Path,
    *,
    length: int,
    batch: Range,
    precision: Precision,
    keep: Sequence[str],
    on_step: Callable[[str], None],
) -> tuple[StreamForm, Lowered]:
    """Write step.onnx, prefill.onnx and their parity into `folder`.

    Args:
        model: trained, in eval mode.
        folder: of the bundle on its way.
        length: see `streamed`.
        batch: streams that are served at once; from one on in any case.
        precision: of the weights.
        keep: further float32 islands.
        on_step: called with the name of each step as it begins.

    Raises:
        OptionError: the model has no stream.
        QualityGateError: the stream is not equal to the trained model.
    """
    stream = streamed(model, length)
    on_step("write the graphs of the stream")
    streams = Range(1, batch.opt, batch.max)
    step, prefill = stream.graphs(streams)
    _check_readers(step)
    source = stream.encode(streams) if stream.encode is not None else None
    in_source = [name for name in keep if source is not None and has(source.model, name)]
    keep = [name for name in keep if name not in in_source or has(step.model, name)]
    lowered = lower(step.model, precision, keep=keep, part="steps")
    onnx_file.save(lowered.model, folder / files.STEP)
    onnx_file.save(lower(prefill.model, precision, keep=keep, part="steps").model, folder / files.PREFILL)
    encode = None
    if source is not None:
        onnx_file.save(lower(source.model, precision, keep=in_source, part="source").model, folder / files.ENCODE)
        encode = Encoding(source.signature, SEEN)
    on_step("run the trained model over a long stream in float64")
    stream.record(batch.max, SAMPLES, 0, precision).save(folder / files.STREAM_REFERENCE)
    reference = Reference.load(folder / files.STREAM_REFERENCE)
    form = StreamForm(
        step=step.signature,
        prefill=prefill.signature,
        window=stream.window,
        moving_average=stream.moving_average,
        flops=graph_flops(folder / files.STEP, step.signature.with_state, precision),
        parity={},
        encode=encode,
    )
    judged = judging_stream(folder, form, precision)
    report = compare_stream(judged, reference, precision, lambda case: on_step(f"compare the stream with it: {case}"))
    if not report.passed:
        bad = report.worst
        way_out = ""
        if precision != "float32":
            layer = layers(step.model)[0]
            way_out = f"; keep layers in float32 (--float32 {layer}), or take a higher precision than {precision}"
        raise QualityGateError(
            f'parity of the stream failed in case "{bad.name}": relative error {bad.error.relative_l2:.2g}, limit '
            f"{bad.limit.relative_l2:.2g} ({bad.floor.relative_l2:.2g} is PyTorch's own); no bundle was "
            f"written{way_out}"
        )
    parity = report.to_json()
    files.write_json(folder / files.STREAM_PARITY, parity)
    summary = {key: value for key, value in parity.items() if key not in ("cases", "blocks")}
    return dataclasses.replace(form, parity=summary), lowered


def _check_readers(step: StreamGraph) -> None:
    """Raise unless each state has one reader, for only then may the new value take its place."""
    inputs = {value.name: value for value in step.model.graph.inputs}
    for spec in step.signature.state:
        if spec.output is not None and len(list(inputs[spec.name].uses())) != 1:
            raise MegaDeployError(f"the state {spec.name} has not one reader: its memory cannot be reused")
