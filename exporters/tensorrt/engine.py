"""One call from a bundle to the same bundle with engines of its graphs in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mega_deploy.bundle import MODEL, Bundle, add_engines
from mega_deploy.bundle.engine_file import check_plan
from mega_deploy.bundle.engines import ANY_LATER, FOLDER, ONE_GPU, TARGETS, Engine, Target
from mega_deploy.errors import InputError, MissingComponentError, OptionError, require
from mega_deploy.exporters.tensorrt import library, network, refitting, timing
from mega_deploy.exporters.tensorrt.compiling import Compiled, compile_graph
from mega_deploy.exporters.tensorrt.library import Listener, OnStep
from mega_deploy.exporters.tensorrt.options import EMBED, EngineOptions
from mega_deploy.machine.gpu import REMEDY, Machine, look
from mega_deploy.plugins import listing
from mega_deploy.plugins.given import GivenLibrary
from mega_deploy.plugins.laplace import DOMAIN, NAME, VERSION
from mega_deploy.runtime.tensorrt import parsed
from mega_deploy.runtime.tensorrt.library import load
from mega_deploy.runtime.tensorrt.plugin_registry import PluginLibrary, loadable, register
from mega_deploy.runtime.tensorrt.trust import EngineTrust
from mega_deploy.signature import Signature


def build(
    bundle: Bundle | str | os.PathLike[str],
    *,
    target: str,
    options: EngineOptions | None = None,
    refit_from: Bundle | str | os.PathLike[str] | None = None,
    on_step: OnStep = lambda step: None,
) -> Engine:
    """Build an engine of each of a bundle's graphs and add them to it, where they replace earlier ones of their target.

    TensorRT-RTX builds without a GPU; TensorRT builds on the GPU that the engine is for.

    Args:
        bundle: opened, or its path. What it holds on disk changes; open it anew to use the engine.
        target: "tensorrt" or "tensorrt-rtx".
        options: see EngineOptions.
        refit_from: another bundle with a refittable engine of the same architecture: it gets this bundle's weights, and
            nothing is compiled. Takes no options.
        on_step: called with the name of each step as it begins.

    Returns:
        What the manifest now says of the first one's engine: of the window's, or in a bundle that is a stream the
        step's. A stream has others, of what takes many frames at once and of what takes a source.

    Raises:
        OptionError: an option is impossible, or not for this target.
        BundleError: the library refuses the graph, or the bundle cannot be written.
        MissingComponentError: the library, onnx, or where one is needed the driver or the GPU is missing.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if refit_from is not None:
        if options not in (None, EngineOptions()):
            raise OptionError("an engine that is refitted is as it was built; leave the other options out")
        old = refit_from if isinstance(refit_from, Bundle) else Bundle.open(refit_from)
        return _add(opened, refitting.refit(opened, old, target, on_step), on_step)
    options = options or EngineOptions()
    options.check(target, opened.manifest.precision)
    trt = load(TARGETS[target], f"building a {TARGETS[target].title} engine")
    require("onnx", "export", "building an engine")
    machine = look()
    if target == "tensorrt" and not machine.gpus:
        raise MissingComponentError(
            "TensorRT builds an engine on the GPU that it is for, and this machine has no usable GPU: "
            f"{machine.lacks}; {REMEDY}, or build with --target tensorrt-rtx, which needs none"
        )
    if target == "tensorrt-rtx" and options.flags and not machine.gpus:
        raise MissingComponentError(
            "TensorRT-RTX compiles engines that are refittable or stripped on a GPU (all others without one), and this "
            f"machine has no usable GPU: {machine.lacks}; {REMEDY}"
        )
    maker = _for_tensorrt if target == "tensorrt" else _for_rtx
    made = []
    for graph in opened.graphs:
        named = _naming(graph, on_step) if len(opened.graphs) > 1 else on_step
        made.append(maker(_Job(opened, TARGETS[target], trt, machine, options, Listener(trt, named), named, graph)))
    return _add(opened, made, on_step)


def _naming(graph: str, on_step: OnStep) -> OnStep:
    """A listener to steps that names the graph of each."""
    return lambda step: on_step(f"{graph}: {step}")


def _add(opened: Bundle, made: Sequence[tuple[Engine, bytes]], on_step: OnStep) -> Engine:
    """Put engines into their bundle; the first one.

    Raises:
        BundleError: a file is not what the manifest is to say of it, or the bundle cannot be written.
    """
    for engine, plan in made:
        check_plan(plan, engine)
    on_step("add the engine to the bundle")
    add_engines(opened, [(engine.to_json(), plan) for engine, plan in made])
    return made[0][0]


@dataclass(frozen=True)
class _Job:
    bundle: Bundle
    target: Target
    trt: ModuleType
    machine: Machine
    options: EngineOptions
    listener: Listener
    on_step: OnStep
    graph: str = MODEL
    """The file that is built."""

    @property
    def signature(self) -> Signature:
        """The signature of that file, with the state as inputs and outputs."""
        return self.bundle.signature(self.graph).with_state

    def run(self, configure: Callable[[Any, Any], None], plugin: Mapping[str, Any] | None) -> _Built:
        """Build from the bundle's graph.

        Args:
            configure: sets the configuration, given it and the network.
            plugin: that serves LaplaceAttention, where there is one, as the manifest has it.
        """
        self.on_step("read the graph")
        signature = self.signature

        def configured(config: Any, parsed: Any) -> None:
            for name in self.options.flags:
                config.set_flag(getattr(self.trt.BuilderFlag, name))
            configure(config, parsed)

        with self.bundle.graph(self.graph).opened() as opened:
            model, called = parsed.read(opened.data, plugin=plugin is not None)
            compiled = compile_graph(
                self.trt, model, opened.place, signature, configured, listener=self.listener, on_step=self.on_step
            )
        return _Built(compiled, (plugin,) if plugin and called else ())

    def engine(self, built: _Built, capabilities: tuple[str, ...], gpu: str | None) -> Engine:
        """What is to be known of an engine."""
        manifest = self.bundle.manifest
        part = "" if self.graph == self.bundle.graphs[0] else f".{self.graph.removesuffix('.onnx')}"
        return Engine(
            target=self.target.name,
            file=f"{FOLDER}/{self.target.name}{part}.engine",
            graph=self.graph,
            library_version=self.trt.__version__,
            compute_capabilities=capabilities,
            precision=manifest.precision,
            profiles=(built.compiled.shapes,),
            inputs=self.signature.inputs,
            outputs=self.signature.outputs,
            plugins=built.plugins,
            source={"model": manifest.files[self.graph]["sha256"], "checkpoint": manifest.source["sha256"]},
            options={
                "strongly_typed": True,
                "tf32": False,
                "version_compatible": self.options.version_compatible,
                "hardware_compatibility": self.options.hardware_compatibility,
                "refittable": self.options.refit,
                "stripped": self.options.strip_plan,
            },
            platform=self.machine.platform,
            driver=self.machine.driver,
            gpu=gpu,
            layers=built.compiled.layers,
            seconds=built.compiled.seconds,
        )


@dataclass(frozen=True)
class _Built:
    compiled: Compiled
    plugins: tuple[Mapping[str, Any], ...]


def _for_rtx(job: _Job) -> tuple[Engine, bytes]:
    """For the chosen compute capabilities, without a GPU."""
    known = library.capabilities(job.trt)
    chosen = job.options.choose(known)

    def configure(config: Any, graph: Any) -> None:
        if network.TURING in chosen:
            network.check_turing(job.trt, graph)
        config.num_compute_capabilities = len(chosen)
        for index, capability in enumerate(chosen):
            config.set_compute_capability(known[capability], index)

    built = job.run(configure, None)
    return job.engine(built, chosen, None), built.compiled.plan


def _for_tensorrt(job: _Job) -> tuple[Engine, bytes]:
    """For the GPU of this machine, timed on it."""
    trt, options, gpu = job.trt, job.options, job.machine.gpus[0]
    place = timing.path_for(job.bundle.path, trt.__version__, job.machine)

    with _loaded_plugin(job) as plugin:

        def configure(config: Any, _graph: Any) -> None:
            if plugin and plugin.entry["embedded"]:
                config.plugins_to_serialize = [plugin.path]
            if options.hardware_compatibility != ONE_GPU:
                levels = trt.HardwareCompatibilityLevel
                later = options.hardware_compatibility == ANY_LATER
                config.hardware_compatibility_level = levels.AMPERE_PLUS if later else levels.SAME_COMPUTE_CAPABILITY
            cache = config.create_timing_cache(timing.read(place)) or config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)

        built = job.run(configure, plugin.entry if plugin else None)
    plan, shapes, config = built.compiled.plan, built.compiled.shapes, built.compiled.config
    engine = job.engine(built, (gpu.compute_capability,), gpu.name)
    job.on_step("read the engine back")
    network.check_engine(trt, plan, job.signature, shapes, job.listener, host_code=engine.host_code)
    timing.write(place, bytes(config.get_timing_cache().serialize()))
    return engine, plan


@dataclass(frozen=True)
class _Plugin:
    path: str
    """By which it was loaded."""
    entry: Mapping[str, Any]
    """What the manifest says of it."""


@contextlib.contextmanager
def _loaded_plugin(job: _Job) -> Iterator[_Plugin | None]:
    """Load the plugin's library, where the model has its operator and there is one: the caller's, or this user's.

    Raises:
        InputError: the caller's cannot be read, holds no such plugin, or this process has loaded another one.
        MissingComponentError: the engine is to hold it, and there is none.
    """
    library = _plugin_library(job)
    if library is None:
        yield None
        return
    entry = {"name": NAME, "version": str(VERSION), "namespace": DOMAIN, "sha256": library.sha256}
    register(job.trt, job.target.name, entry, library, job.listener.reason)
    with loadable(library, NAME) as path:
        yield _Plugin(path, {**entry, "embedded": job.options.plugin == EMBED})


def _plugin_library(job: _Job) -> PluginLibrary | None:
    if job.graph != MODEL or all(plugin["name"] != NAME for plugin in job.bundle.manifest.plugins):
        return None
    if given := job.options.plugin_library or EngineTrust.chosen().plugin_library:
        try:
            return GivenLibrary.read(Path(given))
        except OSError as error:
            raise InputError(f"{given} cannot be read as a plugin: {error.strerror}") from error
    built = listing.built_library(job.target.name)
    if built is None and job.options.plugin == EMBED:
        raise MissingComponentError(
            f"there is no plugin of {NAME} to put into the engine; run: mega-deploy plugins build tensorrt"
        )
    return built
