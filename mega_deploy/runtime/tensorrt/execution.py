"""A loaded engine on the first GPU, and its memory."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import BundleError
from mega_deploy.runtime import forking
from mega_deploy.runtime.tensorrt.cuda import Device
from mega_deploy.runtime.tensorrt.launch import Launch
from mega_deploy.runtime.tensorrt.library import first, make_logger
from mega_deploy.runtime.tensorrt.tensors import DeviceArray
from mega_deploy.signature import Range, Signature, TensorSpec


class Execution:
    """One call runs at a time, for the memory on the GPU is kept between calls.

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
        self.lock = threading.Lock()
        """Held by whoever works with the memory here."""
        self._signature = signature
        self.device = Device()
        forking.watch(self)
        weakref.finalize(self, self.device.close)
        self._runtime = trt.Runtime(self._logger)
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._deserialize(trt, plan, place)
        if refit is not None:
            refit(self._engine, self._logger)
        self._place = place
        self.launch = self.another_launch()
        self._buffers = {spec.name: self._allocate(spec) for spec in (*signature.inputs, *signature.outputs)}

    def after_fork(self) -> None:
        """Nothing on the GPU survives: whoever calls is told, and nothing is given back."""
        forking.keep(self._engine, self._runtime, self.launch)
        self.lock = threading.Lock()
        self.device.lost = True

    def another_launch(self) -> Launch:
        """A context of its own, for tensors that lie elsewhere."""
        return Launch(self._engine, self.device, self._errors, self._place)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Host to host: inputs that were checked, outputs by name."""
        with self.lock:
            self.device.activate()
            self.upload(feeds)
            self.enqueue()
            outputs = self.download()
            self.device.wait()
        return outputs

    def upload(self, feeds: Mapping[str, Array], launch: Launch | None = None) -> None:
        """Tell the stream to copy inputs to the GPU; this and the next two are the steps of `run`, to be timed."""
        for name, array in feeds.items():
            self.device.upload(array, self._buffers[name])
        places = {name: (self._buffers[name], array.shape) for name, array in feeds.items()}
        (launch or self.launch).bind(places, {spec.name: self._buffers[spec.name] for spec in self._signature.outputs})

    def enqueue(self) -> None:
        """Tell the stream to run the engine on what was uploaded."""
        self.launch.run(self.device.stream)

    def download(self, launch: Launch | None = None) -> dict[str, Array]:
        """Tell the stream to copy the outputs back; they are there after `device.wait()`."""
        outputs = {}
        for spec in self._signature.outputs:
            outputs[spec.name] = np.empty((launch or self.launch).shape(spec.name), spec.dtype)
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
        with self.lock:
            self.device.activate()
            self.launch.bind({name: (array.address, array.shape) for name, array in inputs.items()}, {})
            made = make_outputs({spec.name: self.launch.shape(spec.name) for spec in self._signature.outputs})
            self.launch.bind({}, {name: array.address for name, array in made.items()})
            self.launch.run(self.device.stream if stream is None else stream)
            if stream is None:
                self.device.wait()

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


def _diagnosis(trt: ModuleType, flags: int) -> str:
    """The library's reasons against an engine, in words."""
    names = [
        name.lower().replace("_", " ")
        for name, flag in trt.EngineInvalidityDiagnostics.__members__.items()
        if int(flag) & int(flags)
    ]
    return ", ".join(names) or "the library gives no reason"
