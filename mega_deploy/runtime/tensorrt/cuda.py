"""The little of CUDA's driver that a session needs, through ctypes: memory, copies, a stream, its marks and graphs."""

from __future__ import annotations

import ctypes
from typing import Any

from mega_deploy.arrays import Array
from mega_deploy.errors import MegaDeployError, MissingComponentError
from mega_deploy.machine.gpu import DRIVER_LIBRARY

OUT_OF_MEMORY = 2
BUS_BYTES = 32
# Of a capture: what other threads do is none of its business.
THREAD_LOCAL = 1


class CudaError(MegaDeployError):
    """A call of the driver failed while a session worked."""


class Device:
    """The first GPU, with its primary context and a stream of our own.

    Raises:
        CudaError: the driver refuses.
    """

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL(DRIVER_LIBRARY)
        self._call("cuInit", 0)
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._context = ctypes.c_void_p()
        # The context that CUDA's runtime, and so TensorRT, uses as well.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self.activate()
        self._stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(self._stream), 0)

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return self._stream.value or 0

    def activate(self) -> None:
        """Let the calling thread work on this GPU."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """The address of so many bytes on the GPU, which are kept as long as the process lives or until `free`.

        Raises:
            MissingComponentError: the GPU has not so many left.
        """
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        """Give memory back, from whichever thread."""
        self.activate()
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, array: Array, address: int) -> None:
        """Copy a contiguous array to the GPU, in the stream's order."""
        size = ctypes.c_size_t(array.nbytes)
        self._call(
            "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), ctypes.c_void_p(array.ctypes.data), size, self._stream
        )

    def download(self, address: int, array: Array) -> None:
        """Copy from the GPU into a contiguous array, in the stream's order; it is there after `wait`."""
        size = ctypes.c_size_t(array.nbytes)
        self._call(
            "cuMemcpyDtoHAsync_v2", ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(address), size, self._stream
        )

    def copy(self, source: int, target: int, size: int) -> None:
        """Copy so many bytes from one place on the GPU to another, in the stream's order."""
        self._call(
            "cuMemcpyDtoDAsync_v2",
            ctypes.c_uint64(target),
            ctypes.c_uint64(source),
            ctypes.c_size_t(size),
            self._stream,
        )

    def event(self) -> int:
        """A mark for the stream, by its handle; it is kept as long as the process lives."""
        event = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(event), 0)
        return event.value or 0

    def mark(self, event: int) -> None:
        """Set a mark behind all that the stream was told so far."""
        self._call("cuEventRecord", ctypes.c_void_p(event), self._stream)

    def milliseconds(self, start: int, end: int) -> float:
        """Time between two marks that the stream has passed, by the GPU's own clock."""
        value = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(value), ctypes.c_void_p(start), ctypes.c_void_p(end))
        return value.value

    def bus(self) -> str:
        """The GPU's place on the PCI bus, by which NVML finds it whatever CUDA_VISIBLE_DEVICES says."""
        text = ctypes.create_string_buffer(BUS_BYTES)
        self._call("cuDeviceGetPCIBusId", text, BUS_BYTES, self._device)
        return text.value.decode()

    def wait(self) -> None:
        """Return when the stream has done all its work."""
        self._call("cuStreamSynchronize", self._stream)

    def begin_capture(self) -> None:
        """Record what this thread puts into the stream, instead of doing it."""
        self._call("cuStreamBeginCapture_v2", self._stream, THREAD_LOCAL)

    def end_capture(self) -> int:
        """End the record; the graph made of it, ready to launch.

        Raises:
            CudaError: something was called that cannot be recorded.
        """
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_uint64(0))
        self._call("cuGraphDestroy", graph)
        return ready.value or 0

    def launch(self, graph: int, stream: int) -> None:
        """Do what a graph has recorded, in the order of a stream."""
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def forget(self, graph: int) -> None:
        """Give a graph back, from whichever thread."""
        self.activate()
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def close(self) -> None:
        """Give the stream back, from whichever thread; the context stays, for the library's own objects live in it."""
        self.activate()
        self._call("cuStreamDestroy_v2", self._stream)

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._cuda, function)(*arguments)
        if code == OUT_OF_MEMORY:
            raise MissingComponentError("the GPU has too little free memory; export with a smaller range, or free some")
        if code != 0:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(code, ctypes.byref(text))
            raise CudaError(f"{function} says {(text.value or b'').decode(errors='replace') or f'error {code}'}")
