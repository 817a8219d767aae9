"""What this machine could reach at best, measured in the same rounds as the contenders.

gemm-floor   the matrix products of the bundle's own graph, as onnxruntime optimised it: same nodes, weights and shapes,
             same threads, and nothing else; whole or, where that is faster, in parts of the batch, one a thread. No
             graph with these products runs faster on this runtime.
peak-gemm    one product of 1536 x 1536 x 1536 in that runtime: what its cores give when nothing is small.
memory-read  reading as many bytes as a call must read, over and over: from a cache where they fit into one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.bench.contenders.case import load_case
from mega_deploy.bench.contenders.limits.products import FLOOR, bytes_to_read, flop, value_info, write_products
from mega_deploy.bench.contenders.limits.profile import by_block, by_op, profile
from mega_deploy.bench.contenders.replay import frame_by_frame, parted
from mega_deploy.bench.contenders.task import GEMM_FLOOR, LIMITS, MEMORY_READ, PEAK_GEMM, Task
from mega_deploy.bench.measure.contender import Contender
from mega_deploy.bench.measure.latency import sample
from mega_deploy.errors import MegaDeployError, require
from mega_deploy.runtime import OpenBundle

COUNTED, PART = "counted.json", "part"
PEAK_SIZE = 1536
TRIALS = 10


def prepare(task: Task) -> None:
    """Profile the bundle; write the graph of its products, and what was counted."""
    onnx = require("onnx", "bench", "the limit")
    bundle, feeds = OpenBundle.open(task.bundle), load_case(task.place).inputs
    state: dict[str, Array] = {}
    given = feeds
    if task.form == "stream":
        step = bundle.stream_form.step
        given = frame_by_frame(parted(step, feeds)[0])[0]
        state = {spec.name: np.zeros(spec.shape(task.batch), spec.dtype) for spec in step.state}
    if _splits(task):
        (task.place / PART).mkdir(exist_ok=True)
        part = {name: array[: task.batch // task.threads] for name, array in feeds.items()}
        write_products(onnx, profile(bundle, part, 1, task.place / PART, task.form), part, task.place / PART)
    nodes = profile(bundle, feeds, task.threads, task.place, task.form)
    model, products, shapes = write_products(onnx, nodes, {**given, **state}, task.place)
    counted = {
        "flop": sum(flop(node, shapes) for node in products),
        "bytes": bytes_to_read(model, products, shapes, state),
        "products": len(products),
        "nodes": len(nodes),
        "nodes_ms": sum(node.milliseconds for node in nodes),
        "by_op": by_op(nodes),
        "by_block": by_block(nodes),
        "trace": [asdict(node) for node in nodes],
    }
    (task.place / COUNTED).write_text(json.dumps(counted), "utf-8")


def _splits(task: Task) -> bool:
    """Whether each thread can have a part of the batch, all of one size."""
    return task.form == "window" and task.threads > 1 and task.batch % task.threads == 0


def _gemm_floor(task: Task, feeds: Mapping[str, Array]) -> Contender:
    ways = {"": _bound(os.fspath(task.place / FLOOR), task.threads)[0]}
    if _splits(task):
        mine, *others = _bound(os.fspath(task.place / PART / FLOOR), 1, task.threads)
        pool = ThreadPoolExecutor(len(others))

        def in_parts() -> Sequence[Array]:
            running = [pool.submit(call) for call in others]
            mine()
            for future in running:
                future.result()
            return ()

        ways[", in parts of the batch"] = in_parts
    best = _fastest(ways)
    return Contender(ways[best], f"the graph's own matrix products, and nothing else, in onnxruntime{best}")


def _fastest(ways: Mapping[Any, Callable[[], object]]) -> Any:
    """The name of the way whose call is the fastest."""
    for call in ways.values():
        sample(call, TRIALS)
    return min(ways, key=lambda name: min(sample(ways[name], TRIALS)))


def _peak_gemm(task: Task, feeds: Mapping[str, Array]) -> Contender:
    onnx = require("onnx", "bench", "the limit")
    size = PEAK_SIZE
    weight = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "peak",
        [value_info(onnx, "x", "float", (size, size))],
        [value_info(onnx, "y", "float", (size, size))],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    (call,) = _bound(model.SerializeToString(), task.threads)
    return Contender(call, f"a product of {size} x {size} x {size} in onnxruntime")


def _bound(model: str | bytes, threads: int, count: int = 1) -> list[Callable[[], Sequence[Array]]]:
    """Several calls of one session, which may run at once, each on memory that stays."""
    ort = require("onnxruntime", "cpu", "the limit")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [_call(ort, session) for _ in range(count)]


def _call(ort: Any, session: Any) -> Callable[[], Sequence[Array]]:
    """A call without copies, where outputs of one shape share their memory, as in a graph's arena."""
    binding, random = session.io_binding(), np.random.default_rng(0)
    memory: dict[tuple[str, tuple[int, ...]], Any] = {}
    for value in session.get_inputs():
        dtype, shape = _dtype(value.type), tuple(value.shape)
        array = (
            random.standard_normal(shape).astype(dtype) if dtype.kind == "f" else random.integers(0, 99, shape, dtype)
        )
        binding.bind_ortvalue_input(value.name, ort.OrtValue.ortvalue_from_numpy(array))
    for value in session.get_outputs():
        dtype, shape = _dtype(value.type), tuple(value.shape)
        if (value.type, shape) not in memory:
            memory[value.type, shape] = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype)
        binding.bind_ortvalue_output(value.name, memory[value.type, shape])

    def call() -> Sequence[Array]:
        session.run_with_iobinding(binding)
        return ()

    return call


def _dtype(kind: str) -> np.dtype[Any]:
    """NumPy's type for onnxruntime's name of one, such as "tensor(float)"."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


def _memory_read(task: Task, feeds: Mapping[str, Array]) -> Contender:
    size = json.loads((task.place / COUNTED).read_text("utf-8"))["bytes"]
    data = np.ones(max(size // 4, 1), np.float32)

    def reader(threads: int) -> Callable[[], Sequence[Array]]:
        parts = np.array_split(data, threads)
        if threads == 1:
            return lambda: (data.max(),)
        pool = ThreadPoolExecutor(threads)
        return lambda: tuple(pool.map(np.max, parts))

    ways = {threads: reader(threads) for threads in {1, task.threads}}
    best = _fastest(ways)
    return Contender(ways[best], f"reading {size / 1e6:.1f} MB over and over on {best} of the threads")


def limit_of(counted: Mapping[str, Any], seconds: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float]:
    """The limits of one configuration, from what was counted and the samples of the contenders of this module.

    Raises:
        MegaDeployError: one of them was not timed.
    """
    if missing := [name for name in LIMITS if name not in seconds]:
        raise MegaDeployError(f"{', '.join(missing)} was not timed")
    floor, peak, memory = (float(np.median(np.asarray(seconds[name]))) for name in LIMITS)
    fastest_peak = min(float(np.median(turn)) for turn in seconds[PEAK_GEMM])
    peak_gflop_s = 2 * PEAK_SIZE**3 / fastest_peak / 1e9
    return {
        "gemm_floor_ms": floor * 1e3,
        "gemm_floor_gflop_s": counted["flop"] / floor / 1e9,
        "peak_gflop_s": peak_gflop_s,
        "peak_gflop_s_p50": 2 * PEAK_SIZE**3 / peak / 1e9,
        "compute_floor_ms": counted["flop"] / peak_gflop_s / 1e6,
        "memory_gb_s": counted["bytes"] / memory / 1e9,
        "memory_floor_ms": memory * 1e3,
        "flop": counted["flop"],
        "bytes": counted["bytes"],
    }


BUILD: dict[str, Callable[[Task, Mapping[str, Array]], Contender]] = {
    GEMM_FLOOR: _gemm_floor,
    PEAK_GEMM: _peak_gemm,
    MEMORY_READ: _memory_read,
}
