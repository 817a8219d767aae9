"""Whose native code may run for an engine: the caller says, and never the bundle that holds the engine.

An engine calls plugins, which are libraries, and may bring code of its own: a version-compatible one the part of
TensorRT that reads it, one that was built with `--plugin embed` the plugin's library. What a manifest says of all these
was written by whoever made the bundle. So a plugin's library is taken from this user's own cache, by its hash, or from
where the caller says; and code inside an engine runs only where the caller allows it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mega_deploy.bundle.engines import ENGINE_CODE_VARIABLE as CODE_VARIABLE
from mega_deploy.errors import OptionError

LIBRARY_VARIABLE = "MEGA_DEPLOY_PLUGIN_LIBRARY"
_ANSWERS = {"": False, "0": False, "1": True}


@dataclass(frozen=True)
class EngineTrust:
    """What the caller of a session lets an engine load."""

    plugin_library: Path | None = None
    """The plugin's library, instead of the one in this user's cache; it must have the hash that the engine names."""
    engine_code: bool = False
    """Whether code that an engine holds may run on the host: its maker can then do all that this user can."""

    @classmethod
    def chosen(cls, plugin_library: str | os.PathLike[str] | None = None, engine_code: bool | None = None) -> Self:
        """What the caller says, and where it says nothing the environment.

        Args:
            plugin_library: path of a library; else MEGA_DEPLOY_PLUGIN_LIBRARY.
            engine_code: else whether MEGA_DEPLOY_ENGINE_CODE is 1.

        Raises:
            OptionError: the library cannot be read, or the variable is neither 0 nor 1.
        """
        given = os.fspath(plugin_library) if plugin_library is not None else os.environ.get(LIBRARY_VARIABLE, "")
        library = Path(given).absolute() if given else None
        if library is not None and not (library.is_file() and os.access(library, os.R_OK)):
            raise OptionError(
                f"{library} is no file that can be read; {LIBRARY_VARIABLE}, or plugin_library, names a plugin library"
            )
        if engine_code is None:
            answer = os.environ.get(CODE_VARIABLE, "")
            if answer not in _ANSWERS:
                raise OptionError(f"{CODE_VARIABLE} is {answer!r}; it may be 1, or 0")
            engine_code = _ANSWERS[answer]
        return cls(library, engine_code)
