"""The convolution kernel and the blocks are the recurrence, and what is cut off is bounded."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mega_deploy.errors import OptionError
from mega_deploy.exporters.ema import (
    FLOAT32_HALF_ULP,
    MOST_KERNEL_TAPS,
    Blocked,
    DecaySum,
    choose,
    lower_to_blocks,
    lower_to_kernel,
)

decays = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.5, 1 - 1e-9, 1e-9]))


def recurrence(ema: DecaySum, u: np.ndarray) -> np.ndarray:
    """The definition: h <- decay h + u, read out by the weights. u: [channels, seq_len]."""
    state = np.zeros_like(ema.decay)
    out = np.empty_like(u)
    for t in range(u.shape[1]):
        state = ema.decay * state + u[:, t : t + 1]
        out[:, t] = (ema.weight * state).sum(1)
    return out


def convolve(taps: np.ndarray, u: np.ndarray) -> np.ndarray:
    return np.stack([np.convolve(x, k)[: u.shape[1]] for x, k in zip(u, taps, strict=True)])


@st.composite
def cases(draw):
    channels, states, length = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 80))
    decay = np.array(draw(st.lists(decays, min_size=channels * states, max_size=channels * states)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    weight = random.standard_normal((channels, states))
    return DecaySum(weight, decay.reshape(channels, states)), random.standard_normal((channels, length))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_the_uncut_kernel_is_the_recurrence(case):
    ema, u = case
    kernel = lower_to_kernel(ema, u.shape[1], cut=0.0)
    want = recurrence(ema, u)
    scale = np.abs(ema.weight).sum() * u.shape[1]
    assert kernel.bound == 0.0
    assert np.abs(convolve(kernel.taps, u) - want).max() <= 1e-14 * scale


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from([FLOAT32_HALF_ULP, 1e-3]))
def test_the_bound_holds_for_every_input(case, cut):
    ema, u = case
    kernel = lower_to_kernel(ema, u.shape[1], cut)
    norms = np.abs(ema.taps(u.shape[1])).sum(1)
    allowed = kernel.bound * norms * np.abs(u).max() + 1e-13 * np.abs(ema.weight).sum() * u.shape[1]
    assert kernel.bound <= cut
    assert (np.abs(convolve(kernel.taps, u) - recurrence(ema, u)).max(1) <= allowed).all()


@settings(max_examples=100, deadline=None)
@given(cases())
def test_no_shorter_kernel_would_do(case):
    ema, u = case
    kernel = lower_to_kernel(ema, u.shape[1], cut=1e-3)
    count = kernel.taps.shape[1]
    taps = np.abs(ema.taps(u.shape[1]))
    if count > 1:
        norms = taps.sum(1)
        shares = taps[:, count - 1 :].sum(1) / np.where(norms > 0, norms, 1)
        assert shares.max() > 1e-3 * (1 - 1e-12)


@pytest.mark.parametrize(("decay", "taps"), [(0.5, 24), (0.9, 158), (0.0, 1), (1.0, 256)])
def test_a_kernel_is_as_long_as_its_decay_asks(decay, taps):
    ema = DecaySum(np.ones((1, 1)), np.full((1, 1), decay))
    assert lower_to_kernel(ema, 256).taps.shape == (1, taps)


def in_blocks(lowered: Blocked, u: np.ndarray) -> np.ndarray:
    """What the graph computes of the blocks, block by block and step by step of the carry."""
    (channels, length), size = u.shape, lowered.block
    x = np.pad(u, [(0, 0), (0, -length % size)]).reshape(channels, -1, size)
    y = np.einsum("cij,ckj->cki", lowered.inside, x)
    y, states = y[:, :, :size], y[:, :, size:]  # [channels, blocks, N]
    for step, factor in enumerate(lowered.carry):
        states = states + factor[:, None] * np.pad(states, [(0, 0), (2**step, 0), (0, 0)])[:, : -(2**step)]
    before = np.pad(states, [(0, 0), (1, 0), (0, 0)])[:, :-1]
    if lowered.readout.shape[2]:
        y = y + np.einsum("cin,ckn->cki", lowered.readout, before)
    return y.reshape(channels, -1)[:, :length]


@settings(max_examples=200, deadline=None)
@given(cases(), st.integers(1, 20))
def test_uncut_blocks_are_the_recurrence(case, size):
    ema, u = case
    lowered = lower_to_blocks(ema, u.shape[1], cut=0.0, block=size)
    assert lowered.bound == 0.0
    assert np.abs(in_blocks(lowered, u) - recurrence(ema, u)).max() <= 1e-13 * np.abs(ema.weight).sum() * u.shape[1]


@settings(max_examples=200, deadline=None)
@given(cases(), st.integers(1, 20), st.sampled_from([FLOAT32_HALF_ULP, 1e-3]), st.integers(1, 80))
def test_the_bound_of_blocks_holds_for_every_shorter_window_too(case, size, cut, frames):
    ema, u = case
    lowered = lower_to_blocks(ema, u.shape[1], cut, block=size)
    norms = np.abs(ema.taps(u.shape[1])).sum(1)
    allowed = lowered.bound * norms * np.abs(u).max() + 1e-13 * np.abs(ema.weight).sum() * u.shape[1]
    assert lowered.bound <= cut
    u = u[:, :frames]
    assert (np.abs(in_blocks(lowered, u) - recurrence(ema, u)).max(1) <= allowed).all()


def test_the_carry_spans_no_more_blocks_than_the_kernel_reaches():
    ema = DecaySum(np.ones((1, 1)), np.full((1, 1), 0.9))  # 158 taps: five blocks of 32 behind
    assert [len(lower_to_blocks(ema, length).carry) for length in (32, 64, 96, 160, 4096)] == [0, 0, 1, 2, 3]
    assert lower_to_blocks(ema, 32).readout.shape == (1, 32, 0)


@pytest.mark.parametrize(("decay", "name"), [(0.5, "kernel"), (0.9, "blocked")])
def test_auto_takes_the_convolution_up_to_a_number_of_taps(decay, name):
    ema = DecaySum(np.ones((1, 1)), np.full((1, 1), decay))
    chosen = choose("auto", [ema, ema], 256)
    assert chosen.name == name and str(MOST_KERNEL_TAPS) in chosen.reason and chosen.reason.startswith("auto")
    assert {choose(asked, [ema], 256).reason for asked in ("kernel", "blocked")} == {"as asked"}
    with pytest.raises(OptionError, match="magic"):
        choose("magic", [ema], 256)
