"""Steps on engines of TensorRT or TensorRT-RTX, with the state on the GPU."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mega_deploy.arrays import Array
from mega_deploy.runtime.model import Model, Where
from mega_deploy.runtime.tensorrt.execution import Execution
from mega_deploy.signature import Signature


@runtime_checkable
class OnEngine(Protocol):
    """A model that is an engine."""

    execution: Execution


class EngineStep:
    """`batch` streams on an engine of a step, and on one that takes many steps at once.

    Each state lies on the GPU twice: a step reads one and writes the other. TensorRT allows an output where an input
    lies for its own update of a cache (IKVCacheUpdateLayer) and for plugins that say so, not for the nodes of a step.
    Each direction has an execution context of its own, whose addresses stay, so that both are replayed as CUDA graphs.
    A step that fails leaves the state as it was, of many the part that fails. What no step changes lies there once.

    Args:
        execution: the engine of a step.
        signature: of one step, with the state.
        batch: streams.
    """

    def __init__(self, execution: Execution, signature: Signature, batch: int) -> None:
        self._signature, self._batch = signature, batch
        self.changed = False
        self._turn = Turn()
        # Before the state, which keeps the execution alive: they are released in this order.
        self._one = _Directions(execution)
        self._many: _Directions | None = None
        self.state = {
            spec.name: Pair(
                execution, spec.shape(batch), np.dtype(spec.dtype), self._turn, changes=spec.output is not None
            )
            for spec in signature.state
        }
        """By name."""
        self._changing = {spec.name: spec.output for spec in signature.state if spec.output is not None}

    def run(self, count: int, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """A step of the first `count` streams: inputs and outputs by name, [count, ...]."""
        return self._run(self._one, count, feeds)

    def many(self, model: Model, count: int, parts: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
        """Many steps of the first `count` streams: inputs [count, steps, ...] by name, outputs of the last one.

        Args:
            model: the engine that takes them.
            count: streams.
            parts: the inputs, as many as it takes at once each.
        """
        assert isinstance(model, OnEngine)
        if self._many is None or self._many.execution is not model.execution:
            self._many = _Directions(model.execution)
        outputs: dict[str, Array] = {}
        for part in parts:
            outputs = self._run(self._many, count, part)
        return outputs

    def _run(self, directions: _Directions, count: int, feeds: Mapping[str, Array]) -> dict[str, Array]:
        execution, launch = directions.execution, directions.launches[self._turn.number]
        old = {spec.name: (self.state[spec.name].now, spec.shape(count)) for spec in self._signature.state}
        new = {output: self.state[name].next for name, output in self._changing.items()}
        with execution.lock:
            execution.device.activate()
            launch.bind(old, new)
            execution.upload(feeds, launch)
            launch.run(execution.device.stream)
            outputs = execution.download(launch)
            if count < self._batch:  # the others' state is where it was, so these come back to it
                self.changed = True
                for name in self._changing:
                    self.state[name].take_back(count, execution)
            execution.device.wait()
        if count == self._batch:
            self.changed = True
            self._turn.number = 1 - self._turn.number
        return outputs


class Turn:
    """Which of the two places of every tensor holds what the next step reads: all of them change by one assignment."""

    number = 0


class _Directions:
    """An engine's launches from one place of the state to the other, and back."""

    def __init__(self, execution: Execution) -> None:
        self.launches = [execution.another_launch() for _ in range(2)]
        self.execution = execution


class Pair:
    """A tensor [batch, ...] on the GPU, and as much memory for its next value where it has one.

    Args:
        execution: on whose device.
        shape: of the tensor.
        dtype: of its numbers.
        turn: of the tensors that change together.
        changes: whether steps give it a next value.
    """

    def __init__(
        self, execution: Execution, shape: tuple[int, ...], dtype: np.dtype[Any], turn: Turn, *, changes: bool
    ) -> None:
        self._execution, self._turn = execution, turn
        self._array = np.zeros(shape, dtype)
        """What was last read of it, or is written next."""
        self.nbytes = self._array.nbytes
        self._row = self.nbytes // len(self._array)
        first = self._allocate()
        self._places = first, self._allocate() if changes else first

    @property
    def now(self) -> int:
        """Where its value lies on the GPU."""
        return self._places[self._turn.number]

    @property
    def next(self) -> int:
        """Where the next one is written."""
        return self._places[1 - self._turn.number]

    def read(self) -> Array:
        """The whole tensor on the host."""
        self._fetch(np.arange(len(self._array)))
        return self._array

    def write(self, array: Array, rows: Where) -> None:
        """Put an array, or one value, into rows of the tensor; the others are not touched."""
        self._array[rows] = array
        self._send(np.arange(len(self._array))[rows])

    def take(self, rows: npt.NDArray[np.intp]) -> Array:
        """A copy of rows."""
        self._fetch(rows)
        return self._array[rows]

    def take_back(self, count: int, execution: Execution) -> None:
        """Tell the stream of an execution to copy the first rows of the next value into this one."""
        execution.device.copy(self.next, self.now, self._row * count)

    def _fetch(self, rows: npt.NDArray[np.intp]) -> None:
        device = self._execution.device
        with self._execution.lock:
            device.activate()
            for part, address in self._parts(rows):
                device.download(address, part)
            device.wait()

    def _send(self, rows: npt.NDArray[np.intp]) -> None:
        device = self._execution.device
        with self._execution.lock:
            device.activate()
            for part, address in self._parts(rows):
                device.upload(part, address)
            device.wait()

    def _parts(self, rows: npt.NDArray[np.intp]) -> Iterator[tuple[Array, int]]:
        """Rows on the host, and where they lie on the GPU; all of them at once, or one after the other."""
        if len(rows) == len(self._array):
            yield self._array, self.now
            return
        for row in map(int, rows):
            yield self._array[row : row + 1], self.now + row * self._row

    def _allocate(self) -> int:
        device = self._execution.device
        address = device.allocate(self.nbytes)
        weakref.finalize(self, device.free, address)
        return address
