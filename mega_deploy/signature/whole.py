"""All inputs and outputs of a model, and the check of a call's arrays against them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import InputError
from mega_deploy.signature.ranges import Dim
from mega_deploy.signature.tensors import StateSpec, TensorSpec

# Of an array of numpy's; deeper lists make none.
_MAX_AXES = 64


@dataclass(frozen=True)
class Signature:
    """All inputs and outputs of a model, and the state that it carries where it is a stream."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: tuple[StateSpec, ...] = ()

    @property
    def with_state(self) -> Signature:
        """The state as inputs and outputs among the others: what the graph itself has."""
        old = (spec.tensor for spec in self.state)
        new = (replace(spec.tensor, name=spec.output) for spec in self.state if spec.output is not None)
        return Signature((*self.inputs, *old), (*self.outputs, *new))

    def dim(self, *axes: str) -> Dim:
        """The size or the range of the first axis of an input that is called by one of these names."""
        return next(dim for spec in self.inputs for axis, dim in zip(spec.axes, spec.dims, strict=True) if axis in axes)

    def feeds(self, inputs: Array | Mapping[str, Array]) -> dict[str, Array]:
        """Checked inputs by name, from one array where there is one that must be there, or from a mapping.

        Raises:
            InputError: a name is missing or unknown, an array does not fit, or axes of one name differ in size.
        """
        inputs = self.named(inputs)
        given = [spec for spec in self.inputs if spec.name in inputs]
        feeds = {spec.name: spec.check(as_array(spec.name, inputs[spec.name])) for spec in given}
        sizes = _sizes(given, feeds)
        return {spec.name: feeds[spec.name] if spec in given else _filled(spec, sizes) for spec in self.inputs}

    def look(self, inputs: Any) -> None:
        """Refuse, before their numbers are read, what `feeds` would refuse for its names, types and shapes.

        Args:
            inputs: as for `feeds`; their numbers are not looked at.

        Raises:
            InputError: a name is missing or unknown, or an array does not fit.
        """
        given = self.named(inputs)
        for spec in self.inputs:
            if spec.name in given:
                array = as_array(spec.name, given[spec.name])
                spec.check_kind(array.dtype)
                spec.check_shape(array.shape)

    def named(self, inputs: Any) -> Mapping[str, Any]:
        """Inputs by name: every one that must be there, and no unknown one.

        Raises:
            InputError: a name is missing or unknown.
        """
        if not isinstance(inputs, Mapping):
            if sum(spec.default is None for spec in self.inputs) != 1:
                raise InputError(
                    f"this bundle has {len(self.inputs)} inputs ({_names(self.inputs)}); pass a dict by name"
                )
            inputs = {next(spec.name for spec in self.inputs if spec.default is None): inputs}
        known = {spec.name for spec in self.inputs}
        for name in inputs:
            if name not in known:
                raise InputError(f'this bundle has no input "{name}"; it takes {_names(self.inputs)}')
        for spec in self.inputs:
            if spec.name not in inputs and spec.default is None:
                raise InputError(f'input "{spec.name}" is missing; this bundle takes {_names(self.inputs)}')
        return inputs

    def in_float16(self) -> Signature:
        """This signature with float16 in the place of float32."""
        return self._with("float32", "float16")

    def in_float32(self) -> Signature:
        """This signature with float32 in the place of float16."""
        return self._with("float16", "float32")

    def _with(self, old: str, new: str) -> Signature:
        def changed(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            return tuple(replace(spec, dtype=new) if spec.dtype == old else spec for spec in specs)

        return replace(self, inputs=changed(self.inputs), outputs=changed(self.outputs))

    def to_json(self) -> dict[str, Any]:
        """JSON values as the manifest has them."""
        sides = {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
        }
        return sides | ({"state": [spec.to_json() for spec in self.state]} if self.state else {})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Signature:
        """The object from what `to_json` gave."""
        inputs, outputs = (tuple(TensorSpec.from_json(spec) for spec in value[side]) for side in ("inputs", "outputs"))
        found = cls(inputs, outputs, tuple(StateSpec.from_json(spec) for spec in value.get("state", ())))
        for specs in (found.with_state.inputs, found.with_state.outputs):
            names = [spec.name for spec in specs]
            if twice := {name for name in names if names.count(name) > 1}:
                raise InputError(f'two tensors are called "{min(twice)}"')
        required = {axis for spec in inputs if spec.default is None for axis in spec.axes}
        for spec in inputs:
            if spec.default is not None and not (len(spec.axes) == len(spec.dims) and required >= set(spec.axes)):
                raise InputError(
                    f'the input "{spec.name}" has a default, but nothing tells its size where it is left out'
                )
        return found


def _sizes(specs: Iterable[TensorSpec], feeds: Mapping[str, Array]) -> dict[str, int]:
    """The size of each axis by its name.

    Raises:
        InputError: two inputs differ in it.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        for axis, size in zip(spec.axes, feeds[spec.name].shape, strict=False):
            known, by = sizes.setdefault(axis, (size, spec.name))
            if known != size:
                raise InputError(
                    f'{axis} is {known} in input "{by}" and {size} in "{spec.name}"; give the same to both'
                )
    return {axis: size for axis, (size, _) in sizes.items()}


def _filled(spec: TensorSpec, sizes: Mapping[str, int]) -> Array:
    """The array for an input that was left out; its axes are named, and stand in an input that was not."""
    return np.full([sizes[axis] for axis in spec.axes], spec.default, spec.dtype)


def as_array(name: str, value: Any) -> Array:
    """What was given for an input, as an array.

    Raises:
        InputError: it is none, or has a mask, which numpy would forget.
    """
    if type(value) is np.ndarray:
        return value
    if is_masked(value):
        raise InputError(
            f'input "{name}" is a masked array, whose mask no model sees; fill it first, as with .filled(0)'
        )
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # a ragged list, or a tensor that lives elsewhere
        raise InputError(f'input "{name}" is no array: {error}') from error


def is_masked(value: Any, depth: int = 0) -> bool:
    """Whether a value is one of numpy's masked arrays, or a list that holds one; numpy would forget the mask."""
    if isinstance(value, list | tuple):
        return depth < _MAX_AXES and any(is_masked(part, depth + 1) for part in value)
    return isinstance(value, np.ma.MaskedArray)


def _names(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f'"{spec.name}" {spec}' for spec in specs)
