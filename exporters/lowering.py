"""Which lowering a model's moving averages get, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mega_deploy.errors import OptionError
from mega_deploy.exporters.blocks import Blocked, lower_to_blocks
from mega_deploy.exporters.ema import FLOAT32_HALF_ULP, Kernel, MovingAverage, lower_to_kernel

BLOCK = 32
MOST_KERNEL_TAPS = 64
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
    kernels = tuple(lower_to_kernel(ema, length, cut) for ema in emas)
    mean = sum(kernel.taps.shape[1] for kernel in kernels) / max(1, len(kernels))
    reason = f"auto: {mean:.0f} taps a block on average; a convolution is taken up to {MOST_KERNEL_TAPS}"
    if asked == "kernel" or (asked == "auto" and mean <= MOST_KERNEL_TAPS):
        return Lowering("kernel", reason if asked == "auto" else "as asked", kernels)
    blocks = tuple(lower_to_blocks(ema, length, BLOCK, cut) for ema in emas)
    return Lowering("blocked", reason if asked == "auto" else "as asked", blocks)
