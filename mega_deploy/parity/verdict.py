"""The verdict on a backend: its error in each case of a reference, and the limit there."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from mega_deploy.config.common import Precision
from mega_deploy.parity.error import Error, limit_for


@dataclass(frozen=True)
class CaseResult:
    """The error of a backend in one case, beside its noise floor and its limit."""

    name: str
    batch: int
    error: Error
    floor: Error
    precision: Precision = "float32"

    @property
    def limit(self) -> Error:
        return limit_for(self.floor, self.precision)

    @property
    def passed(self) -> bool:
        return self.error.within(self.limit)

    @property
    def share(self) -> float:
        """The error as a share of its limit, by the worse of the two measures."""
        return max(self.error.relative_l2 / self.limit.relative_l2, self.error.max_over_rms / self.limit.max_over_rms)

    def to_json(self) -> dict[str, Any]:
        """The case as JSON values, for a report."""
        return {
            "name": self.name,
            "batch": self.batch,
            "passed": self.passed,
            "relative_l2": _json(self.error.relative_l2),
            "floor": self.floor.relative_l2,
            "limit": self.limit.relative_l2,
            "max_abs": _json(self.error.max_abs),
            "max_over_rms": _json(self.error.max_over_rms),
            "max_over_rms_floor": self.floor.max_over_rms,
            "max_over_rms_limit": _json(self.limit.max_over_rms),
        }


@dataclass(frozen=True)
class Report:
    """The verdict on a backend: over its cases, and block by block, so that the first bad block shows."""

    backend: str
    precision: Precision
    cases: tuple[CaseResult, ...]
    blocks: tuple[CaseResult, ...] = ()
    left_out: tuple[str, ...] = ()
    """Cases that prove nothing, for the trained form itself overflows or is far off in this precision there."""
    sampled: tuple[str, ...] = ()
    """What was held against the trained form less often than for a smaller model, in words."""

    @property
    def passed(self) -> bool:
        return all(case.passed for case in self.cases)

    @property
    def worst(self) -> CaseResult:
        """The case that is nearest to its limit, or farthest beyond it."""
        return max(self.cases, key=lambda case: case.share)

    @property
    def worst_block(self) -> CaseResult | None:
        """The block that adds most to the residual stream's error; those of independent roundings add in squares."""
        squares = [0.0, *(block.error.relative_l2**2 for block in self.blocks)]
        growth = [after - before for before, after in itertools.pairwise(squares)]
        return self.blocks[int(np.argmax(growth))] if growth else None

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values; the measures at the top are those of the worst case."""
        top, block = self.worst.to_json(), self.worst_block
        return {
            "passed": self.passed,
            "backend": self.backend,
            "precision": self.precision,
            "worst_case": top["name"],
            **{key: top[key] for key in top if key not in ("name", "batch", "passed")},
            "worst_block": None if block is None else block.name,
            "left_out": list(self.left_out),
            "sampled": list(self.sampled),
            "cases": [case.to_json() for case in self.cases],
            "blocks": [block.to_json() for block in self.blocks],
        }


def _json(value: float) -> float | None:
    """A number in JSON, which has no infinity: null stands for an error that is not finite, and for no limit."""
    return value if np.isfinite(value) else None
