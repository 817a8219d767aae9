"""The parity reference of a model: what the trained form gives in float64, and the noise floor of its own precision."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mega_deploy.config import Precision
from mega_deploy.errors import InputError, OptionError, QualityGateError
from mega_deploy.models.edifice import Mega
from mega_deploy.parity import (
    ILL_CONDITIONED,
    UNIT_ROUNDOFF,
    BlockFloor,
    Case,
    Error,
    Reference,
    batches,
    measure,
    median,
    worst,
)
from mega_deploy.signature import Range

Array = npt.NDArray[Any]
Cases = dict[str, tuple[list[int], int]]
"""By name: rows of the pool, and how many go through the model at once."""

SAMPLES = 8
NEARBY = 4
LARGEST_POOL = 1 << 28
ROWS_AT_ONCE = 16
# Beyond this a batch repeats windows that smaller ones hold, and takes memory and time without end.
LARGEST_BATCH = 256
# Adversarial windows of a kind: up to four, for one alone has an accidental floor, but no more numbers than this.
ADVERSARIAL_ELEMENTS = 1 << 18
# Of the residual streams the last frames are kept: enough to find the first bad block, and a bound on a bundle's size.
BLOCK_FRAMES = 256
AUTOCAST = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class _Pool:
    """Windows of one or several lengths."""

    windows: Array
    """[rows, longest, features]; zeros behind the end of shorter ones."""
    frames: tuple[int, ...]
    """Of each row."""

    def take(self, rows: Sequence[int], array: Array | None = None) -> Array:
        """Rows of one length, cut to it; of `array`, if given, which has a row for each window."""
        found = (self.windows if array is None else array)[list(rows)]
        return found[:, : self.frames[rows[0]]] if found.ndim == 3 else found


def record(
    model: Mega,
    block_names: Sequence[str],
    batch: Range,
    seq_len: int | Range,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    precision: Precision = "float32",
    kept: Sequence[str] = (),
) -> Reference:
    """The reference for random and adversarial inputs and several batches; of a range of lengths several, too.

    Args:
        model: in eval mode; it is left as it is.
        block_names: what the graph calls the residual stream behind each block.
        batch: sizes that the bundle takes.
        seq_len: frames of the windows that it takes.
        samples: random windows, at least 1.
        seed: of the random windows.
        precision: in which the noise floor is taken: for float16 and bfloat16 under autocast; for int8, which the
            trained form does not have, in float32.
        kept: modules of the trained form, by name, that stay float32 for the floor: the islands that were asked for.
    """
    longest = seq_len.max if isinstance(seq_len, Range) else seq_len
    elements = samples * longest * model.config.embed_dim
    if elements > LARGEST_POOL:
        raise OptionError(f"samples {samples} make {elements} numbers, more than {LARGEST_POOL}; ask for fewer")
    pool, cases = _cases(seq_len, model.config.embed_dim, batch, samples, seed)
    return _measure(model, pool, cases, block_names, precision=precision, kept=kept)


def record_for(
    model: Mega,
    block_names: Sequence[str],
    frames: Array,
    name: str = "given inputs",
    *,
    precision: Precision = "float32",
    kept: Sequence[str] = (),
) -> Reference:
    """The reference for inputs of one's own, [batch, seq_len, embed_dim], as a single case.

    Args:
        model: in eval mode.
        block_names: what the graph calls the residual stream behind each block.
        frames: float32.
        name: of the case.
        precision: see `record`.
        kept: see `record`.
    """
    pool = _Pool(frames, (frames.shape[1],) * len(frames))
    cases = {name: (list(range(len(frames))), len(frames))}
    return _measure(model, pool, cases, block_names, precision=precision, kept=kept)


def _cases(seq_len: int | Range, features: int, batch: Range, samples: int, seed: int) -> tuple[_Pool, Cases]:
    """A pool of windows, and the cases made of them: all kinds at the usual length, random ones at others."""
    random = np.random.default_rng(seed)
    length, longest = (seq_len.opt, seq_len.max) if isinstance(seq_len, Range) else (seq_len, seq_len)
    count = min(4, max(1, ADVERSARIAL_ELEMENTS // (longest * features)))
    normal = random.standard_normal((count, length, features))
    half = np.repeat([-1.0, 1.0], [length // 2, length - length // 2])[:, None]
    pools = {
        "random": random.standard_normal((samples, length, features)),
        "zeros": np.zeros((1, length, features)),
        "constant": np.broadcast_to(normal[:, :1], normal.shape),
        "huge (1e4)": 1e4 * normal,
        "tiny (1e-4)": 1e-4 * normal,
        "one-hot": np.eye(features)[random.integers(0, features, (count, length))],
        "a step": half * normal[:, :1],
    }
    for other in _other_lengths(seq_len):
        pools[f"random, {other} frames"] = random.standard_normal((2, other, features))
    cases: Cases = {}
    padded: list[Array] = []
    frames: list[int] = []
    for name, windows in pools.items():
        rows = list(range(len(frames), len(frames) + len(windows)))
        frames += [windows.shape[1]] * len(windows)
        padded.append(np.pad(windows, [(0, 0), (0, longest - windows.shape[1]), (0, 0)]).astype(np.float32))
        sizes = {min(max(len(rows), batch.min), batch.max)}
        if name == "random":
            largest = max(batch.min, min(batch.max, LARGEST_BATCH))
            sizes = {batch.min, min(batch.opt, largest), largest} | ({3} if batch.min <= 3 <= largest else set())
        for size in sorted(sizes):
            # Whole batches, in which every window stands at least once.
            cases[f"{name}, batch {size}"] = _cycle(rows, size * math.ceil(len(rows) / size)), size
    return _Pool(np.concatenate(padded), tuple(frames)), cases


def _other_lengths(seq_len: int | Range) -> list[int]:
    """Of a range: the shortest, the longest and an odd one between, besides the usual length."""
    if not isinstance(seq_len, Range):
        return []
    between = min(seq_len.max, (seq_len.opt + seq_len.max) // 2 | 1)
    return sorted({seq_len.min, between, seq_len.max} - {seq_len.opt})


def _cycle(rows: list[int], size: int) -> list[int]:
    """`size` rows, taken round and round."""
    return [rows[index % len(rows)] for index in range(size)]


def _measure(
    model: Mega,
    pool: _Pool,
    cases: Cases,
    block_names: Sequence[str],
    *,
    precision: Precision,
    kept: Sequence[str],
) -> Reference:
    exact = copy.deepcopy(model).double().eval()
    single = copy.deepcopy(model).float().eval()
    _keep(single, kept)
    outputs = _outputs(exact, pool)
    if not np.isfinite(outputs).all():
        raise InputError("the trained model gives NaN or infinite features for ordinary inputs; it cannot be deployed")
    floors = _floors(single, pool, outputs, cases, precision)
    usable = {name: floor for name, floor in floors.items() if floor.relative_l2 <= ILL_CONDITIONED[precision]}
    if not all(name in usable for name in cases if name.startswith("random")) or not usable:
        name, floor = max(floors.items(), key=lambda item: item[1].relative_l2)
        raise QualityGateError(
            f"the trained model itself is off by {floor.relative_l2:.1e} in {_own(precision)} in case "
            f'"{name}": it is too ill-conditioned for any deployment to be proven equal to it'
        )
    usual = median(list(usable.values()))
    measured = tuple(
        Case(name, tuple(cases[name][0]), cases[name][1], worst([floor, usual]), _fewer(pool, cases[name][0]))
        for name, floor in usable.items()
    )
    first = list(measured[0].rows)[: measured[0].batch]
    blocks = [
        (got[:, -BLOCK_FRAMES:], want[:, -BLOCK_FRAMES:])
        for got, want in zip(
            _run(single, pool.take(first), precision)[1], _run(exact, pool.take(first))[1], strict=True
        )
    ]
    if model.config.output == "last" and blocks:
        blocks[-1] = (blocks[-1][0][:, -1:], blocks[-1][1][:, -1:])  # the graph computes no more of the last block
    return Reference(
        inputs={"frames": pool.windows},
        outputs={"features": outputs},
        cases=measured,
        blocks=tuple(
            BlockFloor(name, measure(got, want)) for name, (got, want) in zip(block_names, blocks, strict=False)
        ),
        block_outputs={name: want for name, (_, want) in zip(block_names, blocks, strict=False)},
        precision=precision,
        kept=tuple(kept),
        left_out=tuple(name for name in floors if name not in usable),
    )


def _outputs(exact: Mega, pool: _Pool) -> Array:
    """What the model gives for each window, with zeros behind the end of shorter ones where it gives a sequence."""
    parts = []
    for frames, group in itertools.groupby(range(len(pool.frames)), lambda row: pool.frames[row]):
        for rows in batches(list(group), ROWS_AT_ONCE):
            output = _run(exact, pool.take(rows))[0]
            missing = pool.windows.shape[1] - frames if output.ndim == 3 else 0
            parts.append(np.pad(output, [(0, 0), (0, missing), (0, 0)][: output.ndim]))
    return np.concatenate(parts)


def _fewer(pool: _Pool, rows: Sequence[int]) -> int | None:
    """How many frames these windows have, if fewer than the pool's longest."""
    frames = pool.frames[rows[0]]
    return None if frames == pool.windows.shape[1] else frames


def _keep(model: Mega, names: Sequence[str]) -> None:
    """Take modules, with all in them, out of autocast; the name of a folded layer, which none has, does nothing."""
    for name, module in model.named_modules():
        if any(f"{name}.".startswith(f"{kept}.") for kept in names):
            module.forward = _without_autocast(module.forward)


def _without_autocast(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def in_float32(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return forward(x.float())

    return in_float32


def _own(precision: Precision) -> str:
    """The precision that the trained form has for it."""
    return precision if precision in AUTOCAST else "float32"


def _floors(single: Mega, pool: _Pool, outputs: Array, cases: Cases, precision: Precision) -> dict[str, Error]:
    """The noise floor of each case."""
    if precision not in AUTOCAST:
        return {name: _floor(single, pool, outputs, *case, precision=precision) for name, case in cases.items()}
    # Which windows share a batch changes float32's last places and nothing that shows here; but PyTorch takes long for
    # half precision on a CPU, so that each window is run in one batch only.
    distinct = {name: tuple(sorted(set(rows))) for name, (rows, _) in cases.items()}
    measured = {
        rows: _floor(single, pool, outputs, list(rows), min(len(rows), ROWS_AT_ONCE), precision=precision)
        for rows in set(distinct.values())
    }
    return {name: measured[rows] for name, rows in distinct.items()}


def _floor(single: Mega, pool: _Pool, outputs: Array, rows: list[int], size: int, *, precision: Precision) -> Error:
    """The worst error of the trained form in its own precision, on a case and on inputs a last place away from it.

    One run alone may come near float64 by luck, and then no other implementation would be allowed what rounding costs.
    """
    random = np.random.default_rng(0)
    # Of a lower precision half a last place: what the trained form itself rounds its inputs by.
    last_place = np.float32(max(2.0**-23, UNIT_ROUNDOFF[_own(precision)]))
    windows, want = pool.take(rows), pool.take(rows, outputs)
    nearby = [
        windows,
        *(windows * (1 + last_place * random.integers(-1, 2, windows.shape, np.int8)) for _ in range(NEARBY)),
    ]
    parts = list(batches(range(len(rows)), size))
    return worst(
        [
            measure(np.concatenate([_run(single, inputs[part], precision)[0] for part in parts]), want)
            for inputs in nearby
        ]
    )


@torch.no_grad()
def _run(model: Mega, frames: Array, precision: Precision = "float32") -> tuple[Array, list[Array]]:
    """The output, and the residual stream behind each block [batch, seq_len, hidden_size].

    Args:
        model: in float32 or float64.
        frames: [batch, seq_len, embed_dim].
        precision: float16 and bfloat16 are those of autocast; otherwise the model's own holds.
    """
    streams: list[Array] = []
    hooks = [
        block.register_forward_hook(lambda _module, _inputs, output: streams.append(_numpy(output)))
        for block in model.blocks
    ]
    dtype = next(model.parameters()).dtype
    lower = AUTOCAST.get(precision)
    context: AbstractContextManager[Any] = torch.autocast("cpu", lower) if lower else nullcontext()
    try:
        with context:
            output = model(torch.from_numpy(frames).to(dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return _numpy(output), streams


def _numpy(tensor: torch.Tensor) -> Array:
    """An array of at least float32: numpy has no bfloat16."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).numpy()
