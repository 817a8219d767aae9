"""A loaded engine on the first GPU: its memory, its launches, and CUDA graphs of those that repeat."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from mega_deploy.errors import BundleError, MegaDeployError
from mega_deploy.runtime.cuda import CudaError, Device
from mega_deploy.runtime.library import LOGGER, first, make_logger
from mega_deploy.runtime.tensors import DeviceArray
from mega_deploy.signature import Range, Signature, TensorSpec

Array = npt.NDArray[Any]


class Execution:
    """One call runs at a time, for the memory on the GPU is kept between calls.

    The second launch in a row with the same shapes at the same addresses is captured as a CUDA graph, and later ones
    replay it: one call of the driver instead of one for each kernel. Where the library cannot be captured, it is
    launched as usual.

    Args:
        trt: the library, with the plugins that the engine needs.
        plan: the engine.
        place: where it comes from, for messages.
        signature: what it takes and gives.
        host_code: whether it may bring code that runs on the host: the reader of a version-compatible engine, a plugin.
        refit: gives the engine its weights, if it was stripped of them; it gets the engine and a logger.

    Raises:
        BundleError: the library refuses the engine.
        MissingComponentError: the GPU has too little memory.
    """

    def __init__(
        self,
        trt: ModuleType,
        plan: bytes,
        place: Path,
        signature: Signature,
        *,
        host_code: bool = False,
        refit: Callable[[Any, Any], None] | None = None,
    ) -> None:
        self._errors: list[str] = []
        self._logger = make_logger(trt, self._errors)  # the library keeps no reference of its own
        self._lock = threading.Lock()
        self._signature = signature
        self.device = Device()
        weakref.finalize(self, self.device.close)
        self._runtime = trt.Runtime(self._logger)
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._deserialize(trt, plan, place)
        if refit is not None:
            refit(self._engine, self._logger)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BundleError(f"{place} cannot be prepared to run: {first(self._errors)}")
        self._buffers = {spec.name: self._allocate(spec) for spec in (*signature.inputs, *signature.outputs)}
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.cuda_graphs = True
        """Whether launches that repeat are captured."""
        self._launches = 0
        self._graph: list[int] = []  # or the one that there is
        weakref.finalize(self, _forget, self.device, self._graph)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Host to host: inputs that were checked, outputs by name."""
        with self._lock:
            self.device.activate()
            self.upload(feeds)
            self.enqueue()
            outputs = self.download()
            self.device.wait()
        return outputs

    def upload(self, feeds: Mapping[str, Array]) -> None:
        """Tell the stream to copy inputs to the GPU; this and the next two are the steps of `run`, to be timed."""
        for name, array in feeds.items():
            self.device.upload(array, self._buffers[name])
        places = {name: (self._buffers[name], array.shape) for name, array in feeds.items()}
        self._bind(places, {spec.name: self._buffers[spec.name] for spec in self._signature.outputs})

    def enqueue(self) -> None:
        """Tell the stream to run the engine on what was uploaded."""
        self._launch(self.device.stream)

    def download(self) -> dict[str, Array]:
        """Tell the stream to copy the outputs back; they are there after `device.wait()`."""
        outputs = {}
        for spec in self._signature.outputs:
            outputs[spec.name] = np.empty(self._shape(spec), spec.dtype)
            self.device.download(self._buffers[spec.name], outputs[spec.name])
        return outputs

    def run_on_device(
        self,
        inputs: Mapping[str, DeviceArray],
        make_outputs: Callable[[Mapping[str, tuple[int, ...]]], Mapping[str, DeviceArray]],
        stream: int | None,
    ) -> None:
        """GPU to GPU, without a copy.

        Args:
            inputs: by name.
            make_outputs: gives the arrays to write to, from the shapes by name.
            stream: to work in the order of; the call returns at once. None: a stream of our own, which waits for the
                default stream, and the call returns when the outputs are there.
        """
        with self._lock:
            self.device.activate()
            shapes = self._bind({name: (array.address, array.shape) for name, array in inputs.items()}, {})
            made = make_outputs(shapes)
            self._bind({}, {name: array.address for name, array in made.items()})
            self._launch(self.device.stream if stream is None else stream)
            if stream is None:
                self.device.wait()

    def _bind(
        self, inputs: Mapping[str, tuple[int, tuple[int, ...]]], outputs: Mapping[str, int]
    ) -> dict[str, tuple[int, ...]]:
        """Tell the library where things lie and how large the inputs are; the shapes of the outputs."""
        for name, (address, shape) in inputs.items():
            if self._shapes.get(name) != shape:
                self._forget_graph()
                self._context.set_input_shape(name, shape)
                self._shapes[name] = shape
            self._set_address(name, address)
        for name, address in outputs.items():
            self._set_address(name, address)
        return {spec.name: self._shape(spec) for spec in self._signature.outputs}

    def _shape(self, spec: TensorSpec) -> tuple[int, ...]:
        return tuple(self._context.get_tensor_shape(spec.name))

    def _set_address(self, name: str, address: int) -> None:
        if self._addresses.get(name) != address:
            self._forget_graph()
            self._context.set_tensor_address(name, address)
            self._addresses[name] = address

    def _launch(self, stream: int) -> None:
        """The first launch as it is; the second one captured, if nothing was changed since; the rest replayed."""
        if self._launches == 1 and self.cuda_graphs:
            self._graph.extend(self._capture())
        self._launches += 1
        if self._graph:
            self.device.launch(self._graph[0], stream)
            return
        self._errors.clear()
        if not self._context.execute_async_v3(stream):
            raise MegaDeployError(f"the engine failed: {first(self._errors)}")

    def _capture(self) -> list[int]:
        """The launch as a CUDA graph; none where the library does what cannot be captured."""
        own = self.device.stream
        asked = getattr(self._context, "is_stream_capturable", None)  # of TensorRT-RTX alone
        if asked is not None and not asked(own):
            return []
        self.device.begin_capture()
        fine = self._context.execute_async_v3(own)
        try:
            graph = self.device.end_capture()
        except CudaError as error:
            LOGGER.info("no CUDA graph: %s", error)
            return []
        if fine:
            return [graph]
        self.device.forget(graph)
        return []

    def _forget_graph(self) -> None:
        """A graph holds addresses and what the context was when it was captured."""
        self._launches = 0
        if self._graph:
            self.device.wait()
            self.device.forget(self._graph.pop())

    def _deserialize(self, trt: ModuleType, plan: bytes, place: Path) -> Any:
        if hasattr(self._runtime, "get_engine_validity"):  # of TensorRT-RTX alone
            validity, diagnostics = self._runtime.get_engine_validity(plan)
            if validity == trt.EngineValidity.INVALID:
                raise BundleError(f"{place} does not fit this machine: {_diagnosis(trt, diagnostics)}; build it anew")
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BundleError(f"{place} does not load: {first(self._errors)}; build it anew")
        return engine

    def _allocate(self, spec: TensorSpec) -> int:
        """Memory for the largest array, once and for all."""
        sizes = (dim.max if isinstance(dim, Range) else dim for dim in spec.dims)
        address = self.device.allocate(math.prod(sizes) * np.dtype(spec.dtype).itemsize)
        weakref.finalize(self, self.device.free, address)
        return address


def _forget(device: Device, graph: list[int]) -> None:
    while graph:
        device.forget(graph.pop())


def _diagnosis(trt: ModuleType, flags: int) -> str:
    """The library's reasons against an engine, in words."""
    names = [
        name.lower().replace("_", " ")
        for name, flag in trt.EngineInvalidityDiagnostics.__members__.items()
        if int(flag) & int(flags)
    ]
    return ", ".join(names) or "the library gives no reason"
