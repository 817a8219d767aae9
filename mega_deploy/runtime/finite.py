"""Whether outputs are numbers: what overflowed would be passed on without a word, and a stream carries it for ever."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mega_deploy.arrays import Array
from mega_deploy.errors import NonFiniteError

WINDOW_REMEDY = (
    "scale the input to what the model was trained on, or take outputs as they are with check_outputs=False "
    "(run --no-check-outputs)"
)
# Above that BLAS takes threads for a product.
_PRODUCT = 10_000
_EXPONENT = np.uint16(0x7C00)


def all_finite(array: Array) -> bool:
    """Whether no number is NaN or infinite.

    The product of an array with itself has no cancellation: it is finite only where all its factors are. For what a
    step gives that takes a third of the time that asking each number does.
    """
    kind = array.dtype.char
    if kind in "fd":
        return (array.size <= _PRODUCT and math.isfinite(np.vdot(array, array))) or bool(np.isfinite(array).all())
    if kind == "e":  # numpy has no fast way to ask these
        bits = np.bitwise_and(array.view(np.uint16), _EXPONENT)
        return int(bits.max(initial=0)) != _EXPONENT
    return kind not in "FDgG" or bool(np.isfinite(array).all())


def check_finite(outputs: Mapping[str, Array], remedy: str) -> None:
    """Raise NonFiniteError where an output holds NaN or infinity.

    Args:
        outputs: by name, each [batch, ...] or a single number.
        remedy: what to do about it.
    """
    for array in outputs.values():
        if not all_finite(array):
            raise failure(outputs, remedy)


def failure(outputs: Mapping[str, Array], remedy: str, rows: npt.NDArray[np.intp] | None = None) -> NonFiniteError:
    """The error for outputs of which one at least is not finite.

    Args:
        outputs: by name, each [batch, ...] or a single number.
        remedy: what to do about it.
        rows: what the rows of the outputs are called, where they are not simply counted.
    """
    found = {name: bad for name, array in outputs.items() if len(bad := bad_rows(array))}
    bad = np.unique(np.concatenate(list(found.values())))
    whose = bad if rows is None else rows[bad]
    names = " and ".join(f'"{name}"' for name in found)
    shown = ", ".join(map(str, whose[:8].tolist())) + (f" and {len(whose) - 8} more" if len(whose) > 8 else "")
    called = "row" if rows is None else "stream"
    text = f"the output {names} is NaN or infinite in {called}{'s' if len(whose) > 1 else ''} {shown}: {remedy}"
    return NonFiniteError(text, tuple(whose.tolist()), dict(outputs))


def bad_rows(array: Array) -> npt.NDArray[np.intp]:
    """Rows of the first axis that hold NaN or infinity."""
    if array.dtype.kind not in "fc" or not array.size:
        return np.zeros(0, np.intp)
    return np.flatnonzero(~np.isfinite(array.reshape(len(array) if array.ndim else 1, -1)).all(axis=1))
