"""Errors against float64, and how large they may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.config.common import Precision

LIMIT_FACTOR = 4.0
# Half a unit in the last place of 1.0.
UNIT_ROUNDOFF: Mapping[str, float] = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# No implementation owes an error below the last place of float32.
SMALLEST_FLOOR = 2.0**-23
# A floor beyond this is no limit: the model is too ill-conditioned for the precision.
ILL_CONDITIONED: Mapping[str, float] = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1, "int8": 1e-3}
# int8 has no floor in PyTorch. On onnxruntime's CPU provider 7-bit weights gave 2e-2 to 3e-2, saturating ones 24e-2.
INT8_LIMIT = 5e-2


@dataclass(frozen=True)
class Error:
    """The distance of an output from its reference, by three measures."""

    relative_l2: float
    """|got - want| / |want|, over all elements."""
    max_over_rms: float
    """The largest absolute error over the RMS of `want`."""
    max_abs: float
    """The largest absolute error."""

    def within(self, limit: Error) -> bool:
        """Whether both relative measures are at most the limit's; a NaN never is."""
        return self.relative_l2 <= limit.relative_l2 and self.max_over_rms <= limit.max_over_rms


def measure(got: Array, want: Array) -> Error:
    """The error of `got` against `want`, both of one shape; infinite where `got` is not finite."""
    if got.shape != want.shape:
        raise ValueError(f"shape {got.shape} against {want.shape}")
    got, want = got.astype(np.float64), want.astype(np.float64)
    if not np.isfinite(got).all():
        return Error(float("inf"), float("inf"), float("inf"))
    difference = np.abs(got - want)
    norm = float(np.linalg.norm(want)) or 1.0
    largest = float(difference.max(initial=0.0))
    return Error(float(np.linalg.norm(difference)) / norm, largest * want.size**0.5 / norm, largest)


def worst(errors: Sequence[Error]) -> Error:
    """The largest of each measure."""
    return Error(
        max(error.relative_l2 for error in errors),
        max(error.max_over_rms for error in errors),
        max(error.max_abs for error in errors),
    )


def median(errors: Sequence[Error]) -> Error:
    """The median of each measure."""
    table = np.array([(error.relative_l2, error.max_over_rms, error.max_abs) for error in errors])
    return Error(*(float(value) for value in np.median(table, axis=0)))


def limit_for(floor: Error, precision: Precision = "float32") -> Error:
    """The largest error that passes beside a noise floor; for int8 a fixed one."""
    if precision == "int8":
        return Error(INT8_LIMIT, float("inf"), float("inf"))
    smallest = SMALLEST_FLOOR if precision == "float32" else UNIT_ROUNDOFF[precision]
    return Error(
        LIMIT_FACTOR * max(floor.relative_l2, smallest),
        LIMIT_FACTOR * max(floor.max_over_rms, smallest),
        float("inf"),
    )
