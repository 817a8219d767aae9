"""The moving average as a convolution: its closed form, where it may be cut, and which lowering is chosen."""

import hypothesis.strategies as st
import numpy as np
import pytest
from averages import averages, decay_sums, recurrence
from hypothesis import given, settings

from mega_deploy.errors import OptionError
from mega_deploy.exporters.ema.kernel import FLOAT32_HALF_ULP, DecaySum, Kernel, MovingAverage, lower_to_kernel
from mega_deploy.exporters.ema.lowering import best_block, blocks_cost, choose, kernel_cost


def convolve(kernel: Kernel, x: np.ndarray) -> np.ndarray:
    """x: [batch, channels, seq_len]."""
    length = x.shape[-1]
    taps = kernel.taps
    return np.stack([[np.convolve(u, k)[kernel.ahead :][:length] for u, k in zip(row, taps, strict=True)] for row in x])


def norms(ema: MovingAverage, length: int) -> np.ndarray:
    """L1 norms of the kernels of all sides together: [channels]."""
    return sum(np.abs(ema.taps(side, length)).sum(1) for side in ema.sides)


def rounding(ema: MovingAverage, x: np.ndarray) -> float:
    """What float64 may round off: x of size 1 or so, summed."""
    return 1e-14 * sum(np.abs(side.weight).sum() for side in ema.sides) * x.shape[-1] * np.abs(x).max()


@settings(max_examples=200, deadline=None)
@given(decay_sums(), st.integers(1, 200))
def test_taps_are_the_powers_of_the_decays(side, length):
    want = (side.weight[:, :, None] * side.decay[:, :, None] ** np.arange(length)).sum(1)
    np.testing.assert_allclose(side.taps(length), want, rtol=0, atol=1e-13 * np.abs(side.weight).sum())


@settings(max_examples=200, deadline=None)
@given(averages())
def test_the_uncut_kernel_is_the_recurrence(case):
    ema, x = case
    kernel = lower_to_kernel(ema, x.shape[-1], cut=0.0)
    assert kernel.bound == 0.0
    assert np.abs(convolve(kernel, x) - recurrence(ema, x)).max() <= rounding(ema, x)


@settings(max_examples=200, deadline=None)
@given(averages(), st.sampled_from([FLOAT32_HALF_ULP, 1e-3]))
def test_the_bound_holds_for_every_input(case, cut):
    ema, x = case
    kernel = lower_to_kernel(ema, x.shape[-1], cut)
    allowed = kernel.bound * norms(ema, x.shape[-1]) * np.abs(x).max() + rounding(ema, x)
    assert kernel.bound <= cut
    assert (np.abs(convolve(kernel, x) - recurrence(ema, x)).max((0, 2)) <= allowed).all()


@settings(max_examples=100, deadline=None)
@given(decay_sums(), st.integers(1, 80))
def test_no_shorter_kernel_would_do(side, length):
    count = lower_to_kernel(MovingAverage(side), length, cut=1e-3).taps.shape[1]
    taps = np.abs(side.taps(length))
    if count > 1:
        sums = taps.sum(1)
        shares = taps[:, count - 1 :].sum(1) / np.where(sums > 0, sums, 1)
        assert shares.max() > 1e-3 * (1 - 1e-12)


@pytest.mark.parametrize(("decay", "taps"), [(0.5, 24), (0.9, 158), (0.0, 1), (1.0, 256)])
def test_a_kernel_is_as_long_as_its_decay_asks(decay, taps):
    side = DecaySum(np.ones((1, 1)), np.full((1, 1), decay))
    assert lower_to_kernel(MovingAverage(side), 256).taps.shape == (1, taps)
    both = lower_to_kernel(MovingAverage(side, side, truncation=100), 256)
    assert both.taps.shape == (1, 2 * min(taps, 100) - 1) and both.ahead == min(taps, 100) - 1


def test_a_negative_truncation_is_refused_and_none_leaves_nothing_out():
    side = DecaySum(np.ones((1, 1)), np.full((1, 1), 0.5))
    with pytest.raises(OptionError, match="-1 frames"):
        MovingAverage(side, truncation=-1)
    assert not lower_to_kernel(MovingAverage(side, truncation=0), 8).taps.any()
    assert lower_to_kernel(MovingAverage(side), 8).taps.all()


def constant(decay: float, channels: int, states: int = 1, *, both: bool = False) -> MovingAverage:
    side = DecaySum(np.ones((channels, states)), np.full((channels, states), decay))
    return MovingAverage(side, side if both else None)


@pytest.mark.parametrize(
    ("decay", "channels", "length", "name"),
    [
        (0.99, 16, 60, "kernel"),
        (0.5, 16, 1024, "kernel"),
        (0.99, 128, 1024, "blocked"),
        (0.9999, 512, 16384, "blocked"),
    ],
)
def test_auto_takes_what_is_expected_to_be_faster_and_says_so(decay, channels, length, name):
    ema = constant(decay, channels)
    chosen = choose("auto", [ema, ema], length)
    assert chosen.name == name and "ms expected" in chosen.reason and len(chosen.blocks) == 2
    assert {choose(asked, [ema], length).reason for asked in ("kernel", "blocked")} == {"as asked"}


def test_an_unknown_lowering_is_refused():
    with pytest.raises(OptionError, match=r"magic.*auto, kernel, blocked"):
        choose("magic", [constant(0.5, 1)], 256)


def test_blocks_are_linear_in_the_length_and_convolutions_are_not():
    ema = constant(0.9999, 512, 16)
    blocks = [blocks_cost(ema, length, best_block(ema, length)) for length in (1024, 4096, 16384)]
    assert blocks[1] < 1.05 * 4 * blocks[0] and blocks[2] < 1.05 * 4 * blocks[1]
    assert kernel_cost(512, 4096, 4096) > 15 * kernel_cost(512, 1024, 1024)


def test_many_states_ask_for_longer_blocks():
    assert best_block(constant(0.9999, 512, 16, both=True), 16384) == 32
    assert best_block(constant(0.9999, 512, 64, both=True), 16384) > 32
    assert best_block(constant(0.9999, 512, 16), 20) == 20
