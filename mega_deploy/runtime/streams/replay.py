"""Whole sequences through a stream, frame by frame: how `run` feeds one, and how parity judges it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import InputError
from mega_deploy.runtime.streams.session import StreamSession
from mega_deploy.signature import LARGEST_SIZE, Signature
from mega_deploy.signature.whole import as_array


class ReplaySession:
    """A stream as a session on whole sequences: [batch, steps, ...] -> every step's outputs, [batch, steps, ...].

    Args:
        stream: whose model is used; each call runs streams of its own.
    """

    def __init__(self, stream: StreamSession) -> None:
        self._stream = stream
        self.backend, self.providers, self.native_ops = stream.backend, stream.providers, stream.native_ops

    @property
    def signature(self) -> Signature:
        """What one step takes and gives."""
        return self._stream.signature

    @property
    def prefills(self) -> bool:
        """Whether many steps can be taken at once."""
        return self._stream.prefills

    def run_named(self, inputs: Array | Mapping[str, Array], prefilled: int = 0) -> dict[str, Array]:
        """Every step's outputs by name; the inputs of a source are as its `encode` takes them.

        Args:
            inputs: whole sequences, one array or by name.
            prefilled: so many of the steps are taken in two calls, as halves; the last one's outputs are all they give.

        Raises:
            InputError: an input does not fit.
        """
        read, arrays = self._sequences(inputs)
        batch, steps = next((array.shape[:2] for array in arrays.values()), (1, 0))
        stream = self._stream.another(batch)
        if self._stream.source is not None:
            stream.encode(read)
        outputs: dict[str, Array] = {}
        count = steps - prefilled + (prefilled > 0)
        for index, result in enumerate(_in_turn(stream, arrays, steps, prefilled)):
            for name, array in result.items():
                # In place, for those of a large vocabulary are too large to be held twice.
                outputs.setdefault(name, np.empty((batch, count, *array.shape[1:]), array.dtype))[:, index] = array
        return outputs

    def look(self, inputs: Any) -> None:
        """Refuse, before their numbers are read, what `run_named` would refuse for its names, types and shapes.

        Raises:
            InputError: an input does not fit.
        """
        read, arrays = self._sequences(inputs)
        for spec in self.signature.inputs:
            if spec.name in arrays:
                shape = arrays[spec.name].shape
                spec.check_kind(arrays[spec.name].dtype)
                spec.check_shape((shape[0], *shape[2:]))
                if shape[1] > LARGEST_SIZE:
                    raise InputError(f'input "{spec.name}" has {shape[1]} steps; {LARGEST_SIZE} are the most')
        if self._stream.source is not None:
            self._stream.source.look(read)

    def _sequences(self, inputs: Any) -> tuple[dict[str, Array], dict[str, Array]]:
        """The inputs of the source, and those of the steps, whose first two axes are the batch and the steps.

        Raises:
            InputError: they are not.
        """
        source = () if self._stream.source is None else self._stream.source.inputs
        given = Signature(self.signature.inputs + source, ()).named(inputs)
        arrays = {name: as_array(name, array) for name, array in given.items()}
        read = {spec.name: arrays.pop(spec.name) for spec in source if spec.name in arrays}
        for spec in self.signature.inputs:
            if spec.name in arrays and (arrays[spec.name].ndim <= len(spec.dims) or 0 in arrays[spec.name].shape):
                raise InputError(
                    f'input "{spec.name}" must be whole sequences, {spec} with an axis of steps behind the batch, and '
                    f"not empty, got {list(arrays[spec.name].shape)}"
                )
        shapes = {array.shape[:2] for array in arrays.values()}
        if len(shapes) > 1:
            raise InputError(f"the inputs differ in batch or steps: {sorted(shapes)}")
        return read, arrays


def _in_turn(
    stream: StreamSession, arrays: Mapping[str, Array], steps: int, prefilled: int
) -> Iterator[dict[str, Array]]:
    """The outputs of the last step that is taken at once, if any is, and of each step behind it."""
    if prefilled:
        for start, end in ((0, prefilled // 2), (prefilled // 2, prefilled)):
            if start < end:
                last = stream.prefill_named({name: array[:, start:end] for name, array in arrays.items()})
        yield last
    for step in range(prefilled, steps):
        yield stream.step_named({name: array[:, step] for name, array in arrays.items()})
