"""How the exponential moving average is lowered: what a graph holds instead of the recurrence.

A moving average whose state has N values per channel is the causal convolution y = k * x with the kernel
k[t] = sum_n weight_n decay_n^t, which is known at export (Edifice: N = 1, weight 1 - a, decay a; arXiv 2209.10655,
equations 5 and 6: weight alpha eta beta, decay 1 - alpha delta).

A lowering is a frozen dataclass that holds its constants; exporters.graph writes its nodes. `Kernel` is a convolution,
whose work grows with the number of its taps; `Blocked` is matrix products within blocks of frames and a carry between
them, whose work does not. Both are linear in the length and serve a range of lengths as well as a single one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mega_deploy.errors import OptionError

Array = npt.NDArray[np.float64]

FLOAT32_HALF_ULP = 2.0**-24
"""Half a unit in the last place of 1.0: what float32 cannot tell from nothing beside a sum of that size."""
BLOCK = 32
"""Frames of a block. Measured with onnxruntime 1.32 on 2 cores (AVX-512), 128 and 256 channels, 60 to 4096 frames: of
16, 32, 64 and 128 this one was the fastest or near it; 128 fell behind by up to fifteen times."""
MOST_KERNEL_TAPS = 128
"""Up to so many taps the convolution is taken. Its time grows with the taps, that of the blocks does not; on one thread
of that machine they meet at 130 to 280 taps, for 8 to 128 channels, 256 to 4096 frames, and batches of 1 and 8."""


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

    def to_json(self) -> dict[str, float]:
        """For the manifest."""
        return {"taps": self.taps.shape[1], "bound": self.bound}


@dataclass(frozen=True)
class Blocked:
    """Blocks of C frames: a Toeplitz matrix inside each, and N states per channel carried from one to the next.

    Where u_k are the frames of block k: y_k = T u_k + readout h_(k-1), with h_k = decay^C h_(k-1) + R u_k. The carry is
    a scan in log2 of the blocks that it spans: h_k <- h_k + decay^(C 2^s) h_(k - 2^s), for s = 0, 1, ...
    """

    inside: Array
    """[channels, C + N, C]: T, k[i - j] on and below the diagonal, over R, decay^(C - 1 - j); [channels, C, C], T
    alone, where nothing is carried."""
    readout: Array
    """[channels, C, N]: weight decay^(i + 1); N is 0 where nothing is carried."""
    carry: tuple[Array, ...]
    """For each step of the scan [channels, N]: decay^(C 2^s)."""
    reach: int
    """Every output sees at least so many taps of the kernel."""
    bound: float
    """As Kernel's, of what lies beyond `reach`."""

    @property
    def block(self) -> int:
        """C."""
        return self.inside.shape[2]

    def to_json(self) -> dict[str, float]:
        """For the manifest."""
        return {"taps": self.reach, "bound": self.bound, "block": self.block}


def lower_to_kernel(ema: DecaySum, length: int, cut: float = FLOAT32_HALF_ULP) -> Kernel:
    """The kernel for windows of up to `length` frames, cut where its tail no longer matters.

    Args:
        ema: the moving average.
        length: frames of the longest window.
        cut: how much of each channel's L1 norm the tail may hold; 0 keeps every tap that is not exactly zero.
    """
    taps, beyond = ema.taps(length), _beyond(ema, length)
    count = _needed(beyond, cut)
    return Kernel(taps=taps[:, :count], bound=float(beyond[count]))


def lower_to_blocks(ema: DecaySum, length: int, cut: float = FLOAT32_HALF_ULP, block: int | None = None) -> Blocked:
    """The blocks for windows of up to `length` frames; the carry spans no more blocks than the kernel needs.

    Args:
        ema: the moving average.
        length: frames of the longest window.
        cut: as in `lower_to_kernel`.
        block: C; BLOCK, or the length where that is shorter, by default.
    """
    size = min(block or BLOCK, length)
    beyond = _beyond(ema, length)
    # A window has so many blocks behind its last one, and the kernel reaches into so many of them.
    most = math.ceil(length / size) - 1
    behind = min(most, math.ceil((_needed(beyond, cut) - 1) / size))
    steps = math.ceil(math.log2(behind)) if behind else 0
    spanned = 2**steps if behind else 0
    reach = length if spanned >= most else 1 + size * spanned  # of the first frame of a block
    position = np.arange(size)
    lag = position[:, None] - position  # [C, C]
    toeplitz = np.where(lag >= 0, ema.taps(size)[:, np.abs(lag)], 0.0)
    states = ema.decay[:, :, None] ** (size - 1 - position)  # [channels, N, C]
    readout = (ema.weight * ema.decay)[:, None, :] * ema.decay[:, None, :] ** position[:, None]
    return Blocked(
        inside=np.concatenate([toeplitz, states], axis=1) if behind else toeplitz,
        readout=readout if behind else readout[:, :, :0],
        carry=tuple(ema.decay ** (size * 2**step) for step in range(steps)),
        reach=reach,
        bound=float(beyond[reach]),
    )


def _beyond(ema: DecaySum, length: int) -> Array:
    """[length + 1], falling: the largest share, over the channels, of the kernel's L1 norm that lies beyond t taps."""
    taps = ema.taps(length)
    # The tail is summed from its small end, so that its size is exact to rounding even where it is far below the sum.
    tails = np.cumsum(np.abs(taps)[:, ::-1], axis=1)[:, ::-1]  # [channels, t]: L1 norm of k[t:]
    share = tails / np.where(tails[:, :1] > 0, tails[:, :1], 1.0)
    return np.append(share.max(axis=0), 0.0)


def _needed(beyond: Array, cut: float) -> int:
    """The fewest taps, at least one, beyond which no more than `cut` lies."""
    return max(1, int(np.argmax(beyond <= cut)))


Lowered = Kernel | Blocked


@dataclass(frozen=True)
class Lowering:
    """A way to write the moving averages of a model, why it was chosen, and the constants of each block."""

    name: Literal["kernel", "blocked"]
    reason: str
    blocks: tuple[Lowered, ...]


def choose(asked: str, emas: Sequence[DecaySum], length: int, cut: float = FLOAT32_HALF_ULP) -> Lowering:
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
    blocks = tuple(lower_to_blocks(ema, length, cut) for ema in emas)
    return Lowering("blocked", reason if asked == "auto" else "as asked", blocks)
