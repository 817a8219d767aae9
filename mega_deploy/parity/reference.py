"""What the trained form gives for inputs, recorded where torch is: it travels with the bundle, to any host."""

from __future__ import annotations

import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.config.common import Precision
from mega_deploy.errors import BundleError
from mega_deploy.files.npy import DAMAGED, write_npz
from mega_deploy.files.npz_check import check_unpacked, declared_arrays
from mega_deploy.files.strict_json import parse_json
from mega_deploy.files.writing import replacing
from mega_deploy.parity.error import ILL_CONDITIONED, Error, measure, worst

# A reference comes with a bundle, which may come from a stranger.
MAX_REFERENCE_BYTES = 1 << 30
# The most steps of a stream's sequence that are taken one by one where the others are taken at once.
STEPPED = 16
# A row of a case is a number of its description, and a small model's batch may have a million.
MAX_ABOUT_PARTS = 4_000_000


def batches(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    """Divide rows into batches of `size`; the last one may be smaller."""
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def handover(steps: int) -> int:
    """How many steps of a stream's sequence are taken at once, as a prefill, before the others follow one by one."""
    return min(steps - 1, max(steps // 2, steps - STEPPED))


@dataclass(frozen=True)
class Pool:
    """Inputs of one shape, row by row, and what the trained form gives for them in float64."""

    inputs: Mapping[str, Array]
    """Inputs by name: [rows, ...] as the backend gets them."""
    outputs: Mapping[str, Array]
    """Outputs by name: float64 [rows, ...], or at some steps alone where `steps` has the name: [rows, kept, ...]."""
    steps: Mapping[str, Array] = field(default_factory=dict)
    """Steps that are recorded of outputs too large to be kept whole, by name: int64 [kept], ascending, the last step
    among them."""

    @property
    def length(self) -> int:
        """Steps of each sequence, kept or not; 1 where an output has none."""
        return min(
            int(self.steps[name][-1]) + 1 if name in self.steps else array.shape[1] if array.ndim > 1 else 1
            for name, array in self.outputs.items()
        )

    def want(self, rows: Sequence[int], first: int = 0) -> dict[str, Array]:
        """The recorded outputs of rows, by name, from step `first` on."""
        return {name: array[list(rows)][:, self.kept_index(name, first) :] for name, array in self.outputs.items()}

    def at_kept_steps(self, given: Mapping[str, Array], first: int = 0) -> dict[str, Array]:
        """The recorded steps of what a model gave by name from step `first` on: what is compared with `want`."""
        kept = {name: steps[self.kept_index(name, first) :] - first for name, steps in self.steps.items()}
        return {name: array[:, kept[name]] if name in kept else array for name, array in given.items()}

    def kept_index(self, name: str, step: int) -> int:
        """The number of kept steps of an output before `step`, which is where it lies among them."""
        return int(np.searchsorted(self.steps[name], step)) if name in self.steps else step


@dataclass(frozen=True)
class Case:
    """Inputs of a kind: rows of one of the reference's pools, and how many of them go through the model at once."""

    name: str
    pool: str
    """Name of the pool."""
    rows: tuple[int, ...]
    """Indices into the pool; a row may stand several times."""
    batch: int
    """Rows that go through the model at once; divides the number of rows."""
    floor: Error
    """Noise floor: what the trained form itself makes in the bundle's precision on these inputs (int8: in float32)."""
    prefilled: int = 0
    """Steps of a stream that are taken at once, before the others follow one by one and are compared."""


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
    """The residual stream behind each block, by name, in the first case's last frames: float64
    [batch, frames, features]."""
    precision: Precision = "float32"
    """Precision in which the floors were taken."""
    kept: tuple[str, ...] = ()
    """Layers, nodes or blocks that were asked to stay float32, which were float32 for the floors too."""
    left_out: tuple[str, ...] = ()
    """Names of inputs that are no case: the trained form itself overflows or is off by more than ILL_CONDITIONED."""
    sampled: tuple[str, ...] = ()
    """What this reference holds less of than a smaller model's, for it would have taken too long; in words."""

    def feeds(self, case: Case) -> Iterator[dict[str, Array]]:
        """The inputs of a case, batch by batch."""
        for rows in batches(case.rows, case.batch):
            yield {name: array[rows] for name, array in self.pools[case.pool].inputs.items()}

    def error(self, case: Case, outputs: Iterable[Mapping[str, Array]], first: int = 0) -> Error:
        """The worst error over the outputs of a case's batches, which may be those of the steps from `first` on.

        What is not compared of a batch is let go before the next one is asked for.
        """
        pool = self.pools[case.pool]
        got = list(map(partial(pool.at_kept_steps, first=first), outputs))  # in a loop the name would hold one more
        want = pool.want(case.rows, first)
        return worst([measure(np.concatenate([part[name] for part in got]), array) for name, array in want.items()])

    def save(self, path: Path) -> None:
        """Write as .npz, and replace what was there; what it holds besides arrays is JSON.

        Raises:
            BundleError: the file system refuses.
        """
        about = {
            "precision": self.precision,
            "kept": self.kept,
            "left_out": self.left_out,
            "sampled": self.sampled,
            "cases": [asdict(case) for case in self.cases],
            "blocks": [asdict(block) for block in self.blocks],
        }
        arrays: dict[str, Any] = {f"block//{name}": array for name, array in (self.block_outputs or {}).items()}
        for pool_name, pool in self.pools.items():
            arrays |= {f"input/{pool_name}/{name}": array for name, array in pool.inputs.items()}
            arrays |= {f"output/{pool_name}/{name}": array for name, array in pool.outputs.items()}
            arrays |= {f"steps/{pool_name}/{name}": steps for name, steps in pool.steps.items()}
        with replacing(path, BundleError) as file:
            write_npz(file, {"about": np.array(json.dumps(about)), **arrays}, compressed=True)

    @classmethod
    def load(cls, path: Path, data: bytes | None = None) -> Reference:
        """Read what `save` wrote.

        Args:
            path: of the file.
            data: its bytes, where they were read already: the path is for messages then.

        Raises:
            BundleError: the file is damaged or of another version.
        """
        file = path if data is None else io.BytesIO(data)
        try:
            with zipfile.ZipFile(file) as archive:
                check_unpacked(archive, MAX_REFERENCE_BYTES, packed=True)
                declared_arrays(archive)
            if isinstance(file, io.BytesIO):
                file.seek(0)  # where numpy begins to read
            with np.load(file, allow_pickle=False) as read:
                arrays = {name: read[name] for name in read.files}
            about = parse_json(str(arrays.pop("about")), MAX_ABOUT_PARTS)
            cases = tuple(
                Case(c["name"], c["pool"], tuple(c["rows"]), c["batch"], Error(**c["floor"]), c.get("prefilled", 0))
                for c in about["cases"]
            )
            blocks = tuple(BlockFloor(b["name"], Error(**b["floor"])) for b in about["blocks"])
            named: dict[tuple[str, str], dict[str, Array]] = defaultdict(dict)
            for key, array in arrays.items():
                kind, pool, name = key.split("/", 2)
                named[kind, pool][name] = array
            pools = {case.pool for case in cases}
            reference = cls(
                {pool: Pool(named["input", pool], named["output", pool], named["steps", pool]) for pool in pools},
                cases,
                blocks,
                named["block", ""],
                precision=about["precision"],
                kept=tuple(map(str, about["kept"])),
                left_out=tuple(map(str, about.get("left_out", ()))),
                sampled=tuple(map(str, about.get("sampled", ()))),
            )
            reference.check()
        except (OSError, KeyError, TypeError, *DAMAGED) as error:
            raise BundleError(f"{path} holds no parity reference: {error!r:.300}; export the bundle anew") from error
        return reference

    def check(self) -> None:
        """Raise ValueError where cases, pools and floors do not fit together, or a floor is no limit at all."""
        if not self.cases:
            raise ValueError("it has no cases")
        names = [*(case.name for case in self.cases), *(block.name for block in self.blocks)]
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a case or a block has no name")
        for case in self.cases:
            pool = self.pools[case.pool]
            sizes = {len(array) for array in (*pool.inputs.values(), *pool.outputs.values())}
            if len(sizes) != 1 or not pool.inputs or not pool.outputs:
                raise ValueError(
                    f"the case {case.name!r} has no inputs, no outputs, or not as many of one as of the other"
                )
            if type(case.batch) is not int or not case.batch >= 1 or not case.rows or len(case.rows) % case.batch:
                raise ValueError(f"the case {case.name!r} has no whole batches")
            if not all(isinstance(row, int) and row in range(*sizes) for row in case.rows):
                raise ValueError(f"the case {case.name!r} has rows beyond its pool")
            if not all(_are_kept(pool, name) for name in pool.steps):
                raise ValueError(f"the case {case.name!r} has outputs at other steps than it says")
            if case.prefilled and not (isinstance(case.prefilled, int) and 0 < case.prefilled < pool.length):
                raise ValueError(f"the case {case.name!r} has not so many steps as are taken at once")
        self._check_floors()
        for block in self.blocks:
            if (self.block_outputs or {})[block.name].ndim != 3:
                raise ValueError(f"the block {block.name!r} has no frames")

    def _check_floors(self) -> None:
        largest = ILL_CONDITIONED[self.precision]
        for floor in [*(case.floor for case in self.cases), *(block.floor for block in self.blocks)]:
            fits = 0 <= floor.relative_l2 <= largest and floor.max_over_rms >= 0 and floor.max_abs >= 0
            if not fits or not np.isfinite(floor.max_over_rms):
                raise ValueError(f"a floor of {floor} is no limit")


def _are_kept(pool: Pool, name: str) -> bool:
    """Whether an output is at the steps that the pool names, and these are some of a sequence, up to its end."""
    steps, output = pool.steps[name], pool.outputs[name]
    if steps.dtype != np.int64 or steps.ndim != 1 or output.ndim < 2 or output.shape[1] != len(steps):
        return False
    if not len(steps) or steps[0] < 0 or not (np.diff(steps) > 0).all():
        return False
    return int(steps[-1]) + 1 in {array.shape[1] for array in pool.inputs.values() if array.ndim > 1}
