"""From an ONNX graph to an engine's bytes: parse, check, set the shapes, build."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from mega_deploy.errors import BundleError
from mega_deploy.exporters.tensorrt import library, network
from mega_deploy.exporters.tensorrt.library import Listener, OnStep
from mega_deploy.signature import Signature


@dataclass(frozen=True)
class Compiled:
    """An engine's bytes, and what came of building them."""

    plan: bytes
    config: Any
    shapes: network.Profile
    layers: int
    seconds: float
    """What the build alone took."""


def compile_graph(
    trt: ModuleType,
    model: onnx.ModelProto,
    path: Path,
    signature: Signature,
    configure: Callable[[Any, Any], None],
    *,
    listener: Listener,
    on_step: OnStep,
) -> Compiled:
    """Build an engine.

    Args:
        trt: the library.
        model: the graph, as `runtime.tensorrt.parsed` gives it.
        path: where it comes from.
        signature: what it takes and gives.
        configure: sets the configuration, given it and the network.
        listener: what the library speaks to.
        on_step: called with the name of each step as it begins.

    Raises:
        BundleError: the library refuses the graph, or it is not what the signature says.
    """
    builder = trt.Builder(listener.logger)
    parsed = network.parse(trt, builder, model, path, listener)
    network.check(trt, parsed, signature)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # it would break the parity of float32, and no other has a use for it
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = listener.monitor
    shapes = network.profile_shapes(signature)
    network.add_profile(builder, config, shapes)
    configure(config, parsed)
    listener.errors.clear()  # none so far stood in the way
    on_step("build the engine")
    started = time.perf_counter()
    plan = library.interruptible(lambda: builder.build_serialized_network(parsed, config), listener.cancelled)
    seconds = time.perf_counter() - started
    if plan is None:
        raise BundleError(f"{trt.__name__} {trt.__version__} cannot build {path}: {listener.reason()}")
    return Compiled(bytes(plan), config, shapes, parsed.num_layers, seconds)
