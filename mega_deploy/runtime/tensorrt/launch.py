"""An engine's execution context: where its tensors lie, how large they are, and a CUDA graph of what repeats."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mega_deploy.errors import BundleError, MegaDeployError
from mega_deploy.runtime.tensorrt.cuda import CudaError, Device
from mega_deploy.runtime.tensorrt.library import LOGGER, first


class Launch:
    """The second launch in a row with the same shapes at the same addresses is captured as a CUDA graph, and later ones
    replay it: one call of the driver instead of one for each kernel. Where the library cannot be captured, it is
    launched as usual.

    Args:
        engine: of TensorRT or TensorRT-RTX.
        device: that it runs on.
        errors: where the library's logger puts them.
        place: where the engine comes from, for messages.

    Raises:
        BundleError: the library refuses.
    """

    def __init__(self, engine: Any, device: Device, errors: list[str], place: Path) -> None:
        self._device, self._errors = device, errors
        self._context = engine.create_execution_context()
        if self._context is None:
            raise BundleError(f"{place} cannot be prepared to run: {first(errors)}")
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.cuda_graphs = True
        """Whether launches that repeat are captured."""
        self._launches = 0
        self._graph: list[int] = []  # or the one that there is
        weakref.finalize(self, _forget, device, self._graph)

    def bind(self, inputs: Mapping[str, tuple[int, tuple[int, ...]]], outputs: Mapping[str, int]) -> None:
        """Tell the library where tensors lie and how large the inputs are.

        Args:
            inputs: address and shape by name.
            outputs: address by name.
        """
        for name, (address, shape) in inputs.items():
            if self._shapes.get(name) != shape:
                self._forget_graph()
                self._shapes.pop(name, None)  # nothing is known of it if this is interrupted
                self._context.set_input_shape(name, shape)
                self._shapes[name] = shape
            self._set_address(name, address)
        for name, address in outputs.items():
            self._set_address(name, address)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, once the inputs are bound."""
        return tuple(self._context.get_tensor_shape(name))

    def run(self, stream: int) -> None:
        """The first launch as it is; the second one captured, if nothing was changed since; the rest replayed.

        Raises:
            MegaDeployError: the engine fails.
        """
        if self._launches == 1 and self.cuda_graphs:
            self._graph.extend(self._capture())
        self._launches += 1
        if self._graph:
            self._device.launch(self._graph[0], stream)
            return
        self._errors.clear()
        if not self._context.execute_async_v3(stream):
            raise MegaDeployError(f"the engine failed: {first(self._errors)}")

    def _set_address(self, name: str, address: int) -> None:
        if self._addresses.get(name) != address:
            self._forget_graph()
            self._addresses.pop(name, None)
            self._context.set_tensor_address(name, address)
            self._addresses[name] = address

    def _capture(self) -> list[int]:
        """The launch as a CUDA graph; none where the library does what cannot be captured."""
        own = self._device.stream
        asked = getattr(self._context, "is_stream_capturable", None)  # of TensorRT-RTX alone
        if asked is not None and not asked(own):
            return []
        self._device.begin_capture()
        try:
            fine = self._context.execute_async_v3(own)
        except BaseException:  # a signal's: the stream would record what others put into it
            self._device.forget(self._device.end_capture())
            raise
        try:
            graph = self._device.end_capture()
        except CudaError as error:
            LOGGER.info("no CUDA graph: %s", error)
            return []
        if fine:
            return [graph]
        self._device.forget(graph)
        return []

    def _forget_graph(self) -> None:
        """A graph holds addresses and what the context was when it was captured."""
        self._launches = 0
        if self._graph:
            self._device.wait()
            self._device.forget(self._graph.pop())


def _forget(device: Device, graph: list[int]) -> None:
    while graph:
        device.forget(graph.pop())
