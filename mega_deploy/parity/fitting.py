"""Whether a parity reference is of the very model that is compared with it: looked at before anything is run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.parity.reference import MAX_REFERENCE_BYTES, Case, Pool, Reference
from mega_deploy.signature import Range, Signature, TensorSpec

# A case may name a row of its pool again and again: so many calls, and so much memory, are the most that it may take.
# Those that an export records have some dozens of calls, of streams as many for each step, and half of the memory.
MAX_CALLS = 1 << 16
MAX_STEPS = 1 << 22
MAX_CASE_BYTES = MAX_REFERENCE_BYTES


def check_fits(reference: Reference, signature: Signature, *, stepped: bool) -> None:
    """Refuse a reference whose inputs and outputs are not the signature's, or whose cases ask for too much.

    Args:
        reference: as a bundle holds it.
        signature: of the form that it is of; of a stream for whole sequences.
        stepped: whether each step is a call.

    Raises:
        ValueError: naming the pool or case, and what is wrong.
    """
    for name, pool in reference.pools.items():
        try:
            _check_pool(pool, signature)
        except ValueError as error:
            raise ValueError(f"the pool {name!r}: {error}") from error
    calls = sum(
        len(case.rows) // case.batch * (reference.pools[case.pool].length if stepped else 1) for case in reference.cases
    )
    most = MAX_STEPS if stepped else MAX_CALLS
    if calls > most:
        raise ValueError(f"its cases ask for {calls} calls, where {most} are the most")
    for case in reference.cases:
        if (size := _bytes(case, reference.pools[case.pool])) > MAX_CASE_BYTES:
            raise ValueError(f"the case {case.name!r} takes {size} bytes, where {MAX_CASE_BYTES} are the most")
    for name, array in (reference.block_outputs or {}).items():
        if array.dtype.kind != "f":
            raise ValueError(f"the block {name!r} is of {array.dtype}, not of numbers")


def _check_pool(pool: Pool, signature: Signature) -> None:
    sizes: dict[str, int] = {}
    for specs, arrays in ((signature.inputs, pool.inputs), (signature.outputs, pool.outputs)):
        if unknown := arrays.keys() - {spec.name for spec in specs}:
            raise ValueError(f"this bundle has no {min(unknown)!r:.80}")
        for spec in specs:
            if spec.name in arrays:
                _check_array(spec, arrays[spec.name], sizes, pool.steps.get(spec.name))
            elif spec.default is None:
                raise ValueError(f"{spec.name!r} is missing")
    for name, array in pool.outputs.items():
        if array.dtype.kind != "f":
            raise ValueError(f"the output {name!r} is of {array.dtype}, not of numbers")


def _check_array(spec: TensorSpec, array: Array, sizes: dict[str, int], steps: Array | None) -> None:
    """Hold the axes behind the rows against a spec; those of one name are of one size, noted in `sizes`."""
    shape = list(array.shape)
    if steps is not None and len(shape) > 1:
        shape[1] = int(steps[-1]) + 1
    fits = len(shape) == len(spec.dims)
    for axis in range(1, len(spec.dims) if fits else 0):
        size, dim = shape[axis], spec.dims[axis]
        fits = fits and (dim.min <= size <= dim.max if isinstance(dim, Range) else size == dim)
        if spec.axes:
            fits = fits and sizes.setdefault(spec.axes[axis], size) == size
    if not fits:
        raise ValueError(f"{spec.name!r} is {shape}, where the bundle has {spec}")


def _bytes(case: Case, pool: Pool) -> int:
    """What the inputs and outputs of a case's rows take."""
    arrays: Mapping[str, Array] = {**pool.inputs, **pool.outputs}
    return len(case.rows) * sum(math.prod(array.shape[1:]) * np.dtype(np.float64).itemsize for array in arrays.values())
