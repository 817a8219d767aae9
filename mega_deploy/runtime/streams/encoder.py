"""The source of a stream, taken once."""

from __future__ import annotations

from collections.abc import Callable

from mega_deploy.arrays import Array
from mega_deploy.runtime.onnxruntime.session import Session
from mega_deploy.runtime.tensorrt.session import EngineSession
from mega_deploy.signature.stream_form import Encoding


class Encoder:
    """A graph that gives what the steps of a stream read of its source.

    Args:
        load: gives the session on that graph, or on its engine, which is asked for on the first use.
        encoding: what it takes and gives.
    """

    def __init__(self, load: Callable[[], Session | EngineSession], encoding: Encoding) -> None:
        self._load, self.encoding, self.signature = load, encoding, encoding.signature
        self._session: Session | EngineSession | None = None

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """The state that no step changes, by name, of checked sources."""
        if self._session is None:
            self._session = self._load()
        return self._session.run_named(feeds)
