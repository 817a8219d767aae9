"""Engines for a new checkpoint of the same architecture: an old one's with their weights replaced."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import onnx

from mega_deploy.bundle import Bundle
from mega_deploy.bundle.engine_needs import refuse
from mega_deploy.bundle.engines import TARGETS, Engine
from mega_deploy.errors import BundleError, OptionError
from mega_deploy.exporters.save_graph import load_whole
from mega_deploy.exporters.tensorrt import network
from mega_deploy.exporters.tensorrt.library import Listener, OnStep
from mega_deploy.runtime.tensorrt.library import engines_of, find_engine, here, load, load_plugins
from mega_deploy.runtime.tensorrt.refit import fill
from mega_deploy.runtime.tensorrt.trust import EngineTrust

_NUMBERS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


def refit(new: Bundle, old: Bundle, target: str, on_step: OnStep) -> list[tuple[Engine, bytes]]:
    """The engines of `old` with the weights of `new`, and what the manifest is to say of each.

    Raises:
        OptionError: an old engine was not built for it.
        BundleError: two graphs differ in more than their weights, or the library refuses.
        MissingComponentError: the library or the GPU is missing.
    """
    if target not in TARGETS:
        raise OptionError(f"there is no target {target!r}; this version builds for {', '.join(TARGETS)}")
    graphs = [engine.graph for engine in engines_of(old, target)] or [old.graphs[0]]
    return [_refit(new, find_engine(old, target, graph), old, on_step) for graph in graphs]


def _refit(new: Bundle, engine: Engine, old: Bundle, on_step: OnStep) -> tuple[Engine, bytes]:
    """One of them."""
    target, graph = engine.target, engine.graph
    if not engine.options.get("refittable"):
        raise OptionError(
            f"{old.path / engine.file} was built for one set of weights; build it with: "
            f"mega-deploy build {old.path} --target {target} --refit"
        )
    on_step("compare the graphs")
    if difference := next(differences(*map(load_whole, (old.graph(graph), new.graph(graph)))), None):
        raise BundleError(
            f"{new.path} has another graph than {old.path}: {difference}; build an engine of its own: "
            f"mega-deploy build {new.path} --target {target} --refit"
        )
    trust = EngineTrust.chosen()
    refuse(engine, here(engine, trust))
    trt = load(TARGETS[target], f"refitting a {TARGETS[target].title} engine")
    listener = Listener(trt, on_step)
    load_plugins(trt, engine, trust)
    started = time.perf_counter()
    on_step("load the engine")
    runtime = trt.Runtime(listener.logger)
    if engine.host_code:
        runtime.engine_host_code_allowed = True
    loaded = runtime.deserialize_cuda_engine(old.read(engine.file))
    if loaded is None:
        raise BundleError(f"{old.path / engine.file} does not load: {listener.reason()}; build it anew")
    on_step("replace the weights")
    fill(trt, loaded, listener.logger, new.graph(graph), plugin=bool(engine.plugins))
    config = loaded.create_serialization_config()
    flag = trt.SerializationFlag.EXCLUDE_WEIGHTS
    (config.set_flag if engine.options["stripped"] else config.clear_flag)(flag)
    plan, manifest = bytes(loaded.serialize_with_config(config)), new.manifest
    shapes = {
        name: {kind: list(shape) for kind, shape in ranges.items()} for name, ranges in engine.profiles[0].items()
    }
    network.check_engine(trt, plan, new.signature(graph).with_state, shapes, listener, host_code=engine.host_code)
    refitted = dataclasses.replace(
        engine,
        source={"model": manifest.files[graph]["sha256"], "checkpoint": manifest.source["sha256"]},
        options={**engine.options, "refitted_from": old.manifest.files[graph]["sha256"]},
        seconds=time.perf_counter() - started,
    )
    return refitted, plan


def differences(one: onnx.ModelProto, other: onnx.ModelProto) -> Iterator[str]:
    """In what two graphs differ besides the numbers of their weights; nothing where one engine may serve both."""
    for side in ("input", "output"):
        if list(getattr(one.graph, side)) != list(getattr(other.graph, side)):
            yield f"its {side}s are others"
    if one.functions != other.functions:
        yield "its functions are others"
    for ours, theirs in zip(one.graph.node, other.graph.node, strict=False):
        if ours != theirs:
            yield f"node {theirs.name} is {theirs.op_type} of other inputs or attributes than {ours.name}"
    if len(one.graph.node) != len(other.graph.node):
        yield f"it has {len(other.graph.node)} nodes instead of {len(one.graph.node)}"
    before = {tensor.name: tensor for tensor in one.graph.initializer}
    after = {tensor.name: tensor for tensor in other.graph.initializer}
    for name in sorted(set(before) ^ set(after)):
        yield f"the constant {name} is in one of them alone"
    for name, tensor in before.items():
        theirs = after.get(name, tensor)
        if (tensor.data_type, list(tensor.dims)) != (theirs.data_type, list(theirs.dims)):
            yield f"the constant {name} is {list(theirs.dims)} instead of {list(tensor.dims)}"
        elif tensor.data_type not in _NUMBERS and tensor != theirs:
            yield f"the constant {name}, which is no weight, has other values"
