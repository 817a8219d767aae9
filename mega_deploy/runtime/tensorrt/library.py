"""TensorRT and TensorRT-RTX as Python modules, which speak the same interface."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from mega_deploy.bundle import Bundle
from mega_deploy.bundle.engine_file import check_file
from mega_deploy.bundle.engine_needs import Here
from mega_deploy.bundle.engines import TARGETS, Engine, Target
from mega_deploy.errors import BundleError, OptionError, require
from mega_deploy.files.hashing import sha256_of
from mega_deploy.machine.gpu import look
from mega_deploy.plugins import listing
from mega_deploy.plugins.cache import Library
from mega_deploy.plugins.given import GivenLibrary
from mega_deploy.runtime.tensorrt import cuda
from mega_deploy.runtime.tensorrt.plugin_registry import PluginLibrary, register
from mega_deploy.runtime.tensorrt.trust import LIBRARY_VARIABLE, EngineTrust
from mega_deploy.text import logger

Read = TypeVar("Read")

# The library tells of a whole engine in one message, a line for each layer.
LOGGER = logger("mega_deploy.tensorrt", limit=None, keep="\n")


def load(target: Target, purpose: str) -> ModuleType:
    """Import the library of a target.

    Raises:
        MissingComponentError: it is not installed; the message has the command that installs it.
    """
    return require(target.module, target.extra, purpose)


def installed_version(target: Target) -> str | None:
    """The version of a target's library, or None where it does not import."""
    try:
        version: str = importlib.import_module(target.module).__version__
    except (ImportError, OSError):
        return None
    return version


def make_logger(trt: ModuleType, errors: list[str]) -> Any:
    """A logger for the library: errors are put into the list, the rest goes to the log "mega_deploy.tensorrt"."""
    severity = trt.ILogger.Severity
    levels = {severity.WARNING: logging.INFO, severity.INFO: logging.DEBUG, severity.VERBOSE: logging.DEBUG}

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level not in levels:
                errors.append(message)
            LOGGER.log(levels.get(level, logging.INFO), "%s", message)

    return Logger()


def first(errors: list[str]) -> str:
    """The first error in one line; those that follow are of the layers above."""
    return " ".join(errors[0].split())[:400] if errors else "it gives no reason"


def find_engine(bundle: Bundle, target: str, graph: str | None = None) -> Engine:
    """The engine of one of a bundle's graphs for a target, its file and its origin compared with the manifest.

    Args:
        bundle: opened.
        target: "tensorrt" or "tensorrt-rtx".
        graph: file of the graph; the first one of `bundle.graphs` by default.

    Raises:
        BundleError: there is none, or it is not the engine of this bundle's model.
    """
    command = f"mega-deploy build {bundle.path} --target {target}"
    found = engines_of(bundle, target)
    graph = graph or bundle.graphs[0]
    engine = next((engine for engine in found if engine.graph == graph), None)
    if engine is None:
        of_graph = f" of {graph}" if found else ""
        raise BundleError(f"{bundle.path} holds no engine{of_graph} for {target}; add one: {command}")
    check_file(bundle.file(engine.file), engine)
    if engine.source["model"] != bundle.manifest.files[graph]["sha256"]:
        raise BundleError(f"{bundle.path / engine.file} was built from another {graph}; build it anew: {command}")
    return engine


def engines_of(bundle: Bundle, target: str) -> list[Engine]:
    """What a bundle's manifest says of its engines for a target."""
    first_graph = {"graph": bundle.graphs[0]}  # in bundles from before engines said which
    return [Engine.from_json({**first_graph, **e}) for e in bundle.manifest.engines if e["target"] == target]


def here(engine: Engine, trust: EngineTrust | None = None) -> Here:
    """What this machine has for an engine; no file is read that its manifest names.

    Args:
        engine: as the manifest says.
        trust: what the caller lets it load; what the environment says by default.

    Raises:
        OptionError: the caller's plugin library cannot be read any more.
    """
    trust, plugins = trust or EngineTrust.chosen(), {}
    for plugin in engine.outside_plugins:
        if trust.plugin_library is not None:
            plugins[plugin["name"]] = _read(trust.plugin_library, sha256_of)
        elif built := _built(engine.target, plugin):
            plugins[plugin["name"]] = built.sha256
    version, bindings = installed_version(TARGETS[engine.target]), cuda.installed()
    return Here(look(), version, plugins, cuda_bindings=bindings, engine_code=trust.engine_code)


def load_plugins(trt: ModuleType, engine: Engine, trust: EngineTrust) -> None:
    """Load the libraries of an engine's plugins: the caller's, or those in this user's cache, with the engine's hash.

    Raises:
        BundleError: a library is not the engine's, or no longer; or this process has another one of a plugin.
        OptionError: the caller's library cannot be read any more.
    """
    for plugin in engine.outside_plugins:
        register(trt, engine.target, plugin, _plugin_library(engine, plugin, trust))


def _plugin_library(engine: Engine, plugin: Mapping[str, Any], trust: EngineTrust) -> PluginLibrary:
    """The library of the hash that an engine names: the caller's, or one in this user's cache."""
    if (given := trust.plugin_library) is not None:
        library = _read(given, GivenLibrary.read)
        if library.sha256 != plugin["sha256"]:
            raise BundleError(f"{given} is not the library that {engine.file} was built with; build it anew")
        return library
    built = _built(engine.target, plugin)
    if built is None or built.sha256 != plugin["sha256"]:
        raise BundleError(f"the plugin {plugin['name']} of {engine.file} is no longer there; build it anew")
    return built


def _read(library: Path, how: Callable[[Path], Read]) -> Read:
    """What a function reads of the caller's library."""
    try:
        return how(library)
    except OSError as error:
        raise OptionError(
            f"{library} cannot be read as a plugin library: {error.strerror}; {LIBRARY_VARIABLE}, or plugin_library, "
            "names it"
        ) from error


def _built(target: str, plugin: Mapping[str, Any]) -> Library | None:
    """The library in this user's cache that an engine was built with; else the newest one, which is another."""
    return listing.built_library(target, plugin["sha256"]) or listing.built_library(target)
