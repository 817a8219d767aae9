"""Arrays that lie on a GPU already, of whichever library: read by the protocol that they share, and never imported.

PyTorch's CUDA tensors, CuPy's arrays and Numba's all have `__cuda_array_interface__`, which tells address, shape and
type (https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mega_deploy.errors import InputError
from mega_deploy.signature import TensorSpec

PROTOCOL = "__cuda_array_interface__"


@dataclass(frozen=True)
class DeviceArray:
    """A contiguous array on the first GPU."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    """By numpy's name."""


def on_device(value: object) -> bool:
    """Whether a value lies on a GPU; a tensor of PyTorch's on the CPU has the protocol's name and no more."""
    return hasattr(value, PROTOCOL)


def read(spec: TensorSpec, value: Any) -> DeviceArray:
    """What is at an array's address, held against the signature; the numbers themselves are not looked at.

    Raises:
        InputError: it is on the host or another GPU, not contiguous, or its type or shape does not fit.
    """
    if not on_device(value):
        raise InputError(
            f'"{spec.name}" is on the host, others are on the GPU; move it with .cuda(), or give none there'
        )
    described: Mapping[str, Any] = getattr(value, PROTOCOL)
    shape, dtype = tuple(described["shape"]), np.dtype(described["typestr"])
    if dtype.name != spec.dtype:
        raise InputError(f'"{spec.name}" must be {spec.dtype} on the GPU, got {dtype.name}; convert it first')
    spec.check_shape(shape)
    device = getattr(value, "device", None)
    index = getattr(device, "index", getattr(device, "id", None))
    if index not in (None, 0) and not callable(index):
        raise InputError(f'"{spec.name}" is on GPU {index}, this session is on GPU 0; move it there')
    if described.get("strides") not in (None, _contiguous(shape, dtype.itemsize)):
        raise InputError(f'"{spec.name}" is not contiguous on the GPU; call .contiguous() on it')
    return DeviceArray(described["data"][0], shape, dtype.name)


def empty_like(value: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """An uninitialised array of the library that `value` is of.

    Raises:
        InputError: the library has no `empty`.
    """
    library = sys.modules[type(value).__module__.partition(".")[0]]
    make, kind = getattr(library, "empty", None), getattr(library, dtype, None)
    if make is None or kind is None:
        raise InputError(f"{library.__name__} cannot make the outputs; give arrays for them by name as `out`")
    place = {"device": value.device} if library.__name__ == "torch" else {}
    return make(shape, dtype=kind, **place)


def stream_handle(stream: Any) -> int:
    """The handle of a stream: an integer, or PyTorch's or CuPy's object for one.

    Raises:
        InputError: it is none of them.
    """
    handle = getattr(stream, "cuda_stream", getattr(stream, "ptr", stream))
    if type(handle) is not int:
        raise InputError(f"a stream is its handle, torch.cuda.Stream or cupy.cuda.Stream, got {type(stream).__name__}")
    return handle


def _contiguous(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides, step = [], itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
