"""The convolution kernel is the recurrence, and what is cut off it is bounded."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mega_deploy.exporters.ema import FLOAT32_HALF_ULP, DecaySum, lower_to_kernel

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
