"""A session on a GPU: arrays in, arrays out, through an engine of TensorRT or TensorRT-RTX."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from mega_deploy.bundle import Bundle
from mega_deploy.engines import TARGETS, refuse
from mega_deploy.errors import BundleError, MegaDeployError
from mega_deploy.runtime.cuda import Device
from mega_deploy.runtime.library import find_engine, first, here, load, make_logger, plugin_libraries
from mega_deploy.signature import Range, TensorSpec

Array = npt.NDArray[Any]


class EngineSession:
    """A model that is ready to run on this machine's first GPU.

    `run` may be called from many threads; one call runs at a time, for the memory on the GPU is kept between calls.

    Args:
        bundle: that holds the engine.
        target: "tensorrt" or "tensorrt-rtx".

    Raises:
        BundleError: the bundle holds no engine for the target, or none for this machine.
        MissingComponentError: the library, the driver, the GPU or the plugin is missing.
    """

    def __init__(self, bundle: Bundle, target: str) -> None:
        engine = find_engine(bundle, target)
        refuse(engine, here(engine))
        self.backend = target
        self.signature = bundle.manifest.signature
        self._lock = threading.Lock()
        self._errors: list[str] = []
        trt = load(TARGETS[target], f"the {target} backend")
        self._logger = make_logger(trt, self._errors)  # the library keeps no reference of its own
        for library in plugin_libraries(engine):
            trt.get_plugin_registry().load_library(str(library))
        self.native_ops = tuple(plugin["name"] for plugin in engine.plugins)
        self.device = Device()
        weakref.finalize(self, self.device.close)
        self._runtime = trt.Runtime(self._logger)
        if engine.options["version_compatible"]:
            self._runtime.engine_host_code_allowed = True  # it brings the part of TensorRT that reads it
        self._engine = self._deserialize(trt, bundle.file(engine.file))
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BundleError(f"{bundle.path / engine.file} cannot be prepared to run: {first(self._errors)}")
        self.providers = (f"{TARGETS[target].title} {trt.__version__}",)
        self._addresses = self._allocate((*self.signature.inputs, *self.signature.outputs))

    def run(self, inputs: Array | Mapping[str, Array]) -> Any:
        """The model's output for one batch; see Session.run."""
        outputs = self.run_named(inputs)
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def run_named(self, inputs: Array | Mapping[str, Array]) -> dict[str, Array]:
        """As `run`, but always a dict by name."""
        feeds = self.signature.feeds(inputs)
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
            self._context.set_input_shape(name, array.shape)
            self.device.upload(array, self._addresses[name])

    def enqueue(self) -> None:
        """Tell the stream to run the engine on what was uploaded."""
        self._errors.clear()
        if not self._context.execute_async_v3(self.device.stream):
            raise MegaDeployError(f"the engine failed: {first(self._errors)}")

    def download(self) -> dict[str, Array]:
        """Tell the stream to copy the outputs back; they are there after `device.wait()`."""
        outputs = {}
        for spec in self.signature.outputs:
            array = np.empty(tuple(self._context.get_tensor_shape(spec.name)), spec.dtype)
            self.device.download(self._addresses[spec.name], array)
            outputs[spec.name] = array
        return outputs

    def _deserialize(self, trt: ModuleType, path: Path) -> Any:
        plan = path.read_bytes()
        if hasattr(self._runtime, "get_engine_validity"):  # of TensorRT-RTX alone
            validity, diagnostics = self._runtime.get_engine_validity(plan)
            if validity == trt.EngineValidity.INVALID:
                raise BundleError(f"{path} does not fit this machine: {_diagnosis(trt, diagnostics)}; build it anew")
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BundleError(f"{path} does not load: {first(self._errors)}; build it anew")
        return engine

    def _allocate(self, specs: Sequence[TensorSpec]) -> dict[str, int]:
        """Memory for the largest arrays, once and for all."""
        addresses = {}
        for spec in specs:
            sizes = (dim.max if isinstance(dim, Range) else dim for dim in spec.dims)
            address = self.device.allocate(math.prod(sizes) * np.dtype(spec.dtype).itemsize)
            weakref.finalize(self, self.device.free, address)
            self._context.set_tensor_address(spec.name, address)
            addresses[spec.name] = address
        return addresses


def _diagnosis(trt: ModuleType, flags: int) -> str:
    """The library's reasons against an engine, in words."""
    names = [
        name.lower().replace("_", " ")
        for name, flag in trt.EngineInvalidityDiagnostics.__members__.items()
        if int(flag) & int(flags)
    ]
    return ", ".join(names) or "the library gives no reason"
