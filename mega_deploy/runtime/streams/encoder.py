"""The source of a stream, taken once."""

from __future__ import annotations

from collections.abc import Callable

from mega_deploy.arrays import Array
from mega_deploy.runtime.model import Model
from mega_deploy.signature.stream_form import Encoding


class Encoder:
    """A graph that gives what the steps of a stream read of its source.

    Args:
        load: gives that graph as it is loaded, which is asked for on the first use.
        encoding: what it takes and gives.
    """

    def __init__(self, load: Callable[[], Model], encoding: Encoding) -> None:
        self._load, self.encoding, self.signature = load, encoding, encoding.signature
        self._model: Model | None = None

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """The state that no step changes, by name, of checked sources."""
        if self._model is None:
            self._model = self._load()
        return self._model.run_named(feeds)
