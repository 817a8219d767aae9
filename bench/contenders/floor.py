"""What this machine could reach at best, measured in the same rounds as the contenders.

gemm-floor   the matrix products of the bundle's own graph, as onnxruntime optimised it: same nodes, weights and shapes,
             same threads, and nothing else; whole or, where that is faster, in parts of the batch, one a thread. No
             graph with these products runs faster on this runtime.
peak-gemm    one product of 1536 x 1536 x 1536 in that runtime: what its cores give when nothing is small.
memory-read  reading as many bytes as a call must read, over and over: from a cache where they fit into one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.bench.contenders.case import load_case
from mega_deploy.bench.contenders.profile import Node, by_block, by_op, profile
from mega_deploy.bench.contenders.replay import frame_by_frame, parted
from mega_deploy.bench.contenders.task import GEMM_FLOOR, LIMITS, MEMORY_READ, PEAK_GEMM, Task
from mega_deploy.bench.measure.contender import Contender
from mega_deploy.bench.measure.latency import sample
from mega_deploy.errors import MegaDeployError, require
from mega_deploy.runtime import OpenBundle
from mega_deploy.runtime.onnxruntime.session import OPTIMISED

FLOOR, COUNTED, PART = "floor.onnx", "counted.json", "part"
# onnxruntime's matrix products, its own among them; an activation that it fused to one is left out of the floor.
PRODUCTS = (
    "Gemm",
    "MatMul",
    "FusedGemm",
    "FusedMatMul",
    "MatMulInteger",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "MatMulNBits",
)
PLAIN = {"FusedGemm": "Gemm"}
PEAK_SIZE = 1536
BYTES = {"float": 4, "double": 8, "float16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1}
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
        _write_products(onnx, profile(bundle, part, 1, task.place / PART, task.form), part, task.place / PART)
    nodes = profile(bundle, feeds, task.threads, task.place, task.form)
    model, products, shapes = _write_products(onnx, nodes, {**given, **state}, task.place)
    counted = {
        "flop": sum(_flop(node, shapes) for node in products),
        "bytes": _bytes_to_read(model, products, shapes, state),
        "products": len(products),
        "nodes": len(nodes),
        "nodes_ms": sum(node.milliseconds for node in nodes),
        "by_op": by_op(nodes),
        "by_block": by_block(nodes),
        "trace": [asdict(node) for node in nodes],
    }
    (task.place / COUNTED).write_text(json.dumps(counted), "utf-8")


Shapes = dict[str, tuple[str, tuple[int, ...]]]


def _splits(task: Task) -> bool:
    """Whether each thread can have a part of the batch, all of one size."""
    return task.form == "window" and task.threads > 1 and task.batch % task.threads == 0


def _write_products(
    onnx: Any, nodes: Sequence[Node], inputs: Mapping[str, Array], folder: Path
) -> tuple[Any, list[Any], Shapes]:
    """Write FLOOR to the folder of a profile; the graph as onnxruntime ran it, and which of its nodes are products."""
    model = onnx.load(os.fspath(folder / OPTIMISED))
    shapes = _shapes(model, nodes, inputs)
    products = [node for node in model.graph.node if node.op_type in PRODUCTS]
    onnx.save(_products_only(onnx, model, products, shapes), os.fspath(folder / FLOOR))
    return model, products, shapes


def _shapes(model: Any, nodes: Sequence[Node], feeds: Mapping[str, Array]) -> Shapes:
    """Type and shape of every value: constants, inputs, and what each node was seen to give."""
    from onnx import TensorProto

    named = {getattr(TensorProto, kind.upper()): kind for kind in BYTES}
    shapes: Shapes = {
        tensor.name: (named.get(tensor.data_type, "float"), tuple(tensor.dims)) for tensor in model.graph.initializer
    }
    shapes |= {name: (named[_elem_type(array)], array.shape) for name, array in feeds.items()}
    seen = {node.name: node.outputs for node in nodes}
    for node in model.graph.node:
        shapes |= dict(zip([name for name in node.output if name], seen.get(node.name, ()), strict=False))
    return shapes


def _elem_type(array: Array) -> int:
    from onnx.helper import np_dtype_to_tensor_dtype

    return int(np_dtype_to_tensor_dtype(array.dtype))


def _products_only(onnx: Any, model: Any, products: Sequence[Any], shapes: Shapes) -> Any:
    """A model of the products alone: their constants stay constants, what else they take becomes an input of the graph.

    Inputs of one type and shape are one, so that they are as warm as what a graph computes just before.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs: dict[str, Any] = {}
    outputs, nodes, kept = [], [], {}
    for node in products:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if plain := PLAIN.get(node.op_type):
            copy.op_type, copy.domain = plain, ""
            del copy.attribute[:]
            copy.attribute.extend(a for a in node.attribute if not a.name.startswith("activation"))
        for index, name in enumerate(node.input):
            if name in constants:
                kept[name] = constants[name]
            elif name:
                kind, shape = shapes[name]
                copy.input[index] = f"{kind} {' x '.join(map(str, shape))}"
                inputs.setdefault(copy.input[index], _value(onnx, copy.input[index], kind, shape))
        nodes.append(copy)
        outputs += [_value(onnx, name, *shapes[name]) for name in node.output if name]
    graph = onnx.helper.make_graph(nodes, "products", list(inputs.values()), outputs, list(kept.values()))
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _value(onnx: Any, name: str, kind: str, shape: Sequence[int]) -> Any:
    return onnx.helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind.upper()), shape)


def _flop(node: Any, shapes: Shapes) -> int:
    """A multiply-add counts as two."""
    first, out = shapes[node.input[0]][1], shapes[node.output[0]][1]
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * math.prod(out) * first[-2 if transposed else -1]


def _bytes_to_read(model: Any, products: Sequence[Any], shapes: Shapes, state: Mapping[str, Array]) -> int:
    """The graph's constants, once, and what the products take besides: of a stream its state, once as well."""

    def size(name: str) -> int:
        kind, shape = shapes[name]
        return BYTES.get(kind, 4) * math.prod(shape)

    constants = {tensor.name for tensor in model.graph.initializer}
    used = {name for node in model.graph.node for name in node.input} & constants
    taken = list(state) or [name for node in products for name in node.input if name and name not in constants]
    return sum(map(size, used)) + sum(map(size, taken))


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
        [_value(onnx, "x", "float", (size, size))],
        [_value(onnx, "y", "float", (size, size))],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    (call,) = _bound(model.SerializeToString(), task.threads)
    return Contender(call, f"a product of {size} x {size} x {size} in onnxruntime")


def _bound(model: str | bytes, threads: int, count: int = 1) -> list[Callable[[], Sequence[Array]]]:
    """So many calls of one session, which may run at once, each on memory that stays."""
    ort = require("onnxruntime", "cpu", "the limit")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [_call(ort, session) for _ in range(count)]


def _call(ort: Any, session: Any) -> Callable[[], Sequence[Array]]:
    """Without copies, and outputs of one shape share their memory, as a graph's arena does."""
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
    """From onnxruntime's name, such as "tensor(float)"."""
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
