"""TensorRT and TensorRT-RTX as Python modules, which speak the same interface."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mega_deploy.bundle import Bundle
from mega_deploy.bundle.engines import TARGETS, Engine, Here, Target, check_file
from mega_deploy.errors import BundleError, require
from mega_deploy.files.hashing import sha256_of
from mega_deploy.machine.gpu import look
from mega_deploy.plugins import listing

LOGGER = logging.getLogger("mega_deploy.tensorrt")


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
    first_graph = {"graph": bundle.graphs[0]}  # of bundles from before engines told theirs
    return [Engine.from_json({**first_graph, **e}) for e in bundle.manifest.engines if e["target"] == target]


def here(engine: Engine) -> Here:
    """What this machine has for an engine."""
    plugins = {}
    for plugin in engine.outside_plugins:
        found = {sha256_of(library) for library in _plugin_libraries(engine.target, plugin)}
        if found:
            plugins[plugin["name"]] = plugin["sha256"] if plugin["sha256"] in found else min(found)
    return Here(look(), installed_version(TARGETS[engine.target]), plugins)


def plugin_libraries(engine: Engine) -> list[Path]:
    """The libraries of an engine's plugins that are here: only those whose hash is the engine's."""
    return [
        library
        for plugin in engine.outside_plugins
        for library in _plugin_libraries(engine.target, plugin)[:1]
        if sha256_of(library) == plugin["sha256"]
    ]


def _plugin_libraries(target: str, plugin: Mapping[str, Any]) -> list[Path]:
    """Where a plugin's library may be: where it was when the engine was built, and in the cache; the engine's first."""
    places = [listing.built_library(target), Path(plugin["library"]) if "library" in plugin else None]
    found = [place for place in places if place is not None and place.is_file()]
    return sorted(found, key=lambda place: sha256_of(place) != plugin["sha256"])
