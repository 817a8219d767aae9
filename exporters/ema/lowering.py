"""Which lowering a model's moving averages get, and why: a model of what each costs, held against measurements.

The time of one window, in nanoseconds, with onnxruntime 1.32 on 2 cores (AMD EPYC, Zen 4, AVX-512). Fitted by hand to
the best of 48 alternating calls, on a machine that others used too, of 16 to 256 channels, 1 to 16 states in one
direction or both, 256 to 2048 frames, blocks of 16 to 128 frames and 24 to 192 taps. Between a convolution and blocks
of 32 frames it named the faster one wherever they differed by more than a fifth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mega_deploy.errors import OptionError
from mega_deploy.exporters.ema.blocks import MOST_DOUBLINGS, Blocked, lower_to_blocks
from mega_deploy.exporters.ema.carry import GROUP
from mega_deploy.exporters.ema.kernel import FLOAT32_HALF_ULP, Kernel, MovingAverage, lower_to_kernel

BLOCK, LONGER_BLOCKS = 32, (64, 128)
"""Frames of a block. 32 was the fastest, or within a fifth of it, for up to 16 states in each direction; a longer one
carries less and multiplies more, and is taken where it promises to be faster by WORTH."""
WORTH = 1.2

NODE = 800.0  # starting an operator, the written-out steps of the carry among them
# For each frame of each channel: the two transposes, and a tap of the convolution (0.02 to 0.09 over all those sizes).
MOVE, TAP = 0.5, 0.035
# For each frame of each channel: a multiply-add in a matrix product; calling it, over C; reading the constants, C^2
# over the length; for each state, what is carried, over C.
MULTIPLY, CALL, CONSTANT, CARRY = 0.02, 16.0, 0.26, 2.4

Lowered = Kernel | Blocked


@dataclass(frozen=True)
class Lowering:
    """A way to write the moving averages of a model, why it was chosen, and the constants of each block."""

    name: Literal["kernel", "blocked"]
    reason: str
    blocks: tuple[Lowered, ...]


def choose(asked: str, emas: Sequence[MovingAverage], length: int, cut: float = FLOAT32_HALF_ULP) -> Lowering:
    """The lowering of a model's moving averages, the same form for all of them.

    Args:
        asked: "kernel", "blocked", or "auto" for the one that is expected to be faster.
        emas: one for each block of the model.
        length: frames of the longest window.
        cut: as in `lower_to_kernel`.

    Raises:
        OptionError: there is no such lowering.
    """
    if asked not in ("auto", "kernel", "blocked"):
        raise OptionError(f"the moving average has no lowering {asked!r}; there are auto, kernel, blocked")
    if asked == "blocked":
        return Lowering("blocked", "as asked", _in_blocks(emas, length, cut))
    kernels = tuple(lower_to_kernel(ema, length, cut) for ema in emas)
    if asked == "kernel":
        return Lowering("kernel", "as asked", kernels)
    as_kernels = sum(kernel_cost(len(kernel.taps), kernel.taps.shape[1], length) for kernel in kernels)
    as_blocks = sum(blocks_cost(ema, length, best_block(ema, length)) for ema in emas)
    taps = sum(kernel.taps.shape[1] for kernel in kernels) / max(1, len(kernels))
    reason = (
        f"auto: {as_kernels / 1e6:.2g} ms expected for convolutions of {taps:.0f} taps on average, "
        f"{as_blocks / 1e6:.2g} ms in blocks"
    )
    if as_kernels <= as_blocks:
        return Lowering("kernel", reason, kernels)
    return Lowering("blocked", reason, _in_blocks(emas, length, cut))


def _in_blocks(emas: Sequence[MovingAverage], length: int, cut: float) -> tuple[Blocked, ...]:
    return tuple(lower_to_blocks(ema, length, best_block(ema, length), cut) for ema in emas)


def best_block(ema: MovingAverage, length: int) -> int:
    """Frames of a block for windows of `length` frames."""
    best = BLOCK
    for block in LONGER_BLOCKS:
        if blocks_cost(ema, length, block) * WORTH < blocks_cost(ema, length, best):
            best = block
    return min(best, length)


def kernel_cost(channels: int, taps: int, length: int) -> float:
    """Nanoseconds of a convolution."""
    return 3 * NODE + channels * length * (MOVE + TAP * taps)


def blocks_cost(ema: MovingAverage, length: int, block: int) -> float:
    """Nanoseconds of blocks that carry as far as the window is long."""
    size, sides = min(block, length), len(ema.sides)
    channels, states = ema.past.decay.shape
    behind = -(-length // size) - 1
    steps = 2 * min(behind, GROUP) if behind > 2**MOST_DOUBLINGS else 4 * min(behind, MOST_DOUBLINGS)
    carried = states * sides * (2 * MULTIPLY + CARRY / size) if behind else 0.0
    inside = MULTIPLY * size + CALL / size + CONSTANT * size * size / length
    nodes = 10 + (10 + steps) * sides * bool(behind)
    return nodes * NODE + channels * length * (MOVE + inside + carried)
