"""Many frames of a stream in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.runtime.model import Model, Step
from mega_deploy.signature import LARGEST_SIZE, Range, Signature
from mega_deploy.signature.stream_form import StreamForm


class Prefill:
    """A graph that takes up to so many frames at once, and the state as the step has it.

    Args:
        load: gives that graph as it is loaded, which is asked for on the first use.
        signature: of the graph, with the state: inputs [batch, frames, ...], outputs of the last frame.
    """

    def __init__(self, load: Callable[[], Model], signature: Signature) -> None:
        self._load = load
        self._model: Model | None = None
        frames = signature.inputs[0].dims[1]
        assert isinstance(frames, Range)
        self._most = frames.max
        self.signature = any_number_of_frames(signature)
        """What `run` takes: any number of frames."""

    def run(self, feeds: Mapping[str, Array], step: Step, count: int) -> dict[str, Array]:
        """Take the frames of the first `count` of some streams; the outputs of the last one."""
        if self._model is None:
            self._model = self._load()
        return step.many(self._model, count, self._parts(feeds))

    def _parts(self, feeds: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        """As many frames as the graph takes at once each."""
        frames = next(iter(feeds.values())).shape[1]
        for start in range(0, frames, self._most):
            end = start + self._most
            yield {name: np.ascontiguousarray(array[:, start:end]) for name, array in feeds.items()}


def whole_sequences(form: StreamForm) -> Signature:
    """The inputs of a stream for all its frames at once, those of its source behind them."""
    frames = any_number_of_frames(form.prefill)
    return frames if form.encode is None else replace(frames, inputs=frames.inputs + form.encode.signature.inputs)


def replayed(form: StreamForm) -> Signature:
    """What a stream takes and gives over whole sequences: the outputs of every frame, [batch, frames, ...]."""
    taken = whole_sequences(form)
    frames = taken.inputs[0]
    axes = (frames.axes[1],) if frames.axes else ()
    outputs = (
        replace(
            spec,
            dims=(spec.dims[0], frames.dims[1], *spec.dims[1:]),
            axes=spec.axes and (spec.axes[0], *axes, *spec.axes[1:]),
        )
        for spec in form.step.outputs
    )
    return Signature(taken.inputs, tuple(outputs))


def any_number_of_frames(signature: Signature) -> Signature:
    """The inputs and outputs of a graph for many frames, without the limit of one call."""
    inputs = (
        replace(spec, dims=(spec.dims[0], Range(1, 1, LARGEST_SIZE), *spec.dims[2:])) for spec in signature.inputs
    )
    return Signature(tuple(inputs), signature.outputs)
