"""The steps at which a parity reference keeps what a model gives, where all of them would be too much to keep.

The scores of a large vocabulary over a long sequence take gigabytes. They are held against the trained model at some
steps, the whole vocabulary at each: the first, the last, both sides of chunks' ends, and random ones between them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import OptionError
from mega_deploy.parity.reference import MAX_REFERENCE_BYTES
from mega_deploy.signature import SEQUENCE_AXES, Range, Signature, largest

Pools = Mapping[str, Mapping[str, Array]]
"""Inputs by the pool's name and the input's."""
Kept = dict[str, dict[str, Array]]
"""By a pool's name and an output's: the steps that are kept, int64, ascending. What is not named is kept whole."""
Handovers = Mapping[str, Iterable[int]]
"""By a pool's name: the first step behind each."""

LARGEST_SAMPLE = 1 << 25
"""Numbers that are kept of sampled outputs: 256 MB in float64, of which each pool has the same share."""
LEAST = 8
"""Steps that are kept of each sequence, however many sequences there are."""
LARGEST_OUTPUT = 1 << 30
"""Numbers of an output in one run of the deployed model, which gives every step: 4 GB in float32."""


def kept_steps(pools: Pools, signature: Signature, chunk: int | None, seed: int, handovers: Handovers) -> Kept:
    """The steps at which outputs are kept; empty where a reference holds all of them.

    Args:
        pools: of inputs.
        signature: of the model.
        chunk: steps whose attention sees each other; None for all.
        seed: of the random steps.
        handovers: between what a stream takes at once and what it takes step by step; kept like chunks' ends, and all.

    Raises:
        OptionError: they are too many to hold even so; the message says what goes.
    """
    whole = {name: _outputs(inputs, signature) for name, inputs in pools.items()}
    inputs = sum(array.nbytes for pool in pools.values() for array in pool.values())
    if inputs + 8 * sum(steps * width for pool in whole.values() for steps, width in pool.values()) <= (
        MAX_REFERENCE_BYTES
    ):
        return {}
    _check_room(inputs, sum(width for pool in whole.values() for _, width in pool.values()))
    _check_run(signature, max(steps for pool in whole.values() for steps, _ in pool.values()))
    share, random = LARGEST_SAMPLE // sum(map(len, whole.values())), np.random.default_rng(seed)
    return {
        name: {
            output: _some(steps, most, chunk, random, handovers.get(name, ()))
            for output, (steps, width) in pool.items()
            if steps > (most := max(LEAST, share // width))
        }
        for name, pool in whole.items()
    }


def describe(kept: Kept, pools: Pools, signature: Signature) -> list[str]:
    """Which steps are kept, in a phrase for each output and length."""
    counts = defaultdict(list)
    for name, pool in kept.items():
        for output, steps in pool.items():
            counts[output, _outputs(pools[name], signature)[output][0]].append(len(steps))
    return [
        f"{output} at {' to '.join(map(str, sorted({min(some), max(some)})))} of {length} steps (the first, the last, "
        "ends of chunks, random ones)"
        for (output, length), some in counts.items()
    ]


def output_width(signature: Signature) -> int:
    """Numbers that the largest output has for each step of a row; at least 1."""
    return max(
        math.prod(
            largest(dim)
            for axis, dim in zip(spec.axes, spec.dims, strict=True)
            if axis not in ("batch", *SEQUENCE_AXES)
        )
        for spec in signature.outputs
    )


def _outputs(inputs: Mapping[str, Array], signature: Signature) -> dict[str, tuple[int, int]]:
    """By name: the steps of an output, 1 where it has none, and its numbers at each of them, of all rows together."""
    sizes = {
        axis: size
        for spec in signature.inputs
        if spec.name in inputs
        for axis, size in zip(spec.axes, inputs[spec.name].shape, strict=True)
    }
    found = {}
    for spec in signature.outputs:
        dims = {axis: sizes.get(axis, dim) for axis, dim in zip(spec.axes, spec.dims, strict=True)}
        steps = math.prod(largest(dim) for axis, dim in dims.items() if axis in SEQUENCE_AXES)
        found[spec.name] = steps, math.prod(map(largest, dims.values())) // steps
    return found


def _check_room(inputs: int, each: int) -> None:
    """Refuse inputs of so many bytes, and so many numbers of outputs at each step, that no reference may hold."""
    least = inputs + 8 * 2 * LEAST * each  # what must be kept may be more than LEAST
    if least > MAX_REFERENCE_BYTES:
        raise OptionError(
            "what the model takes, and gives at a few steps of each sequence, is too much to be held against it: "
            f"{least} bytes of at most {MAX_REFERENCE_BYTES}; take fewer samples, or export for shorter sequences"
        )


def _check_run(signature: Signature, steps: int) -> None:
    """Refuse an output of so many steps that is too large for one run of the smallest batch."""
    rows = batch.min if isinstance(batch := signature.dim("batch"), Range) else batch
    fits = LARGEST_OUTPUT // (rows * output_width(signature))
    if steps > fits:
        raise OptionError(
            f"what the model gives for {steps} steps is too much to be held against it, more than "
            f"{4 * LARGEST_OUTPUT >> 30} GiB in one run; export for {fits} steps at most"
        )


def _some(length: int, most: int, chunk: int | None, random: np.random.Generator, handovers: Iterable[int]) -> Array:
    """`most` of so many steps; of the chunks' ends, evenly spread, as many as leave room for others."""
    ends = np.arange(chunk, length, chunk) if chunk else np.zeros(0, np.int64)
    spread = np.linspace(0, len(ends) - 1, min(len(ends), 1 + (most - LEAST) // 3)).round().astype(np.int64)
    behind = np.array([*ends[spread], *handovers], np.int64)
    kept = np.unique([0, length - 1, *behind - 1, *behind])
    others = np.setdiff1d(np.arange(length), kept)
    more = random.choice(others, max(0, min(most - len(kept), len(others))), replace=False)
    return np.sort(np.concatenate([kept, more])).astype(np.int64)
