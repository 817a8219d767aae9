"""One input, output or state: its name, dtype and shape, and the check of arrays against them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import InputError
from mega_deploy.signature.ranges import LARGEST_SIZE, Dim, Range

# Axis of a stream's source.
SOURCE_AXIS = "source_len"
# Axes of sequences: of the model's own, of a pair's two, of a translation's two, and of what cross attention reads.
SEQUENCE_AXES = ("seq_len", "src_len", "src1_len", "tgt_len", "encoder_len", SOURCE_AXIS)
# The option of `export` that widens an axis.
_WIDENS = {"batch": "--batch-range"} | dict.fromkeys(SEQUENCE_AXES, "--seq-range") | {SOURCE_AXIS: "--seq-len"}
# Kinds of numbers (numpy's letters) that are converted to a kind.
_TAKEN = {"f": "iuf", "i": "iu", "u": "iu"}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model: its name, dtype, dims and the values it may have."""

    name: str
    dtype: str
    """The dtype by numpy's name, such as "float32"."""
    dims: tuple[Dim, ...]
    axes: tuple[str, ...] = ()
    """What each axis is called in messages and in the options that widen it, such as "batch"; may be empty. Axes of one
    name are of one size."""
    values: tuple[int, int] | None = None
    """The smallest and the largest value that whole numbers may have, such as (0, vocabulary - 1)."""
    default: int | None = None
    """The value that fills an input where it is left out; None for an input that must be there."""

    def check(self, array: Array) -> Array:
        """The array as the backend takes it: of this dtype, contiguous.

        Whole numbers of any type are taken for whole numbers, where they fit, and any numbers for floating-point ones:
        numpy makes float64 and int64 by default, data sets hold uint8. Nothing else is converted.

        Raises:
            InputError: the dtype, the number of axes or a size does not fit, or a value is NaN, infinite, not among
                `values` or beyond the dtype.
        """
        dtype, given = np.dtype(self.dtype), array.dtype
        if given != dtype:
            self.check_kind(given)
        self.check_shape(array.shape)
        if dtype.kind in "iu":
            self._check_values(array)  # before they are converted, which would let a large one wrap
        if given != dtype:
            with np.errstate(over="ignore", invalid="ignore"):
                array = array.astype(dtype)
        array = np.ascontiguousarray(array)
        if dtype.kind == "f" and not (finite := np.isfinite(array)).all():
            bad = ~finite
            first = [int(index) for index in np.argwhere(bad)[0]]
            raise InputError(f'input "{self.name}" holds {int(bad.sum())} NaN or infinite values, the first at {first}')
        return array

    def check_kind(self, given: np.dtype[Any]) -> None:
        """Raise InputError where arrays of a dtype are not taken."""
        kind = np.dtype(self.dtype).kind
        if given.kind not in _TAKEN.get(kind, kind):
            remedy = f'; convert it with .astype("{self.dtype}")' if given.kind in "biuf" else ""
            raise InputError(f'input "{self.name}" must be {self.dtype}, got {given}{remedy}')

    def _check_values(self, array: Array) -> None:
        if not array.size or (self.values is None and array.dtype == self.dtype):
            return
        whole = np.iinfo(self.dtype)
        low, high = self.values or (int(whole.min), int(whole.max))
        if low <= array.min() and array.max() <= high:
            return
        first = [int(index) for index in np.argwhere((array < low) | (array > high))[0]]
        raise InputError(
            f'input "{self.name}" holds {array[tuple(first)]} at {first}; its values go from {low} to {high}'
        )

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise InputError, naming axis, size and range, where a shape does not fit."""
        if len(shape) != len(self.dims):
            raise InputError(f'input "{self.name}" must be {self}, got {len(shape)} axes: {list(shape)}')
        for axis, (size, dim) in enumerate(zip(shape, self.dims, strict=True)):
            called = self.axes[axis] if self.axes else "size"
            where = f'(input "{self.name}", axis {axis})'
            if isinstance(dim, Range) and not dim.min <= size <= dim.max:
                wider = f"{max(1, min(size, dim.min))}:{dim.opt}:{max(size, dim.max)}"
                wider = f"{size} or more" if called == SOURCE_AXIS else wider
                remedy = f"; export with {_WIDENS[called]} {wider}" if called in _WIDENS and size else ""
                raise InputError(f"{called} {size} is outside this bundle's range {dim.min}..{dim.max} {where}{remedy}")
            if isinstance(dim, int) and size != dim:
                raise InputError(
                    f"{called} {size} is not this bundle's {dim} {where}: it takes {self}, got {list(shape)}"
                )

    def __str__(self) -> str:
        sizes = (f"{dim.min}..{dim.max}" if isinstance(dim, Range) else str(dim) for dim in self.dims)
        names = self.axes or ("",) * len(self.dims)
        return "[" + ", ".join(f"{name} {size}".strip() for name, size in zip(names, sizes, strict=True)) + "]"

    def to_json(self) -> dict[str, Any]:
        """JSON values as the manifest has them."""
        dims = [vars(dim) if isinstance(dim, Range) else dim for dim in self.dims]
        entry: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "dims": dims, "axes": list(self.axes)}
        if self.values is not None:
            entry["values"] = list(self.values)
        if self.default is not None:
            entry["default"] = self.default
        return entry

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TensorSpec:
        """The object from what `to_json` gave."""
        dims = tuple(Range(**dim) if isinstance(dim, Mapping) else dim for dim in value["dims"])
        axes = tuple(value.get("axes", ()))
        if axes and len(axes) != len(dims):
            raise InputError(f'tensor "{value["name"]}" has {len(dims)} dims and {len(axes)} axes')
        low_and_high = value.get("values")
        values = None if low_and_high is None else (low_and_high[0], low_and_high[1])
        spec = cls(value["name"], value["dtype"], dims, axes, values, value.get("default"))
        spec._check_itself()
        return spec

    def _check_itself(self) -> None:
        """Raise InputError where no tensor can be as a manifest says; JSON's whole numbers may have a point."""
        what = f'tensor "{self.name}"'
        for dim in self.dims:
            if not isinstance(dim, Range) and (type(dim) is not int or not 0 <= dim <= LARGEST_SIZE):
                raise InputError(f"{what} has an axis of {dim}; sizes are whole numbers up to {LARGEST_SIZE}")
        if self.values is not None:
            low, high = (_as_held(value, self.dtype, what) for value in self.values)
            if low > high:
                raise InputError(f"{what} has values from {low} to {high}, which are none")
        if self.default is not None:
            _as_held(self.default, self.dtype, what)


@dataclass(frozen=True)
class StateSpec:
    """A tensor that a stream carries from one step to the next; its first axis is the batch."""

    tensor: TensorSpec
    """The state as the step takes it."""
    output: str | None
    """Name under which the step gives its new value, of the same dtype and dims; None for what no step changes, a part
    of the stream's source."""
    initial: float = 0
    """The value of every element before the first step."""
    limit: int | None = None
    """The most steps of a stream before it is reset, for a state [batch] that counts them; None: any number."""

    @property
    def loaded(self) -> TensorSpec:
        """The tensor as a saved state may have it: what counts steps is neither negative nor beyond its limit."""
        if np.dtype(self.dtype).kind not in "iu":
            return self.tensor
        most = int(np.iinfo(self.dtype).max) // 2 if self.limit is None else self.limit
        return replace(self.tensor, values=(int(self.initial), most))

    @property
    def name(self) -> str:
        """The name of the step's input."""
        return self.tensor.name

    @property
    def dtype(self) -> str:
        """The dtype by numpy's name."""
        return self.tensor.dtype

    def shape(self, batch: int) -> tuple[int, ...]:
        """The shape of the state of so many streams: [batch, ...]."""
        return (batch, *(dim for dim in self.tensor.dims[1:] if isinstance(dim, int)))

    def to_json(self) -> dict[str, Any]:
        """JSON values as the manifest has them."""
        entry = {**self.tensor.to_json(), "initial": self.initial}
        given = {"output": self.output, "limit": self.limit}
        return entry | {name: value for name, value in given.items() if value is not None}

    def nbytes(self, batch: int) -> int:
        """What the state of so many streams takes."""
        return math.prod(self.shape(batch)) * np.dtype(self.dtype).itemsize

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StateSpec:
        """The object from what `to_json` gave."""
        tensor = TensorSpec.from_json(value)
        if (
            not tensor.dims
            or not isinstance(tensor.dims[0], Range)
            or any(isinstance(d, Range) for d in tensor.dims[1:])
        ):
            raise InputError(f'the state "{tensor.name}" must have a range for its batch, and fixed sizes behind it')
        limit = value.get("limit")
        if limit is not None and (tensor.dims[1:] or np.dtype(tensor.dtype).kind != "i"):
            raise InputError(f'the state "{tensor.name}" has a limit, but is no count of steps')
        what = f'the state "{tensor.name}"'
        initial = _as_held(value["initial"], tensor.dtype, what)
        if np.dtype(tensor.dtype).kind == "i" and initial < 0:
            raise InputError(f"{what} counts steps, and begins at {initial}")
        if limit is not None and (type(limit) is not int or not 0 <= initial <= limit):
            raise InputError(f"{what} begins at {initial}, and may have {limit} steps")
        return cls(tensor, value.get("output"), value["initial"], limit)


def _as_held(value: Any, dtype: str, what: str) -> Any:
    """A number of a manifest, which a tensor of the dtype holds.

    Raises:
        InputError: it does not: it is too large, or not whole where the dtype's numbers are.
    """
    kind = np.dtype(dtype)
    if kind.kind == "b":
        fits = value in (0, 1)
    elif kind.kind in "iu":
        fits = type(value) is int and int(np.iinfo(kind).min) <= value <= int(np.iinfo(kind).max)
    else:
        fits = abs(value) <= float(np.finfo(kind).max)
    if not fits:
        raise InputError(f"{what} is of {dtype}, which cannot hold {value!r:.40}")
    return value
