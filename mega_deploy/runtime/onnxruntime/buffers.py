"""Memory for the state of streams, where the model runs: arrays on the CPU, onnxruntime's own values on a GPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mega_deploy.arrays import Array
from mega_deploy.errors import require
from mega_deploy.runtime.model import Where


class Buffer:
    """A tensor at a fixed address.

    Args:
        shape: [batch, ...].
        dtype: by numpy's name.
        device: "cpu" or "cuda".
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, device: str) -> None:
        self.device = device
        self._array = np.zeros(shape, dtype)
        """The tensor itself on the CPU; on a GPU what was last read of it, or is written next."""
        self.nbytes = self._array.nbytes
        self._value = None
        if device != "cpu":
            ort = require("onnxruntime", "gpu", "a stream's state on a GPU")
            self._value = ort.OrtValue.ortvalue_from_numpy(self._array, device, 0)

    @property
    def address(self) -> int:
        """The address of the first element, on the device."""
        return self._array.ctypes.data if self._value is None else int(self._value.data_ptr())

    def read(self) -> Array:
        """The whole tensor on the host: on the CPU itself, not a copy."""
        if self._value is not None:
            self._array[...] = self._value.numpy()
        return self._array

    def write(self, array: Array, rows: Where) -> None:
        """Put an array, or one value, into rows of the tensor."""
        self.read()[rows] = array
        self._send()

    def take(self, rows: npt.NDArray[np.intp]) -> Array:
        """A copy of rows."""
        return self.read()[rows]

    def _send(self) -> None:
        if self._value is not None:
            self._value.update_inplace(self._array)
