"""The little of CUDA's driver that a session needs: memory, copies, a stream, its marks and graphs."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from mega_deploy.arrays import Array
from mega_deploy.errors import MegaDeployError, MissingComponentError
from mega_deploy.runtime.forking import ON_GPU

BUS_BYTES = 32
INSTALL = "pip install cuda-bindings"


class CudaError(MegaDeployError):
    """A call of the driver failed while a session worked."""


def bindings() -> ModuleType:
    """NVIDIA's bindings of the driver, which find its library when a function is first called.

    Raises:
        MissingComponentError: they are not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.driver")
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise MissingComponentError(
            f"running engines needs cuda-bindings, which does not import ({reason}); run: {INSTALL}"
        ) from error


def installed() -> bool:
    """Whether NVIDIA's bindings of the driver import."""
    try:
        bindings()
    except MissingComponentError:
        return False
    return True


class Device:
    """The first GPU, with its primary context and a stream of our own.

    Raises:
        CudaError: the driver refuses.
        MissingComponentError: cuda-bindings is not installed.
    """

    def __init__(self) -> None:
        self._cuda = bindings()
        self.lost = False
        """Whether the process was forked since: the driver knows no context of the parent's."""
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", 0)
        # The context that CUDA's runtime, and so TensorRT, uses as well.
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self.activate()
        self.stream = int(self._call("cuStreamCreate", 0))
        """The stream's handle."""

    def activate(self) -> None:
        """Let the calling thread work on this GPU.

        Raises:
            CudaError: the process was forked since the device was opened.
        """
        if self.lost:
            raise CudaError(ON_GPU)
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """The address of so many bytes on the GPU, which are kept as long as the process lives or until `free`.

        Raises:
            MissingComponentError: the GPU has not so many left.
        """
        return int(self._call("cuMemAlloc", size))

    def free(self, address: int) -> None:
        """Give memory back, from whichever thread."""
        if self.lost:
            return
        self.activate()
        self._call("cuMemFree", address)

    def upload(self, array: Array, address: int) -> None:
        """Copy a contiguous array to the GPU, in the stream's order."""
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, self.stream)

    def download(self, address: int, array: Array) -> None:
        """Copy from the GPU into a contiguous array, in the stream's order; it is there after `wait`."""
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, self.stream)

    def copy(self, source: int, target: int, size: int) -> None:
        """Copy so many bytes from one place on the GPU to another, in the stream's order."""
        self._call("cuMemcpyDtoDAsync", target, source, size, self.stream)

    def event(self) -> int:
        """A mark for the stream, by its handle; it is kept as long as the process lives."""
        return int(self._call("cuEventCreate", 0))

    def mark(self, event: int) -> None:
        """Set a mark behind all that was put into the stream so far."""
        self._call("cuEventRecord", event, self.stream)

    def milliseconds(self, start: int, end: int) -> float:
        """Time between two marks that the stream has passed, by the GPU's own clock."""
        return float(self._call("cuEventElapsedTime", start, end))

    def bus(self) -> str:
        """The GPU's place on the PCI bus, by which NVML finds it whatever CUDA_VISIBLE_DEVICES says."""
        text: bytes = self._call("cuDeviceGetPCIBusId", BUS_BYTES, self._device)
        return text.partition(b"\0")[0].decode()

    def wait(self) -> None:
        """Return when the stream has done all its work."""
        self._call("cuStreamSynchronize", self.stream)

    def begin_capture(self) -> None:
        """Record what this thread puts into the stream, instead of doing it; what others do is not recorded."""
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self.stream, mode)

    def end_capture(self) -> int:
        """End the record; the graph made of it, ready to launch.

        Raises:
            CudaError: something was called that cannot be recorded.
        """
        graph = self._call("cuStreamEndCapture", self.stream)
        ready = self._call("cuGraphInstantiate", graph, 0)
        self._call("cuGraphDestroy", graph)
        return int(ready)

    def launch(self, graph: int, stream: int) -> None:
        """Do what a graph has recorded, in the order of a stream."""
        self._call("cuGraphLaunch", graph, stream)

    def forget(self, graph: int) -> None:
        """Give a graph back, from whichever thread."""
        if self.lost:
            return
        self.activate()
        self._call("cuGraphExecDestroy", graph)

    def close(self) -> None:
        """Give the stream back, from whichever thread; the context stays, for the library's own objects live in it."""
        if self.lost:
            return
        self.activate()
        self._call("cuStreamDestroy", self.stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        """What a function of the driver gives beside its error code; None where that is all."""
        try:
            code, *values = getattr(self._cuda, function)(*arguments)
        except RuntimeError as error:  # of the bindings: they find no driver, or none that has the function
            raise CudaError(f"{function} cannot be called: {' '.join(str(error).split())}") from error
        if code == self._cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise MissingComponentError("the GPU has too little free memory; export with a smaller range, or free some")
        if code != self._cuda.CUresult.CUDA_SUCCESS:
            _, text = self._cuda.cuGetErrorString(code)
            raise CudaError(f"{function} says {(text or b'').decode(errors='replace') or f'error {int(code)}'}")
        return values[0] if values else None
