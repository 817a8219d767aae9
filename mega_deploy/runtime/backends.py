"""The table of backends: how each one loads a bundle's graphs, what is lacking for it, and what it can be asked.

A new backend is a folder beside this file and a row in the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mega_deploy.bundle import Bundle
from mega_deploy.bundle.engines import TARGETS
from mega_deploy.errors import OptionError
from mega_deploy.runtime.model import Model
from mega_deploy.runtime.onnxruntime import loading as onnxruntime
from mega_deploy.runtime.onnxruntime.providers import PROVIDERS
from mega_deploy.runtime.options import SessionOptions
from mega_deploy.runtime.tensorrt import loading as tensorrt
from mega_deploy.signature import Signature

if TYPE_CHECKING:
    from onnx import ModelProto

DEFAULT = "onnxruntime"


def _nothing_lacking(_bundle: Bundle) -> None:
    """No bundle is beyond the backend."""


def _all_graphs(bundle: Bundle) -> tuple[str, ...]:
    return bundle.graphs


def _nothing_to_check(_bundle: Bundle, _graph: str, _options: SessionOptions) -> None:
    """What the backend needs shows when it loads a graph."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A row of the table."""

    name: str
    """Its name for sessions and the command line."""
    load: Callable[[Bundle, str, SessionOptions], Model]
    """Loads a graph of a bundle, by its file's name: MODEL, or one of a stream with its state among its inputs."""
    load_for_parity: Callable[[Bundle, str, SessionOptions], Model] | None = None
    """Loads what parity judges, where that is not what `load` gives: an emulation of a precision that it lacks."""
    load_part: Callable[[Bundle, ModelProto, Signature, SessionOptions], Model] | None = None
    """Loads a part of a bundle's graph, to find a bad node; None: a part must be built as an engine first."""
    needs_engine: bool = False
    """Whether it runs engines of TensorRT that `mega-deploy build` put into the bundle, not the ONNX graphs."""
    takes_options: bool = True
    """Whether SessionOptions are for it, those for engines aside."""
    shows_blocks: bool = False
    """Whether `validate` looks into the blocks of what it runs, which onnxruntime's CPU provider alone shows."""
    lacking: Callable[[Bundle], str | None] = _nothing_lacking
    """Why it cannot run a bundle on any machine, and what to do; None where it can."""
    graphs: Callable[[Bundle], tuple[str, ...]] = _all_graphs
    """The graphs of a bundle that it can load."""
    check: Callable[[Bundle, str, SessionOptions], None] = _nothing_to_check
    """Refuses, before anything is loaded, a graph that it cannot run on this machine."""


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            name=DEFAULT,
            load=onnxruntime.load,
            load_for_parity=onnxruntime.load_for_parity,
            load_part=onnxruntime.load_part,
            shows_blocks=True,
            lacking=onnxruntime.lacking,
        ),
        *(
            Backend(
                name=name,
                load=partial(onnxruntime.load_on_provider, name),
                load_part=partial(onnxruntime.load_part_on_provider, name),
            )
            for name in PROVIDERS
        ),
        *(
            Backend(
                name=name,
                load=partial(tensorrt.load, name),
                needs_engine=True,
                takes_options=False,
                graphs=partial(tensorrt.graphs, name),
                check=partial(tensorrt.check, name),
            )
            for name in TARGETS
        ),
    )
}


def find_backend(name: str) -> Backend:
    """A row of the table.

    Raises:
        OptionError: there is no such backend.
    """
    if name not in BACKENDS:
        raise OptionError(f"there is no backend {name!r}; this version has {', '.join(BACKENDS)}")
    return BACKENDS[name]
