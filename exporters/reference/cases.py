"""The inputs of a parity reference: random and adversarial ones, in several lengths and batches.

A family of models says what kinds of inputs it has, as functions that draw rows of a length; all kinds are drawn at the
usual length, random ones at others as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import OptionError
from mega_deploy.exporters.reference.kept_steps import LEAST
from mega_deploy.parity.reference import MAX_REFERENCE_BYTES
from mega_deploy.signature import LARGEST_SIZE, SEQUENCE_AXES, Range, Signature, largest, usual

Inputs = dict[str, Array]
"""Arrays by name: [rows, ...]."""
Kinds = Mapping[str, Callable[[int, int], Inputs]]
"""By name: draws so many rows of such a length; RANDOM is one of them."""
Cases = dict[str, tuple[str, list[int], int]]
"""By name: a pool, rows of it, and how many go through the model at once."""

RANDOM = "random"
LARGEST_POOL = 1 << 28
# Beyond this a batch repeats inputs that smaller ones hold, and takes memory and time without end.
LARGEST_BATCH = 256
# Numbers of an activation, or of attention's scores, that a batch may come to: 256 MB in float32.
LARGEST_ACTIVATION = 1 << 26
# Adversarial rows of a kind: up to four, for one alone has an accidental floor, but no more numbers than this.
ADVERSARIAL_ELEMENTS = 1 << 18


def make_cases(
    kinds: Kinds, signature: Signature, row_width: Callable[[int], int], samples: int, most: int
) -> tuple[dict[str, Inputs], Cases]:
    """Pools of inputs by name, and the cases that are made of them.

    Args:
        kinds: of inputs.
        signature: of the model.
        row_width: numbers that a model holds at once for each step of a row of so many steps.
        samples: random rows of the usual length, at least 1.
        most: rows of a batch, and adversarial ones of a kind; at least 1.

    Raises:
        OptionError: so many samples are too much to hold.
    """
    batch, lengths = signature.dim("batch"), signature.dim(*SEQUENCE_AXES)
    assert isinstance(batch, Range)
    longest = largest(lengths)
    elements = samples * _row_elements(signature, LEAST)
    if elements > LARGEST_POOL:
        remedy = "ask for fewer" if samples > 1 else "export for shorter windows"
        raise OptionError(f"samples {samples} make {elements} numbers, more than {LARGEST_POOL}; {remedy}")
    few = min(4, most, max(1, ADVERSARIAL_ELEMENTS // _row_elements(signature)))
    pools = {name: draw(samples if name == RANDOM else few, usual(lengths)) for name, draw in kinds.items()}
    for other in _other_lengths(lengths):
        pools[f"{RANDOM}, length {other}"] = kinds[RANDOM](2, other)
    fits = LARGEST_ACTIVATION // max(longest * row_width(longest), _row_elements(signature))
    most = max(batch.min, min(batch.max, LARGEST_BATCH, fits, most))
    cases: Cases = {}
    for name, inputs in pools.items():
        count = len(next(iter(inputs.values())))
        sizes = {min(max(count, batch.min), most)}
        if name == RANDOM:
            sizes = {batch.min, min(batch.opt, most), most} | ({3} if batch.min <= 3 <= most else set())
        for size in sorted(sizes):
            # Whole batches, in which every row stands at least once.
            cases[f"{name}, batch {size}"] = name, _cycle(count, size * math.ceil(count / size)), size
    return pools, cases


def frame_kinds(name: str, features: int, random: np.random.Generator) -> Kinds:
    """Real-valued windows [rows, length, features] as the only input."""

    def normal(rows: int, length: int) -> Array:
        return random.standard_normal((rows, length, features))

    def step(rows: int, length: int) -> Array:
        return np.repeat([-1.0, 1.0], [length // 2, length - length // 2])[:, None] * normal(rows, 1)

    windows: dict[str, Callable[[int, int], Array]] = {
        RANDOM: normal,
        "zeros": lambda rows, length: np.zeros((1, length, features)),
        "constant": lambda rows, length: np.repeat(normal(rows, 1), length, axis=1),
        "huge (1e4)": lambda rows, length: 1e4 * normal(rows, length),
        "tiny (1e-4)": lambda rows, length: 1e-4 * normal(rows, length),
        "one-hot": lambda rows, length: np.eye(features)[random.integers(0, features, (rows, length))],
        "a step": step,
    }
    return {kind: _as_inputs(name, draw) for kind, draw in windows.items()}


def _as_inputs(name: str, draw: Callable[[int, int], Array]) -> Callable[[int, int], Inputs]:
    return lambda rows, length: {name: draw(rows, length).astype(np.float32)}


def rows_that_fit(signature: Signature) -> int:
    """Random rows that leave a reference room for the other kinds of inputs."""
    return MAX_REFERENCE_BYTES // (2 * 8 * _row_elements(signature))


def _row_elements(signature: Signature, kept: int = LARGEST_SIZE) -> int:
    """Numbers that a row takes in the inputs and outputs of a reference, at most; of outputs at so many steps."""
    return sum(math.prod(map(largest, spec.dims[1:])) for spec in signature.inputs) + sum(
        math.prod(
            min(largest(dim), kept) if axis in SEQUENCE_AXES else largest(dim)
            for axis, dim in zip(spec.axes[1:], spec.dims[1:], strict=True)
        )
        for spec in signature.outputs
    )


def _other_lengths(lengths: int | Range) -> list[int]:
    """The shortest length of a range, the longest and an odd one between, besides the usual one."""
    if not isinstance(lengths, Range):
        return []
    between = min(lengths.max, (lengths.opt + lengths.max) // 2 | 1)
    return sorted({lengths.min, between, lengths.max} - {lengths.opt})


def _cycle(count: int, size: int) -> list[int]:
    """`size` rows out of `count`, taken round and round."""
    return [index % count for index in range(size)]


def steps_of(inputs: Mapping[str, Array]) -> int:
    """Steps of each row; tokens may stand in several sequences of one."""
    first = next(iter(inputs.values()))
    return int(first.shape[-1 if first.dtype.kind in "iu" else 1])


def rows_of(arrays: Mapping[str, Array], rows: list[int]) -> Inputs:
    """Some rows of each array."""
    return {name: array[rows] for name, array in arrays.items()}
