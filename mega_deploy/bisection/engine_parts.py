"""Parts of a bundle's graph as engines of their own, built and run on this machine's GPU: for finding bad nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import inliner

from mega_deploy.arrays import Array
from mega_deploy.bundle import MODEL, Bundle
from mega_deploy.bundle.engines import TARGETS
from mega_deploy.errors import MissingComponentError
from mega_deploy.exporters.tensorrt import library
from mega_deploy.exporters.tensorrt.compiling import compile_graph
from mega_deploy.exporters.tensorrt.library import Listener
from mega_deploy.machine.gpu import REMEDY, look
from mega_deploy.runtime.tensorrt.execution import Execution
from mega_deploy.runtime.tensorrt.library import load
from mega_deploy.signature import Signature, TensorSpec


def part_runner(target: str, bundle: Bundle) -> Callable[[onnx.ModelProto, Mapping[str, Array]], dict[str, Array]]:
    """A function that builds an engine of a graph for arrays of these very sizes, and runs it.

    Laplace attention is built as its function, so that its own values can be seen.

    Raises:
        MissingComponentError: the library or the GPU is missing.
    """
    trt = load(TARGETS[target], f"building parts for {target}")
    machine = look()
    if not machine.gpus:
        raise MissingComponentError(f"{target} runs on a GPU, and this machine has none: {machine.lacks}; {REMEDY}")
    path, capability = bundle.file(MODEL), machine.gpus[0].compute_capability

    def configure(config: Any, _network: Any) -> None:
        if target == "tensorrt-rtx":
            config.num_compute_capabilities = 1
            config.set_compute_capability(library.capabilities(trt)[capability], 0)

    def run(model: onnx.ModelProto, given: Mapping[str, Array]) -> dict[str, Array]:
        model = sized(inliner.inline_local_functions(model), given)
        signature = Signature(specs(model.graph.input), specs(model.graph.output))
        listener = Listener(trt, lambda step: None)
        compiled = compile_graph(trt, model, path, signature, configure, listener=listener, on_step=lambda step: None)
        feeds = {spec.name: np.ascontiguousarray(given[spec.name], spec.dtype) for spec in signature.inputs}
        return Execution(trt, compiled.plan, path, signature).run(feeds)

    return run


def sized(model: onnx.ModelProto, given: Mapping[str, Array]) -> onnx.ModelProto:
    """The model for inputs of these very sizes, with the sizes of its outputs."""
    for value in model.graph.input:
        shape = onnx.helper.make_tensor_type_proto(value.type.tensor_type.elem_type, given[value.name].shape)
        value.type.CopyFrom(shape)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def specs(values: Any) -> tuple[TensorSpec, ...]:
    """Name, dtype and shape of a graph's inputs, or of its outputs, all of whose sizes are fixed."""
    return tuple(
        TensorSpec(
            value.name,
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    )
