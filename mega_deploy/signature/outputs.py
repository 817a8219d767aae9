"""What a call of a model gave, held against the signature: a graph may give other shapes than it declares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import BundleError
from mega_deploy.signature.ranges import Dim, Range
from mega_deploy.signature.tensors import TensorSpec
from mega_deploy.signature.whole import Signature

Place = tuple[str, int]
"""An input's name, and an axis of it."""


class OutputCheck:
    """Holds outputs against a signature; axes that an input has too are of the size of that call's.

    Outputs whose signature has no axes are left alone: values inside of a graph, whose shapes nobody wrote down.

    Args:
        signature: of the model.
    """

    def __init__(self, signature: Signature) -> None:
        places: dict[str, Place] = {}
        for spec in signature.inputs:
            for axis, name in enumerate(spec.axes):
                places.setdefault(name, (spec.name, axis))
        self._outputs = [
            (spec, np.dtype(spec.dtype), tuple(_wanted(spec, axis, places) for axis in range(len(spec.dims))))
            for spec in signature.outputs
            if spec.dims
        ]
        self._fitted: tuple[list[object], list[object]] | None = None
        """The shapes of the last call's inputs, and the shapes and types of its outputs, which fitted."""

    def __call__(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Refuse outputs that are not as the signature says for these inputs.

        Raises:
            BundleError: naming the output, what it is and what it should be.
        """
        given: list[object] = [array.shape for array in feeds.values()]
        found: list[object] = [(array.shape, array.dtype) for array in outputs.values()]
        if (given, found) == self._fitted:  # nearly all calls are like the last one
            return
        for spec, dtype, wanted in self._outputs:
            array = outputs[spec.name]
            sizes = [feeds[want[0]].shape[want[1]] if type(want) is tuple else want for want in wanted]
            if array.dtype == dtype and len(array.shape) == len(sizes) and all(map(_fits, array.shape, sizes)):
                continue
            raise BundleError(
                f'the model gave "{spec.name}" as {array.dtype} {list(array.shape)}, but its signature says '
                f"{spec.dtype} {spec}; export it anew"
            )
        self._fitted = given, found


def _wanted(spec: TensorSpec, axis: int, places: Mapping[str, Place]) -> Dim | Place:
    """The size of an output's axis, a range of them, or the input whose size it has."""
    dim = spec.dims[axis]
    if isinstance(dim, Range) and spec.axes and spec.axes[axis] in places:
        return places[spec.axes[axis]]
    return dim


def _fits(size: int, want: object) -> bool:
    return size == want or (isinstance(want, Range) and want.min <= size <= want.max)
