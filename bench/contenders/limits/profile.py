"""Where the time of a call goes: every node of onnxruntime's graph, summed up by operator and by block."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.bench.contenders.replay import along
from mega_deploy.bench.measure.latency import sample, warm_up
from mega_deploy.bundle import ENCODE, MODEL, STEP
from mega_deploy.config.common import Form
from mega_deploy.runtime import OpenBundle, Session, SessionOptions
from mega_deploy.runtime.onnxruntime.step import STEP_CONFIG
from mega_deploy.runtime.streams.encoder import Encoder
from mega_deploy.runtime.streams.session import StreamSession

CALLS = 60
NODE = "_kernel_time"
ELSEWHERE = "outside of the blocks"


@dataclass(frozen=True)
class Node:
    """One node as it ran."""

    name: str
    op: str
    milliseconds: float
    """Median over the calls."""
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    """onnxruntime's name of the type, such as "float", and the shape, of each output."""


def profile(
    bundle: OpenBundle, feeds: Mapping[str, Array], threads: int, folder: Path, form: Form = "window"
) -> list[Node]:
    """Run a bundle under onnxruntime's profiler; the graph as onnxruntime runs it is left in `folder`.

    Profiling slows a call by a few microseconds a node: shares are to be trusted, not the sum.

    Args:
        bundle: that holds the form.
        feeds: by name: of a window, or what was recorded of streams, a frame of which is a call.
        threads: for the work within one call.
        folder: for what onnxruntime writes.
        form: of the bundle.
    """
    inputs = dict(feeds)
    call: Callable[[], object]
    if form == "stream":
        stream, batch = bundle.stream_form, len(next(iter(inputs.values())))
        options = SessionOptions(threads=threads, profile=folder, config=STEP_CONFIG)
        session = Session(bundle.graph(STEP), stream.step.with_state, options)
        encoder = None
        if stream.encode is not None:
            source = stream.encode.signature
            encoder = Encoder(lambda: Session(bundle.graph(ENCODE), source), stream.encode)
        call = along(StreamSession(session, stream.step, batch, encoder=encoder), inputs).call
    else:
        options = SessionOptions(threads=threads, profile=folder)
        session = Session(bundle.graph(MODEL), bundle.manifest.signature, options, bundle.plugins)

        def call() -> object:
            return session.run_named(inputs)

    warm_up(call, limit=2.0)
    sample(call, CALLS)
    return read_trace(json.loads(session.stop_profiling().read_text("utf-8")), CALLS)


def read_trace(events: Sequence[Mapping[str, Any]], calls: int) -> list[Node]:
    """The nodes of the last `calls` calls in a trace of onnxruntime's, in the order in which they ran."""
    runs: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(NODE):
            runs[event["name"].removesuffix(NODE)].append(event)
    nodes = []
    for name, seen in runs.items():
        last = seen[-calls:]
        shapes = [
            (kind, tuple(shape)) for entry in last[-1]["args"]["output_type_shape"] for kind, shape in entry.items()
        ]
        milliseconds = float(np.median([event["dur"] for event in last])) / 1e3
        nodes.append(Node(name, last[-1]["args"]["op_name"], milliseconds, tuple(shapes)))
    return nodes


def by_op(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """Time of each operator, the largest first."""
    return _grouped([(node.op, node) for node in nodes])


def by_block(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """Time of each part of each block, such as "blocks.0/attention", in the order of the graph."""
    named = [(match[0] if (match := re.match(r"blocks\.\d+/\w+", node.name)) else ELSEWHERE, node) for node in nodes]
    return sorted(_grouped(named), key=lambda row: (row["name"] == ELSEWHERE, *_numbered(row["name"])))


def _numbered(name: str) -> tuple[int, str]:
    number = re.search(r"\d+", name)
    order = {"ema": "0", "attention": "1", "ffn": "2"}
    part = name.partition("/")[2]
    return int(number[0]) if number else 0, order.get(part, part)


def _grouped(named: Sequence[tuple[str, Node]]) -> list[dict[str, Any]]:
    total = sum(node.milliseconds for _, node in named) or 1.0
    groups: dict[str, list[float]] = defaultdict(list)
    for name, node in named:
        groups[name].append(node.milliseconds)
    rows = [
        {"name": name, "nodes": len(times), "ms": sum(times), "share": sum(times) / total}
        for name, times in groups.items()
    ]
    return sorted(rows, key=lambda row: -float(row["ms"]))
