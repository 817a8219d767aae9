"""The exponential moving average as a convolution, and its simplest lowering: the convolution itself.

A moving average whose state has N values per channel is the convolution y = k * x with the kernel
k[t] = sum_n weight_n decay_n^t, which is known at export (Edifice: N = 1, weight 1 - a, decay a; arXiv 2209.10655,
equations 5 and 6: weight alpha eta beta, decay 1 - alpha delta). A bidirectional one adds a second kernel that runs
against time; both see the present. A truncated one forgets what is older than so many frames.

A lowering is what a graph holds instead of the recurrence: a frozen dataclass with its constants, whose nodes
exporters.ema.nodes writes. `Kernel`, here, is one convolution, whose work grows with the number of its taps;
`Blocked`, in exporters.ema.blocks, is matrix products, whose work does not. Both are linear in the length and serve a
range of lengths as well as a single one. exporters.ema.lowering chooses.

Constants are computed in float64. Powers of a decay q lose t roundings of q at most, so that decays of 1 - 1e-9 are as
good as those of 0.5; it is in float32 that 1 - q must be handed on by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mega_deploy.arrays import Float64Array
from mega_deploy.errors import OptionError

FLOAT32_HALF_ULP = 2.0**-24
"""Half a unit in the last place of 1.0: what float32 cannot tell from nothing beside a sum of that size."""


@dataclass(frozen=True)
class DecaySum:
    """A convolution kernel in closed form: k[t] = sum_n weight_n decay_n^t for every channel, float64."""

    weight: Float64Array
    """[channels, N]."""
    decay: Float64Array
    """[channels, N], each in [0, 1]."""

    def taps(self, length: int) -> Float64Array:
        """k[0], ..., k[length - 1]: [channels, length]."""
        # decay^(a B + b) = decay^(a B) decay^b: a matrix product instead of channels * N * length powers.
        stride = math.isqrt(length - 1) + 1
        coarse = self.weight[:, None, :] * self.decay[:, None, :] ** (stride * np.arange(stride)[:, None])
        fine = self.decay[:, :, None] ** np.arange(stride)
        taps: Float64Array = (coarse @ fine).reshape(len(self.weight), -1)[:, :length]
        return taps


@dataclass(frozen=True)
class MovingAverage:
    """y_t = sum_s past[s] x_(t - s) + sum_s future[s] x_(t + s), where s runs from 0 in both sums."""

    past: DecaySum
    future: DecaySum | None = None
    """The second kernel of a bidirectional one."""
    truncation: int | None = None
    """Taps of each kernel that count, frames; None: all."""

    def __post_init__(self) -> None:
        if self.truncation is not None and self.truncation < 0:
            raise OptionError(
                f"a moving average cannot be truncated to {self.truncation} frames; None means not at all"
            )

    @property
    def sides(self) -> tuple[DecaySum, ...]:
        """The kernels: past, and future where there is one."""
        return (self.past,) if self.future is None else (self.past, self.future)

    def taps(self, side: DecaySum, length: int) -> Float64Array:
        """A side's kernel, with zeros where it is truncated: [channels, length]."""
        taps = side.taps(length)
        if self.truncation is not None:
            taps[:, self.truncation :] = 0.0
        return taps


@dataclass(frozen=True)
class Kernel:
    """One depthwise convolution over the window, with the first taps of the kernels."""

    taps: Float64Array
    """[channels, ahead + T]: those of the future from the farthest to the nearest, the present's, those of the past."""
    ahead: int
    """Taps of the future."""
    bound: float
    """The largest share, over the channels, of a kernel's L1 norm within the window that lies beyond its taps: an
    output is off by at most this share times that norm times max|x|. 0 where nothing is cut."""

    def to_json(self) -> dict[str, float]:
        """What the manifest says of the lowering."""
        return {"taps": self.taps.shape[1], "bound": self.bound}


def lower_to_kernel(ema: MovingAverage, length: int, cut: float = FLOAT32_HALF_ULP) -> Kernel:
    """The kernel for windows of up to `length` frames, cut where its tails no longer matter.

    Args:
        ema: the moving average.
        length: frames of the longest window.
        cut: how much of each channel's L1 norm a tail may hold; 0 keeps every tap that is not exactly zero.
    """
    past, *future = (_cut(ema.taps(side, length), cut) for side in ema.sides)
    taps, bound = past
    ahead = 0
    for others, share in future:
        ahead, bound = others.shape[1] - 1, max(bound, share)
        taps = np.pad(taps, [(0, 0), (ahead, 0)])
        taps[:, : ahead + 1] += others[:, ::-1]
    return Kernel(taps, ahead, bound)


def _cut(taps: Float64Array, cut: float) -> tuple[Float64Array, float]:
    beyond = beyond_taps(taps)
    count = needed_taps(beyond, cut)
    return taps[:, :count], float(beyond[count])


def beyond_taps(taps: Float64Array) -> Float64Array:
    """[length + 1], falling: the largest share, over the channels, of the kernel's L1 norm that lies beyond t taps."""
    # The tail is summed from its small end, so that its size is exact to rounding even where it is far below the sum.
    tails = np.cumsum(np.abs(taps)[:, ::-1], axis=1)[:, ::-1]  # [channels, t]: L1 norm of k[t:]
    share = tails / np.where(tails[:, :1] > 0, tails[:, :1], 1.0)
    return np.append(share.max(axis=0), 0.0)


def needed_taps(beyond: Float64Array, cut: float) -> int:
    """The fewest taps, at least one, beyond which no more than `cut` lies."""
    return max(1, int(np.argmax(beyond <= cut)))
