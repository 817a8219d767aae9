"""The ways in which one would run the trained model instead, each with the settings that are best for it.

What takes long and is done once (exports, ahead-of-time compilation) is `prepare`d in a process of its own, so that a
contender's load time, cold start and memory are those of a host that only runs it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.bench.contenders.case import load_case
from mega_deploy.bench.contenders.task import Task
from mega_deploy.bench.contenders.torch_peers import (
    ahead_of_time_peer,
    compile_ahead,
    exportable,
    gpu_details,
    tensors,
    torch_peer,
    torch_tensorrt_peer,
)
from mega_deploy.bench.measure.contender import Contender
from mega_deploy.errors import require
from mega_deploy.machine.gpu import look

ON_CPU = ("torch-eager", "torch-compile", "torch-aotinductor", "onnxruntime-naive", "openvino-naive")
ON_GPU = ("torch-eager", "torch-compile", "torch-tensorrt", "tensorrt-naive")
MODULES = {"openvino-naive": "openvino", "torch-tensorrt": "torch_tensorrt", "tensorrt-naive": "tensorrt"}
EXPORT = "naive.onnx"


def available(device: str) -> tuple[str, ...]:
    """The peers that can run here on "cpu" or "cuda"; those that no extra brings take part where they are installed."""
    if device == "cuda" and look().lacks:
        return ()
    named = ON_GPU if device == "cuda" else ON_CPU
    return tuple(name for name in named if name not in MODULES or importlib.util.find_spec(MODULES[name]))


def prepare(task: Task) -> None:
    """Write what a contender loads into the task's folder, where it needs anything."""
    if task.contender in ("onnxruntime-naive", "openvino-naive", "tensorrt-naive"):
        if not (task.place / EXPORT).exists():  # they share it
            _plain_export(task)
    elif task.contender == "torch-aotinductor":
        compile_ahead(task)


def _plain_export(task: Task) -> None:
    """The trained form through torch.onnx.export, as it comes, for this very batch."""
    import torch

    model, inputs = exportable(task), tensors(load_case(task.place).inputs)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(model, (), kwargs=inputs, input_names=list(inputs), dynamo=True, verbose=False)
    assert program is not None
    partial = task.place / f"partial-{EXPORT}"
    program.save(os.fspath(partial), external_data=False)
    partial.replace(task.place / EXPORT)


def _onnxruntime(task: Task, feeds: Mapping[str, Array]) -> Contender:
    onnxruntime = require("onnxruntime", "cpu", task.contender)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(os.fspath(task.place / EXPORT), options, providers=["CPUExecutionProvider"])
    inputs = dict(feeds)
    return Contender(
        lambda: session.run(None, inputs), "torch.onnx.export for this very batch, all optimisations, spinning, arena"
    )


def _openvino(task: Task, feeds: Mapping[str, Array]) -> Contender:
    import openvino

    core = openvino.Core()
    # Left alone it computes in bfloat16 where the processor can.
    config = {"INFERENCE_NUM_THREADS": task.threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    model = core.read_model(os.fspath(task.place / EXPORT))
    request = core.compile_model(model, "CPU", config).create_infer_request()
    inputs = dict(feeds)
    return Contender(
        lambda: [np.asarray(value) for value in request.infer(inputs).values()],
        "torch.onnx.export for this very batch, latency hint, float32",
    )


def _tensorrt(task: Task, feeds: Mapping[str, Array]) -> Contender:
    from polygraphy.backend.trt import CreateConfig, EngineFromNetwork, NetworkFromOnnxPath, TrtRunner

    network = NetworkFromOnnxPath(os.fspath(task.place / EXPORT), strongly_typed=True)
    runner = TrtRunner(EngineFromNetwork(network, CreateConfig(tf32=False)))
    runner.activate()  # until the process ends
    inputs = dict(feeds)
    return Contender(
        lambda: list(runner.infer(inputs).values()),
        "torch.onnx.export for this very batch, strongly typed float32 without TF32",
        details=gpu_details("cuda"),
    )


BUILD: dict[str, Callable[[Task, Mapping[str, Array]], Contender]] = {
    "torch-eager": torch_peer,
    "torch-compile": torch_peer,
    "torch-aotinductor": ahead_of_time_peer,
    "onnxruntime-naive": _onnxruntime,
    "openvino-naive": _openvino,
    "torch-tensorrt": torch_tensorrt_peer,
    "tensorrt-naive": _tensorrt,
}
