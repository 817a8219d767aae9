"""Plugins in TensorRT's registry, which takes one library of a name for the life of the process, and says not which."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from mega_deploy.errors import BundleError
from mega_deploy.plugins.cache import Library
from mega_deploy.plugins.given import GivenLibrary
from mega_deploy.plugins.private import NotPrivateError

PluginLibrary = Library | GivenLibrary

_LOADED: dict[tuple[str, str, str, str], str] = {}
"""SHA-256 of the library that this process loaded, by target and the plugin's name, version and namespace."""
_LOCK = threading.Lock()


def register(
    trt: ModuleType,
    target: str,
    plugin: Mapping[str, Any],
    library: PluginLibrary,
    reason: Callable[[], str] = lambda: "TensorRT's own messages say why",
) -> None:
    """Load a plugin's library, unless this process did so before.

    Args:
        trt: the library of the target.
        target: its name.
        plugin: `name`, `version` and `namespace`, as a manifest has them.
        library: that holds the plugin.
        reason: gives what TensorRT said of a library that it refused.

    Raises:
        BundleError: the library holds no such plugin, or cannot be loaded; or this process has the plugin from another
            library, and a registry takes no second one.
    """
    name = plugin["name"], plugin["version"], plugin["namespace"]
    key = target, *name
    registry = trt.get_plugin_registry()
    with _LOCK:
        if registry.get_creator(*name) is None:
            with loadable(library, name[0]) as path:
                if registry.load_library(path) is None or registry.get_creator(*name) is None:
                    raise BundleError(f"{library.path} holds no plugin {name[0]} of version {name[1]}: {reason()}")
            _LOADED[key] = library.sha256
        elif (loaded := _LOADED.get(key)) != library.sha256:
            which = f"SHA-256 {loaded[:12]}" if loaded else "nobody knows which, for something else loaded it"
            raise BundleError(
                f"this process has loaded another build of the plugin {name[0]} ({which}) than {library.path} (SHA-256 "
                f"{library.sha256[:12]}), and TensorRT takes one in the life of a process; use another process for this"
            )


@contextlib.contextmanager
def loadable(library: PluginLibrary, name: str) -> Iterator[str]:
    """The path to load a plugin's library by, within the context.

    Raises:
        BundleError: it is no longer what was hashed, or gone.
    """
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(library.loadable())
        except (OSError, NotPrivateError) as error:
            raise BundleError(f"the plugin {name} cannot be loaded: {error}; build it anew") from error
        yield path
