"""A bundle's engines, as the table of backends loads them."""

from __future__ import annotations

from mega_deploy.bundle import Bundle
from mega_deploy.bundle.engine_needs import refuse
from mega_deploy.runtime.options import SessionOptions
from mega_deploy.runtime.tensorrt.library import engines_of, find_engine, here
from mega_deploy.runtime.tensorrt.session import EngineSession
from mega_deploy.runtime.tensorrt.trust import EngineTrust


def load(target: str, bundle: Bundle, graph: str, options: SessionOptions) -> EngineSession:
    """The engine of one of a bundle's graphs; of the options those for engines count."""
    return EngineSession(bundle, target, graph, _trust(options), check_outputs=options.check_outputs)


def graphs(target: str, bundle: Bundle) -> tuple[str, ...]:
    """The graphs that a bundle holds an engine of: earlier releases built one alone."""
    return tuple(engine.graph for engine in engines_of(bundle, target))


def check(target: str, bundle: Bundle, graph: str, options: SessionOptions) -> None:
    """Refuse an engine that is not there or cannot run here, before anything is loaded.

    Raises:
        BundleError: the bundle holds no engine of the graph, or none for this machine.
        MissingComponentError: the library, the driver, the GPU or the plugin is missing.
    """
    engine = find_engine(bundle, target, graph)
    refuse(engine, here(engine, _trust(options)))


def _trust(options: SessionOptions) -> EngineTrust:
    return EngineTrust.chosen(options.plugin_library, options.engine_code)
