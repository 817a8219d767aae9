"""Numerical parity: how far a backend is from the trained form, and how far it may be.

The reference is the trained form in float64. The noise floor of a precision is the error that the trained form itself
makes in that precision (float32: eager PyTorch) on the same inputs: the worst of a few runs on inputs a last place
apart, for one run alone may come near float64 by luck. A backend passes when its error is at most `LIMIT_FACTOR` times
the floor, in every case and by both measures: relative l2, and the largest error over the RMS of the output. Inputs on
which the trained form itself is off by more than `ILL_CONDITIONED` prove nothing and are no case.

A `Reference` is recorded where torch is and travels with the bundle, so that any host can be held against it; the
verdict is a `Report`.
"""

from mega_deploy.parity.error import (
    ILL_CONDITIONED,
    INT8_LIMIT,
    LIMIT_FACTOR,
    SMALLEST_FLOOR,
    UNIT_ROUNDOFF,
    Error,
    limit_for,
    measure,
    median,
    worst,
)
from mega_deploy.parity.reference import BlockFloor, Case, Pool, Reference, batches, handover
from mega_deploy.parity.verdict import CaseResult, Report

__all__ = [
    "ILL_CONDITIONED",
    "INT8_LIMIT",
    "LIMIT_FACTOR",
    "SMALLEST_FLOOR",
    "UNIT_ROUNDOFF",
    "BlockFloor",
    "Case",
    "CaseResult",
    "Error",
    "Pool",
    "Reference",
    "Report",
    "batches",
    "handover",
    "limit_for",
    "measure",
    "median",
    "worst",
]
