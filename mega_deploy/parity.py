"""Numerical parity: how far a backend is from the trained form, and how far it may be.

The reference is the trained form in float64. The noise floor of a precision is the error that the trained form itself
makes in that precision (float32: eager PyTorch) on the same inputs: the worst of a few runs on inputs a last place
apart, for one run alone may come near float64 by luck. A backend passes when its error is at most `LIMIT_FACTOR` times
the floor, in every case and by both measures: relative l2, and the largest error over the RMS of the output. Inputs on
which the trained form itself is off by more than `ILL_CONDITIONED` prove nothing and are no case.

A `Reference` is recorded where torch is and travels with the bundle, so that any host can be held against it.
"""

from __future__ import annotations

import itertools
import json
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mega_deploy.arrays import DAMAGED
from mega_deploy.config import Precision
from mega_deploy.errors import BundleError

Array = npt.NDArray[Any]

LIMIT_FACTOR = 4.0
# Half a unit in the last place of 1.0.
UNIT_ROUNDOFF: Mapping[str, float] = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# No implementation owes an error below the last place of float32.
SMALLEST_FLOOR = 2.0**-23
# A floor beyond this is no limit: the model is too ill-conditioned for the precision.
ILL_CONDITIONED: Mapping[str, float] = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1, "int8": 1e-3}
# int8 has no floor in PyTorch. On onnxruntime's CPU provider 7-bit weights gave 2e-2 to 3e-2, saturating ones 24e-2.
INT8_LIMIT = 5e-2
# A reference comes with a bundle, which may come from a stranger.
MAX_REFERENCE_BYTES = 1 << 30


@dataclass(frozen=True)
class Error:
    """How far an output is from its reference."""

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


def batches(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    """The rows, `size` at a time."""
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


@dataclass(frozen=True)
class Pool:
    """Inputs of one shape, row by row, and what the trained form gives for them in float64."""

    inputs: Mapping[str, Array]
    """By name: [rows, ...] as the backend gets it."""
    outputs: Mapping[str, Array]
    """By name: float64 [rows, ...]."""


@dataclass(frozen=True)
class Case:
    """Inputs of a kind: rows of one of the reference's pools, and how many of them go through the model at once."""

    name: str
    pool: str
    """Its name."""
    rows: tuple[int, ...]
    """Indices into the pool; a row may stand several times."""
    batch: int
    """Divides the number of rows."""
    floor: Error
    """Noise floor: what the trained form itself makes in the bundle's precision on these inputs (int8: in float32)."""


@dataclass(frozen=True)
class BlockFloor:
    """The residual stream behind one block: its name in the graph, and the noise floor there."""

    name: str
    floor: Error


@dataclass(frozen=True)
class Reference:
    """What the trained form gives in float64 for pools of inputs, and the cases that are made of them."""

    pools: Mapping[str, Pool]
    cases: tuple[Case, ...]
    blocks: tuple[BlockFloor, ...] = ()
    block_outputs: Mapping[str, Array] | None = None
    """By name: float64 residual stream of the first case, its last frames: [batch, frames, features]."""
    precision: Precision = "float32"
    """In which the floors were taken."""
    kept: tuple[str, ...] = ()
    """Islands that were asked for, which were float32 for the floors too."""
    left_out: tuple[str, ...] = ()
    """Cases that are none, for the trained form itself is off by more than ILL_CONDITIONED or overflows in them."""

    def feeds(self, case: Case) -> Iterator[dict[str, Array]]:
        """The inputs of a case, batch by batch."""
        for rows in batches(case.rows, case.batch):
            yield {name: array[rows] for name, array in self.pools[case.pool].inputs.items()}

    def error(self, case: Case, outputs: Sequence[Mapping[str, Array]]) -> Error:
        """The worst error over the outputs of a case's batches."""
        rows = list(case.rows)
        return worst(
            [
                measure(np.concatenate([output[name] for output in outputs]), array[rows])
                for name, array in self.pools[case.pool].outputs.items()
            ]
        )

    def save(self, file: Path | BinaryIO) -> None:
        """Write as .npz; what it holds besides arrays is JSON."""
        about = {
            "precision": self.precision,
            "kept": self.kept,
            "left_out": self.left_out,
            "cases": [asdict(case) for case in self.cases],
            "blocks": [asdict(block) for block in self.blocks],
        }
        arrays: dict[str, Any] = {f"block//{name}": array for name, array in (self.block_outputs or {}).items()}
        for pool_name, pool in self.pools.items():
            arrays |= {f"input/{pool_name}/{name}": array for name, array in pool.inputs.items()}
            arrays |= {f"output/{pool_name}/{name}": array for name, array in pool.outputs.items()}
        np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote.

        Raises:
            BundleError: the file is damaged or of another version.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MAX_REFERENCE_BYTES:
                    raise ValueError(f"it unpacks to more than {MAX_REFERENCE_BYTES} bytes")
            with np.load(path, allow_pickle=False) as data:
                arrays = {name: data[name] for name in data.files}
            about = json.loads(str(arrays.pop("about")))
            cases = tuple(
                Case(c["name"], c["pool"], tuple(c["rows"]), c["batch"], Error(**c["floor"])) for c in about["cases"]
            )
            blocks = tuple(BlockFloor(b["name"], Error(**b["floor"])) for b in about["blocks"])
            named: dict[tuple[str, str], dict[str, Array]] = defaultdict(dict)
            for key, array in arrays.items():
                kind, pool, name = key.split("/", 2)
                named[kind, pool][name] = array
            pools = {case.pool for case in cases}
            reference = cls(
                {pool: Pool(named["input", pool], named["output", pool]) for pool in pools},
                cases,
                blocks,
                named["block", ""],
                precision=about["precision"],
                kept=tuple(map(str, about["kept"])),
                left_out=tuple(map(str, about.get("left_out", ()))),
            )
            reference.check()
        except (OSError, KeyError, TypeError, *DAMAGED) as error:
            raise BundleError(f"{path} holds no parity reference: {error!r:.300}; export the bundle anew") from error
        return reference

    def check(self) -> None:
        """Raise ValueError where cases, pools and floors do not fit together, or a floor is no limit at all."""
        if not self.cases:
            raise ValueError("it has no cases")
        for case in self.cases:
            pool = self.pools[case.pool]
            sizes = {len(array) for array in (*pool.inputs.values(), *pool.outputs.values())}
            if len(sizes) != 1 or not pool.inputs or not pool.outputs:
                raise ValueError(
                    f"the case {case.name!r} has no inputs, no outputs, or not as many of one as of the other"
                )
            if not isinstance(case.batch, int) or not case.batch >= 1 or not case.rows or len(case.rows) % case.batch:
                raise ValueError(f"the case {case.name!r} has no whole batches")
            if not all(isinstance(row, int) and row in range(*sizes) for row in case.rows):
                raise ValueError(f"the case {case.name!r} has rows beyond its pool")
        largest = ILL_CONDITIONED[self.precision]
        for floor in [*(case.floor for case in self.cases), *(block.floor for block in self.blocks)]:
            if not 0 <= floor.relative_l2 <= largest or not np.isfinite(floor.max_over_rms):
                raise ValueError(f"a floor of {floor} is no limit")
        for block in self.blocks:
            if (self.block_outputs or {})[block.name].ndim != 3:
                raise ValueError(f"the block {block.name!r} has no frames")


@dataclass(frozen=True)
class CaseResult:
    """How a backend did in one case."""

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
        """The case for a report."""
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
            "cases": [case.to_json() for case in self.cases],
            "blocks": [block.to_json() for block in self.blocks],
        }


def _json(value: float) -> float | None:
    """JSON has no infinity: null stands for the error of an output that is not finite, and for no limit."""
    return value if np.isfinite(value) else None
