"""A step on an engine of TensorRT or TensorRT-RTX, with the state on the GPU."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mega_deploy.runtime.buffers import Where
from mega_deploy.runtime.engine import EngineSession
from mega_deploy.runtime.execution import Execution
from mega_deploy.signature import Signature

Array = npt.NDArray[Any]


class EngineStep:
    """`batch` streams on an engine of a step.

    Each state lies on the GPU twice: a step reads one and writes the other. TensorRT allows an output where an input
    lies for its own update of a cache (IKVCacheUpdateLayer) and for plugins that say so, not for the nodes of a step.
    Each direction has an execution context of its own, whose addresses stay, so that both are replayed as CUDA graphs.
    A step that fails leaves the state as it was.

    Args:
        model: a session on the engine.
        signature: of one step, with the state.
        batch: streams.
    """

    def __init__(self, model: EngineSession, signature: Signature, batch: int) -> None:
        self._execution, self._signature, self._batch = model.execution, signature, batch
        # Before the state, which keeps the execution alive: they are released in this order.
        self._launches = [self._execution.another_launch() for _ in range(2)]
        self.state = {
            spec.name: Pair(self._execution, spec.shape(batch), np.dtype(spec.dtype)) for spec in signature.state
        }
        """By name."""
        self._changing = {spec.name: spec.output for spec in signature.state if spec.output is not None}
        self._turn = 0

    def run(self, count: int, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """A step of the first `count` streams: inputs and outputs by name, [count, ...]."""
        execution, launch = self._execution, self._launches[self._turn]
        old = {spec.name: (self.state[spec.name].now, spec.shape(count)) for spec in self._signature.state}
        new = {output: self.state[name].next for name, output in self._changing.items()}
        with execution.lock:
            execution.device.activate()
            launch.bind(old, new)
            execution.upload(feeds, launch)
            launch.run(execution.device.stream)
            outputs = execution.download(launch)
            if count < self._batch:  # the others' state is where it was, so these come back to it
                for name in self._changing:
                    self.state[name].take_back(count)
            execution.device.wait()
        if count == self._batch:
            self._turn = 1 - self._turn
            for pair in map(self.state.__getitem__, self._changing):
                pair.now, pair.next = pair.next, pair.now
        return outputs


class Pair:
    """A tensor [batch, ...] on the GPU, and as much memory for its next value.

    Args:
        execution: on whose device.
        shape: of the tensor.
        dtype: of its numbers.
    """

    def __init__(self, execution: Execution, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._execution = execution
        self._array = np.zeros(shape, dtype)
        """What was last read of it, or is written next."""
        self.nbytes = self._array.nbytes
        self.now, self.next = (self._allocate() for _ in range(2))

    def read(self) -> Array:
        """The whole tensor on the host."""
        with self._execution.lock:
            self._execution.device.activate()
            self._execution.device.download(self.now, self._array)
            self._execution.device.wait()
        return self._array

    def write(self, array: Array, rows: Where) -> None:
        """Put an array, or one value, into rows of the tensor."""
        self.read()[rows] = array
        self._send()

    def swap(self, some: npt.NDArray[np.intp], others: npt.NDArray[np.intp]) -> None:
        """Let rows trade places, each with the one that stands against it."""
        array = self.read()
        array[some], array[others] = array[others], array[some]
        self._send()

    def take_back(self, count: int) -> None:
        """Tell the stream to copy the first rows of the next value into this one."""
        self._execution.device.copy(self.next, self.now, self.nbytes // len(self._array) * count)

    def _send(self) -> None:
        with self._execution.lock:
            self._execution.device.activate()
            self._execution.device.upload(self._array, self.now)
            self._execution.device.wait()

    def _allocate(self) -> int:
        device = self._execution.device
        address = device.allocate(self.nbytes)
        weakref.finalize(self, device.free, address)
        return address
