"""The forms of a moving average as TensorRT-RTX engines, side by side: layers, build seconds, sizes. Needs no GPU.

`kernel` and `blocked` are what exports write; `unrolled` is the recurrence itself, frame by frame, as a plain export of
the trained form would have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from onnxscript import ir

from mega_deploy.bundle.engines import TARGETS
from mega_deploy.exporters.ema.blocks import lower_to_blocks
from mega_deploy.exporters.ema.kernel import DecaySum, MovingAverage, lower_to_kernel
from mega_deploy.exporters.ema.lowering import Lowered, best_block
from mega_deploy.exporters.ema.nodes import moving_average
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.tensorrt.compiling import compile_graph
from mega_deploy.exporters.tensorrt.library import Listener, capabilities
from mega_deploy.runtime.tensorrt.library import load
from mega_deploy.signature import Signature, TensorSpec

Form = Literal["kernel", "blocked", "unrolled"]
FORMS: tuple[Form, ...] = get_args(Form)


@dataclass(frozen=True)
class Row:
    """One form as an engine."""

    form: Form
    length: int
    nodes: int
    layers: int
    seconds: float
    bytes: int


def scan_model(form: Form, ema: DecaySum, length: int) -> ir.Model:
    """The graph `frames` [1, length, channels] -> `features`, the same over time."""
    channels = len(ema.decay)
    graph = Graph("scan")
    frames = graph.input("frames", [1, length, channels])
    if form == "unrolled":
        features = _unrolled(graph, frames, ema, length)
    else:
        lowered = _lower(form, MovingAverage(ema), length)
        rows = moving_average(graph, graph.rows(frames, channels), lowered, length, length)
        features = graph.windows(rows, length, channels)
    graph.output(features, "features", [1, length, channels])
    return graph.model()


def _lower(form: Form, average: MovingAverage, length: int) -> Lowered:
    if form == "kernel":
        return lower_to_kernel(average, length)
    return lower_to_blocks(average, length, best_block(average, length))


def _unrolled(graph: Graph, frames: ir.Value, ema: DecaySum, length: int) -> ir.Value:
    """h_t = decay h_(t-1) + weight u_t for N states a channel, y_t their sum."""
    op = graph.op
    weight, decay = graph.constant("weight", ema.weight), graph.constant("decay", ema.decay)
    turned = op.Transpose(frames, perm=[1, 2, 0])  # [length, channels, 1]
    steps = [turned] if length == 1 else op.Split(turned, axis=0, num_outputs=length, _outputs=length)
    state, outputs = None, []
    for step in steps:
        added = op.Mul(weight, op.Squeeze(step, [0]))  # [channels, N]
        state = added if state is None else op.Add(op.Mul(decay, state), added)
        outputs.append(op.Unsqueeze(op.ReduceSum(state, [1], keepdims=0), [0]))
    return op.Unsqueeze(op.Concat(*outputs, axis=0), [0])


def measure_form(form: Form, ema: DecaySum, length: int) -> Row:
    """Build the engine for one compute capability, 8.9."""
    trt = load(TARGETS["tensorrt-rtx"], "comparing scans")
    model = ir.to_proto(scan_model(form, ema, length))
    taken, given = (TensorSpec(name, "float32", (1, length, len(ema.decay))) for name in ("frames", "features"))

    def configure(config: Any, _network: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(capabilities(trt)["8.9"], 0)

    compiled = compile_graph(
        trt,
        model,
        Path(f"{form}.onnx"),
        Signature((taken,), (given,)),
        configure,
        listener=Listener(trt, lambda step: None),
        on_step=lambda step: None,
    )
    return Row(form, length, len(model.graph.node), compiled.layers, compiled.seconds, len(compiled.plan))


def measure(ema: DecaySum, lengths: Sequence[int], unrolled_up_to: int) -> list[Row]:
    """A row for each form at each length; longer windows than `unrolled_up_to` frames are not unrolled."""
    return [
        measure_form(form, ema, frames)
        for frames in lengths
        for form in FORMS
        if form != "unrolled" or frames <= unrolled_up_to
    ]


def average(channels: int, states: int) -> DecaySum:
    """A moving average whose slowest states remember some hundred frames."""
    random = np.random.default_rng(0)
    decay = 1 - np.exp(random.uniform(np.log(0.01), np.log(0.5), (channels, states)))
    return DecaySum(weight=random.standard_normal((channels, states)) / states, decay=decay)
