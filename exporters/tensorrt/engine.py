"""One call from a bundle to the same bundle with an engine in it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from mega_deploy.bundle import MODEL, STEP, Bundle, add_engine, sha256_of
from mega_deploy.engines import ANY_LATER, FOLDER, ONE_GPU, TARGETS, Engine, Target, check_plan
from mega_deploy.errors import BundleError, InputError, MissingComponentError, require
from mega_deploy.exporters.tensorrt import graph, library, network, timing
from mega_deploy.exporters.tensorrt.library import Listener, OnStep
from mega_deploy.exporters.tensorrt.options import EngineOptions
from mega_deploy.machine import REMEDY, Machine, look
from mega_deploy.plugins import listing
from mega_deploy.plugins.laplace import DOMAIN, NAME, VERSION
from mega_deploy.runtime.library import load
from mega_deploy.signature import Signature


def build(
    bundle: Bundle | str | os.PathLike[str],
    *,
    target: str,
    options: EngineOptions | None = None,
    on_step: OnStep = lambda step: None,
) -> Engine:
    """Build an engine from a bundle's graph and add it to the bundle, where it replaces an earlier one of its target.

    TensorRT-RTX builds without a GPU; TensorRT builds on the GPU that the engine is for.

    Args:
        bundle: opened, or its path. What it holds on disk changes; open it anew to use the engine.
        target: "tensorrt" or "tensorrt-rtx".
        options: see EngineOptions.
        on_step: called with the name of each step as it begins.

    Returns:
        What the manifest now says of the engine.

    Raises:
        OptionError: an option is impossible, or not for this target.
        BundleError: the library refuses the graph, or the bundle cannot be written.
        MissingComponentError: the library, onnx, or for TensorRT the driver or the GPU is missing.
    """
    options = options or EngineOptions()
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    options.check(target, opened.manifest.precision)
    trt = load(TARGETS[target], f"building a {TARGETS[target].title} engine")
    require("onnx", "export", "building an engine")
    machine = look()
    if target == "tensorrt" and not machine.gpus:
        raise MissingComponentError(
            "TensorRT builds an engine on the GPU that it is for, and this machine has no usable GPU: "
            f"{machine.lacks}; {REMEDY}, or build with --target tensorrt-rtx, which needs none"
        )
    maker = _for_tensorrt if target == "tensorrt" else _for_rtx
    engine, plan = maker(_Job(opened, TARGETS[target], trt, machine, options, Listener(trt, on_step), on_step))
    check_plan(plan, engine)
    on_step("add the engine to the bundle")
    add_engine(opened, engine.to_json(), plan)
    return engine


@dataclass(frozen=True)
class _Job:
    bundle: Bundle
    target: Target
    trt: ModuleType
    machine: Machine
    options: EngineOptions
    listener: Listener
    on_step: OnStep

    @property
    def model(self) -> str:
        """The file that is built: of a bundle that is only a stream its step, with the state as inputs and outputs."""
        return MODEL if MODEL in self.bundle.manifest.files else STEP

    @property
    def signature(self) -> Signature:
        """Of that file."""
        manifest = self.bundle.manifest
        return manifest.signature.with_state if self.model == STEP else replace(manifest.signature, state=())

    def run(self, configure: Callable[[Any, Any], None], plugin: Mapping[str, str] | None) -> _Built:
        """Parse, check and build.

        Args:
            configure: sets the configuration, given it and the network.
            plugin: that serves LaplaceAttention, where there is one, as the manifest has it.
        """
        self.on_step("read the graph")
        trt, signature, path = self.trt, self.signature, self.bundle.file(self.model)
        model, called = graph.read(path, plugin=plugin is not None)
        builder = trt.Builder(self.listener.logger)
        parsed = network.parse(trt, builder, model, path, self.listener)
        network.check(trt, parsed, signature)
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # it would break the parity of float32, and no other has a use for it
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.progress_monitor = self.listener.monitor
        shapes = network.profile_shapes(signature)
        network.add_profile(builder, config, shapes)
        configure(config, parsed)
        self.listener.errors.clear()  # none so far stood in the way
        self.on_step("build the engine")
        started = time.perf_counter()
        work = builder.build_serialized_network
        plan = library.interruptible(lambda: work(parsed, config), self.listener.cancelled)
        seconds = time.perf_counter() - started
        if plan is None:
            reason = self.listener.reason()
            raise BundleError(f"{self.target.title} {trt.__version__} cannot build {path}: {reason}")
        plugins = (plugin,) if plugin and called else ()
        return _Built(bytes(plan), config, shapes, plugins, parsed.num_layers, seconds)

    def engine(self, built: _Built, capabilities: tuple[str, ...], gpu: str | None) -> Engine:
        """What is to be known of an engine."""
        manifest = self.bundle.manifest
        return Engine(
            target=self.target.name,
            file=f"{FOLDER}/{self.target.name}.engine",
            library_version=self.trt.__version__,
            compute_capabilities=capabilities,
            precision=manifest.precision,
            profiles=(built.shapes,),
            inputs=self.signature.inputs,
            outputs=self.signature.outputs,
            plugins=built.plugins,
            source={"model": manifest.files[self.model]["sha256"], "checkpoint": manifest.source["sha256"]},
            options={
                "strongly_typed": True,
                "tf32": False,
                "version_compatible": self.options.version_compatible,
                "hardware_compatibility": self.options.hardware_compatibility,
            },
            platform=self.machine.platform,
            driver=self.machine.driver,
            gpu=gpu,
            layers=built.layers,
            seconds=built.seconds,
        )


@dataclass(frozen=True)
class _Built:
    plan: bytes
    config: Any
    shapes: network.Profile
    plugins: tuple[Mapping[str, str], ...]
    layers: int
    seconds: float


def _for_rtx(job: _Job) -> tuple[Engine, bytes]:
    """For the chosen compute capabilities, without a GPU."""
    known = library.capabilities(job.trt)
    chosen = job.options.choose(known)

    def configure(config: Any, parsed: Any) -> None:
        if network.TURING in chosen:
            network.check_turing(job.trt, parsed)
        config.num_compute_capabilities = len(chosen)
        for index, capability in enumerate(chosen):
            config.set_compute_capability(known[capability], index)

    built = job.run(configure, None)
    return job.engine(built, chosen, None), built.plan


def _for_tensorrt(job: _Job) -> tuple[Engine, bytes]:
    """For the GPU of this machine, timed on it."""
    trt, options, gpu = job.trt, job.options, job.machine.gpus[0]
    place = timing.path_for(job.bundle.path, trt.__version__, job.machine)

    def configure(config: Any, parsed: Any) -> None:
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatibility != ONE_GPU:
            levels = trt.HardwareCompatibilityLevel
            later = options.hardware_compatibility == ANY_LATER
            config.hardware_compatibility_level = levels.AMPERE_PLUS if later else levels.SAME_COMPUTE_CAPABILITY
        cache = config.create_timing_cache(timing.read(place)) or config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)

    built = job.run(configure, _load_plugin(job))
    job.on_step("read the engine back")
    host_code = options.version_compatible
    network.check_engine(trt, built.plan, job.signature, built.shapes, job.listener, host_code=host_code)
    timing.write(place, bytes(built.config.get_timing_cache().serialize()))
    return job.engine(built, (gpu.compute_capability,), gpu.name), built.plan


def _load_plugin(job: _Job) -> dict[str, str] | None:
    """Load the plugin's library, where the model has its operator and there is one; what the manifest says of it."""
    called = any(plugin["name"] == NAME for plugin in job.bundle.manifest.plugins)
    path = (job.options.plugin_library or listing.built_library(job.target.name)) if called else None
    if path is None:
        return None
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read as a plugin: {error.strerror}") from error
    registry = job.trt.get_plugin_registry()
    if registry.load_library(str(path)) is None or registry.get_creator(NAME, str(VERSION), DOMAIN) is None:
        raise InputError(f"{path} holds no plugin {NAME} of version {VERSION}: {job.listener.reason()}")
    library = str(path.resolve())
    return {"name": NAME, "version": str(VERSION), "namespace": DOMAIN, "sha256": digest, "library": library}
