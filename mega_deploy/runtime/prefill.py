"""Many frames of a stream in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mega_deploy.runtime.session import Session
from mega_deploy.signature import LARGEST_SIZE, Range, Signature
from mega_deploy.stream_form import StreamForm

Array = npt.NDArray[Any]


class Prefill:
    """A graph that takes up to so many frames at once, and the state as the step has it.

    Args:
        load: gives the session on that graph, which is asked for on the first use.
        signature: of the graph, with the state: inputs [batch, frames, ...], outputs of the last frame.
    """

    def __init__(self, load: Callable[[], Session], signature: Signature) -> None:
        self._load, self._graph = load, signature
        self._session: Session | None = None
        frames = signature.inputs[0].dims[1]
        assert isinstance(frames, Range)
        self.most = frames.max
        """Frames of one call of the graph; `run` takes any number."""

    @property
    def signature(self) -> Signature:
        """What `run` takes: any number of frames."""
        return any_number_of_frames(self._graph)

    def run(self, feeds: Mapping[str, Array], state: dict[str, Array]) -> dict[str, Array]:
        """The outputs of the last frame; the arrays of `state` are replaced by new ones."""
        if self._session is None:
            self._session = self._load()
        frames = next(iter(feeds.values())).shape[1]
        outputs: dict[str, Array] = {}
        for start in range(0, frames, self.most):
            part = {name: np.ascontiguousarray(array[:, start : start + self.most]) for name, array in feeds.items()}
            outputs = self._session.run_named({**part, **state})
            for spec in self._graph.state:
                if spec.output is not None:
                    state[spec.name] = outputs.pop(spec.output)
        return outputs


def whole_sequences(form: StreamForm) -> Signature:
    """The inputs of a stream for all its frames at once, those of its source behind them."""
    frames = any_number_of_frames(form.prefill)
    return frames if form.encode is None else replace(frames, inputs=frames.inputs + form.encode.signature.inputs)


def any_number_of_frames(signature: Signature) -> Signature:
    """The inputs and outputs of a graph for many frames, without the limit of one call."""
    inputs = (
        replace(spec, dims=(spec.dims[0], Range(1, 1, LARGEST_SIZE), *spec.dims[2:])) for spec in signature.inputs
    )
    return Signature(tuple(inputs), signature.outputs)
