"""A step on onnxruntime, with the state bound to it where it lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import MegaDeployError
from mega_deploy.runtime import forking
from mega_deploy.runtime.model import Model
from mega_deploy.runtime.onnxruntime.buffers import Buffer
from mega_deploy.runtime.onnxruntime.calls import call_error
from mega_deploy.signature import Signature

# onnxruntime multiplies by weights in blocks as 8-bit integers only where it is told to: exporters.precision.quantise.
STEP_CONFIG = {"session.qdq_matmulnbits_accuracy_level": "4"}


@runtime_checkable
class Native(Protocol):
    """A model on onnxruntime."""

    @property
    def native(self) -> Any:
        """Onnxruntime's own session, of this very process."""

    def run_feeds(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name for inputs that were checked."""


class OrtStep:
    """`batch` streams on an onnxruntime session.

    Every state has a buffer of its own, on the GPU where the session runs there, bound once as the step's input and as
    its output, so that nothing is copied in or out: the graph writes into what it read (exporters.state tells
    why it may). onnxruntime's TensorRT provider hands the graph to TensorRT, which promises nothing of outputs that lie
    where inputs do: there each state has two buffers, which take turns.

    Args:
        session: on the step's graph.
        signature: of one step.
        batch: streams.
        device: "cpu" or "cuda", where the state lies.
        in_place: whether an output may lie where an input does.
    """

    def __init__(self, session: Native, signature: Signature, batch: int, device: str, *, in_place: bool) -> None:
        self._session, self._signature, self._batch, self._device = session, signature, batch, device
        self.changed = False
        state = {spec.name: Buffer(spec.shape(batch), spec.dtype, device) for spec in signature.state}
        self._sides = [state]
        if not in_place:
            changing = [spec for spec in signature.state if spec.output is not None]
            self._sides.append(state | {spec.name: Buffer(spec.shape(batch), spec.dtype, device) for spec in changing})
        self._now = 0
        self._bindings: dict[tuple[int, int], _Binding] = {}
        self._lost = False
        forking.watch(self)

    def after_fork(self) -> None:
        """Bind anew, to the session of this process; state on a GPU is lost."""
        forking.keep(self._bindings)
        self._bindings = {}
        self._lost = self._device != "cpu"

    @property
    def state(self) -> Mapping[str, Buffer]:
        """What the next step reads, by name."""
        if self._lost:
            raise MegaDeployError(forking.ON_GPU)
        return self._sides[self._now]

    def run(self, count: int, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """A step of the first `count` streams: inputs and outputs by name, [count, ...].

        The outputs are overwritten by the next step.
        """
        key = count, self._now
        after = (self._now + 1) % len(self._sides)
        if key not in self._bindings:
            self._bindings[key] = _Binding(self._session.native, self._signature, self.state, self._sides[after], count)
        self.changed = True
        outputs = self._bindings[key].run(feeds)
        if count == self._batch:
            self._now = after
        elif after != self._now:  # the others' state is on the old side, so these come back to it
            for name, buffer in self.state.items():
                if (new := self._sides[after][name]) is not buffer:
                    buffer.write(new.read()[:count], slice(0, count))
        return outputs

    def many(self, model: Model, count: int, parts: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
        """Many steps of the first `count` streams: inputs [count, steps, ...] by name, outputs of the last one.

        Args:
            model: on the graph that takes them, on onnxruntime like the step's.
            count: streams.
            parts: the inputs, as many as it takes at once each.
        """
        assert isinstance(model, Native)
        state = {name: buffer.read()[:count] for name, buffer in self.state.items()}
        changing = {spec.name: spec.output for spec in self._signature.state if spec.output is not None}
        outputs: dict[str, Array] = {}
        for part in parts:
            outputs = model.run_feeds({**part, **state})
            state |= {name: outputs.pop(output) for name, output in changing.items()}
        self.changed = True
        for name in changing:
            self.state[name].write(state[name], slice(0, count))
        return outputs


class _Binding:
    """One number of streams at the front of the buffers, bound to the graph, with memory for its inputs and outputs."""

    def __init__(
        self, inference: Any, signature: Signature, old: Mapping[str, Buffer], new: Mapping[str, Buffer], count: int
    ) -> None:
        self._run = inference.run_with_iobinding
        self._binding = inference.io_binding()
        self._inputs = {spec.name: np.zeros((count, *_sizes(spec.dims[1:])), spec.dtype) for spec in signature.inputs}
        self._outputs = {spec.name: np.zeros((count, *_sizes(spec.dims[1:])), spec.dtype) for spec in signature.outputs}
        for name, array in self._inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in self._outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for spec in signature.state:
            kind, shape = np.dtype(spec.dtype).type, spec.shape(count)
            before, after = old[spec.name], new[spec.name]
            self._binding.bind_input(spec.name, before.device, 0, kind, shape, before.address)
            if spec.output is not None:
                self._binding.bind_output(spec.output, after.device, 0, kind, shape, after.address)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        for name, array in feeds.items():
            self._inputs[name][...] = array
        try:
            self._run(self._binding)
        except Exception as error:
            raise call_error(error, feeds) from error
        return self._outputs


def _sizes(dims: Sequence[Any]) -> tuple[int, ...]:
    assert all(isinstance(dim, int) for dim in dims), "a step has no dynamic axis but its batch"
    return tuple(dims)
