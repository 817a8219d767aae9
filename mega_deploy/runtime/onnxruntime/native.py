"""onnxruntime's own session on a graph: made from verified bytes, and anew in a process that was forked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mega_deploy.bundle import ChangedError, Loadable, OpenGraph
from mega_deploy.errors import BundleError
from mega_deploy.runtime.onnxruntime.calls import is_onnxruntimes

EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
Source = str | os.PathLike[str] | bytes | Loadable
"""An ONNX file by its path, its bytes, or a graph of a bundle."""


@dataclass(frozen=True)
class _Bytes:
    """A graph that was made in memory."""

    data: bytes = field(repr=False)

    @contextmanager
    def opened(self) -> Iterator[OpenGraph]:
        yield OpenGraph(self.data, Path())

    def __str__(self) -> str:
        return "the model"


class _File:
    """A graph in a file of no bundle; weights outside of it lie beside it. It must stay as it is while it is in use."""

    def __init__(self, path: Path) -> None:
        self._path, self._stamp = path, _stamp(path)

    @contextmanager
    def opened(self) -> Iterator[OpenGraph]:
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise BundleError(f"{self._path} cannot be read: {error.strerror}") from error
        if _stamp(self._path) != self._stamp:
            raise ChangedError(self._path, "it is another file")
        yield OpenGraph(data, self._path, outside=True)

    def __str__(self) -> str:
        return str(self._path)


def loadable(source: Source) -> Loadable:
    """A graph of any kind as one that can be opened."""
    if isinstance(source, bytes):
        return _Bytes(source)
    return _File(Path(source)) if isinstance(source, str | os.PathLike) else source


def load(ort: Any, source: Loadable, settings: Any, providers: list[Any]) -> Any:
    """onnxruntime's session on a graph.

    Args:
        ort: the library.
        source: the graph.
        settings: onnxruntime's options.
        providers: with their options, in order.

    Raises:
        BundleError: a file has changed, or onnxruntime refuses the graph or the options.
    """
    with source.opened() as opened:
        try:
            if opened.outside:
                settings.add_session_config_entry(EXTERNAL_FOLDER, str(opened.place.parent))
            # Without its fallback onnxruntime says that a provider fails, instead of trying another one.
            session = ort.InferenceSession(opened.data, settings, providers=providers, enable_fallback=False)
        except Exception as error:  # onnxruntime's own classes have no base of theirs
            raise refused(ort, source, error) from error
    session._model_bytes = b""  # which it keeps for its fallback: the model would be in memory twice
    return session


def refused(ort: Any, source: Loadable, error: Exception) -> Exception:
    """The error to raise where a graph was not loaded: onnxruntime's in our words, or one of others as it is."""
    if not is_onnxruntimes(error) and not isinstance(error, ValueError | TypeError):  # these are about its options
        return error
    reason = " ".join(str(error).split())
    return BundleError(f"onnxruntime {ort.__version__} cannot load {source}: {reason:.400}")


def _stamp(path: Path) -> object:
    """What tells whether a file is still the one that it was."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
