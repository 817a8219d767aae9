"""How the exponential moving average is lowered: what a graph holds instead of the recurrence.

A moving average whose state has N values per channel is the causal convolution y = k * x with the kernel
k[t] = sum_n weight_n decay_n^t, which is known at export (Edifice: N = 1, weight 1 - a, decay a; arXiv 2209.10655,
equations 5 and 6: weight alpha eta beta, decay 1 - alpha delta).

A lowering is a frozen dataclass that holds its constants; exporters.graph writes its nodes. `Kernel` serves short
static lengths, with work that grows with the square of the length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mega_deploy.errors import OptionError

Array = npt.NDArray[np.float64]

FLOAT32_HALF_ULP = 2.0**-24
"""Half a unit in the last place of 1.0: what float32 cannot tell from nothing beside a sum of that size."""


@dataclass(frozen=True)
class DecaySum:
    """A convolution kernel in closed form: k[t] = sum_n weight_n decay_n^t for every channel, float64."""

    weight: Array
    """[channels, N]."""
    decay: Array
    """[channels, N], each in [0, 1]."""

    def taps(self, length: int) -> Array:
        """k[0], ..., k[length - 1]: [channels, length]."""
        powers = self.decay[:, :, None] ** np.arange(length)
        return np.einsum("cn,cnt->ct", self.weight, powers)


@dataclass(frozen=True)
class Kernel:
    """One depthwise convolution over the window, with the first taps of the kernel."""

    taps: Array
    """[channels, T]: k[0], ..., k[T - 1]; T is at most the length of the window."""
    bound: float
    """The largest share, over the channels, of a kernel's L1 norm within the window that lies beyond T: an output is
    off by at most this share times that norm times max|x|. 0 where nothing is cut."""


def lower_to_kernel(ema: DecaySum, length: int, cut: float = FLOAT32_HALF_ULP) -> Kernel:
    """The kernel for windows of `length` frames, cut where its tail no longer matters.

    Args:
        ema: the moving average.
        length: frames of a window.
        cut: how much of each channel's L1 norm the tail may hold; 0 keeps every tap that is not exactly zero.
    """
    taps = ema.taps(length)
    # The tail is summed from its small end, so that its size is exact to rounding even where it is far below the sum.
    tails = np.cumsum(np.abs(taps)[:, ::-1], axis=1)[:, ::-1]  # [channels, t]: L1 norm of k[t:]
    share = tails / np.where(tails[:, :1] > 0, tails[:, :1], 1.0)
    beyond = np.append(share.max(axis=0), 0.0)  # [length + 1], falling: the worst channel's share beyond t taps
    count = max(1, int(np.argmax(beyond <= cut)))
    return Kernel(taps=taps[:, :count], bound=float(beyond[count]))


@dataclass(frozen=True)
class Lowering:
    """A way to write the moving average, and why it was chosen."""

    name: Literal["kernel"]
    reason: str
    lower: Callable[[DecaySum, int, float], Kernel]


def choose(asked: str, length: int) -> Lowering:
    """The lowering for windows of `length` frames.

    Raises:
        OptionError: there is no such lowering.
    """
    if asked not in ("auto", "kernel"):
        raise OptionError(f"the moving average has no lowering {asked!r}; there are auto, kernel")
    auto = f"auto: the length is static, {length} frames, and this version has no other lowering for it"
    return Lowering("kernel", auto if asked == "auto" else "as asked", lower_to_kernel)
