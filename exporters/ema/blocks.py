"""A moving average as matrix products within blocks of frames, and N states per channel carried between them.

Where u_k is block k of C frames, a row, for every channel:

    y_k = u_k T + h_k L,    h_k = sum_(j >= 1) decay^(C (j - 1)) s_(k - j),    s_k = u_k R

T is the Toeplitz matrix of the kernel within a block, s_k what block k leaves behind, h_k what all blocks before k
left, and L reads it out. The future is the same in the mirror: its T joins that of the past, the rest is a side of its
own.

A kernel that is truncated to t frames ends inside a block. Its h sums floor(t / C) blocks, and the one or two blocks
where it ends are set right by a matrix each, an `Edge`: nothing that was summed is subtracted again but the few taps of
a block, so that slow decays lose no digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mega_deploy.arrays import Float64Array
from mega_deploy.exporters.ema.kernel import FLOAT32_HALF_ULP, DecaySum, MovingAverage, beyond_taps, needed_taps

MOST_DOUBLINGS = 2
"""A sum of up to 2^2 blocks is made by doubling; beyond, the recurrence over all blocks costs less."""
SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Side:
    """What one direction of time carries from block to block."""

    states: Float64Array
    """R, [channels, C, N]."""
    readout: Float64Array
    """L, [channels, N, C]."""
    decay: Float64Array
    """How a state decays over a block, decay^C: [channels, N]."""
    span: int | None
    """Blocks that h sums; None: all there are."""
    ahead: bool
    """Whether it is the future's."""


@dataclass(frozen=True)
class Edge:
    """What the block `lag` blocks ago, or -lag ahead, adds to y by a matrix of its own: u_(k - lag) matrix."""

    lag: int
    matrix: Float64Array
    """[channels, C, C]."""


@dataclass(frozen=True)
class Blocked:
    """Blocks of C frames: a matrix inside each, and what is carried from one to the next."""

    inside: Float64Array
    """T, [channels, C, C]."""
    sides: tuple[Side, ...]
    """The directions that carry anything."""
    edges: tuple[Edge, ...]
    reach: int
    """Every output sees at least so many taps of each kernel."""
    bound: float
    """As in `Kernel`, for the taps beyond `reach`."""

    @property
    def block(self) -> int:
        """Steps of a block, C."""
        return self.inside.shape[2]

    def to_json(self) -> dict[str, float]:
        """What the manifest says of the lowering."""
        carried = sum(side.decay.shape[1] for side in self.sides)
        return {"taps": self.reach, "bound": self.bound, "block": self.block, "carried": carried}


def lower_to_blocks(ema: MovingAverage, length: int, block: int, cut: float = FLOAT32_HALF_ULP) -> Blocked:
    """The blocks for windows of up to `length` frames; nothing is carried farther than the kernels reach.

    Args:
        ema: the moving average.
        length: frames of the longest window.
        block: C; a shorter window is one block.
        cut: as in `lower_to_kernel`.
    """
    size = min(block, length)
    parts = [_lower_side(ema, side, length, size, cut, ahead=bool(index)) for index, side in enumerate(ema.sides)]
    return Blocked(
        inside=sum((part.inside for part in parts), np.zeros(())),
        sides=tuple(part.side for part in parts if part.side),
        edges=tuple(edge for part in parts for edge in part.edges),
        reach=min(part.reach for part in parts),
        bound=max(part.bound for part in parts),
    )


@dataclass(frozen=True)
class _Part:
    """One side's share of a Blocked."""

    inside: Float64Array
    side: Side | None
    edges: tuple[Edge, ...]
    reach: int
    bound: float


def _lower_side(ema: MovingAverage, side: DecaySum, length: int, size: int, cut: float, *, ahead: bool) -> _Part:
    taps = ema.taps(side, length)
    beyond = beyond_taps(taps)
    needed = needed_taps(beyond, cut)
    most = math.ceil(length / size) - 1  # blocks behind the last one
    behind = min(most, math.ceil((needed - 1) / size))
    # A truncation matters where the recurrence would bring back more than may be cut.
    excess = 0.0 if ema.truncation is None else _excess(side.taps(length), ema.truncation)
    truncation = None if excess <= cut else ema.truncation
    span: int | None = behind
    if truncation is not None:
        span = min(most, truncation // size)
    elif behind > 1 and math.ceil(math.log2(behind)) > MOST_DOUBLINGS:
        span = None
    exact = truncation is not None or span is None or span >= most
    reach = length if exact else 1 + size * (span or 0)  # of the first frame of a block
    edges = () if truncation is None else _edges(side, truncation, size, most)
    bound = max(float(beyond[reach]), 0.0 if truncation is not None else excess)
    position = np.arange(size)
    lag = position - position[:, None]  # [frame that is read, frame that is written]
    inside = np.where(lag >= 0, taps[:, np.abs(lag)], 0.0)
    carried = None
    if span != 0:
        carried = Side(
            states=normal(side.decay[:, None, :] ** (size - 1 - position)[:, None]),
            readout=normal((side.weight * side.decay)[:, :, None] * side.decay[:, :, None] ** position),
            decay=side.decay**size,
            span=span,
            ahead=False,
        )
    part = _Part(inside, carried, edges, reach, bound)
    return _mirrored(part) if ahead else part


def _excess(taps: Float64Array, truncation: int) -> float:
    """The largest share, over the channels, that the taps from `truncation` on have in the L1 norm of those before."""
    kept, rest = (np.abs(part).sum(axis=1) for part in (taps[:, :truncation], taps[:, truncation:]))
    share = np.divide(rest, kept, out=np.full_like(rest, np.inf), where=kept > 0)
    return float(np.where(rest > 0, share, 0.0).max())


def _edges(side: DecaySum, truncation: int, size: int, most: int) -> tuple[Edge, ...]:
    """The difference between the taps that count and those of truncation // size whole blocks."""
    span, position = min(most, truncation // size), np.arange(size)
    taps = side.taps((span + 3) * size)
    edges = []
    for block in range(max(1, span), min(span + 1, most) + 1):
        lag = block * size + position - position[:, None]
        wrong = (lag < truncation).astype(float) - float(block <= span)
        matrix = wrong * taps[:, lag]
        if matrix.any():
            edges.append(Edge(block, matrix))
    return tuple(edges)


def _mirrored(part: _Part) -> _Part:
    """The same, against time."""
    side = part.side
    if side:
        side = Side(side.states[:, ::-1], side.readout[:, :, ::-1], side.decay, side.span, ahead=True)
    edges = tuple(Edge(-edge.lag, edge.matrix[:, ::-1, ::-1]) for edge in part.edges)
    return _Part(part.inside[:, ::-1, ::-1], side, edges, part.reach, part.bound)


def normal(constants: Float64Array) -> Float64Array:
    """The constants, with zeros for those that would be subnormal in float32, which processors are slow at."""
    return np.where(np.abs(constants) < SMALLEST_NORMAL, 0.0, constants)
