"""Moving averages for property tests, and their definition."""

import hypothesis.strategies as st
import numpy as np

from mega_deploy.exporters.ema import DecaySum, MovingAverage

decays = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.5, 0.99, 0.9999, 1 - 1e-9, 1e-9]))


@st.composite
def decay_sums(draw, channels=None):
    channels, states = channels or draw(st.integers(1, 4)), draw(st.integers(1, 5))
    decay = np.array(draw(st.lists(decays, min_size=channels * states, max_size=channels * states)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    return DecaySum(random.standard_normal((channels, states)), decay.reshape(channels, states))


@st.composite
def averages(draw, longest=80):
    """A moving average, in one direction or both, truncated or not, and frames [batch, channels, seq_len] for it."""
    past = draw(decay_sums())
    channels, length = len(past.decay), draw(st.integers(1, longest))
    future = draw(st.none() | decay_sums(channels))
    truncation = draw(st.none() | st.integers(0, longest + 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    return MovingAverage(past, future, truncation), random.standard_normal((draw(st.integers(1, 3)), channels, length))


def recurrence(ema: MovingAverage, x: np.ndarray) -> np.ndarray:
    """The definition: h <- decay h + x, read out by the weights; what is older than the truncation is left out.

    x: [batch, channels, seq_len], float64; so is the result.
    """
    y = one_side(ema.past, x, ema.truncation)
    return y if ema.future is None else y + one_side(ema.future, x[..., ::-1], ema.truncation)[..., ::-1]


def one_side(side: DecaySum, x: np.ndarray, truncation: int | None) -> np.ndarray:
    out = np.zeros_like(x)
    if truncation is None:
        state = np.zeros((len(x), *side.decay.shape))
        for t in range(x.shape[-1]):
            state = side.decay * state + x[..., t, None]
            out[..., t] = (side.weight * state).sum(-1)
        return out
    for lag in range(min(truncation, x.shape[-1])):
        out[..., lag:] += (side.weight * side.decay**lag).sum(1)[:, None] * x[..., : x.shape[-1] - lag]
    return out
