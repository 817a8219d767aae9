"""Moving averages for tests, their definition, and graphs of them."""

import hypothesis.strategies as st
import numpy as np
from onnxscript import ir

from mega_deploy.exporters.ema.kernel import DecaySum, MovingAverage
from mega_deploy.exporters.ema.nodes import moving_average
from mega_deploy.exporters.graph import Graph

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


def slow(channels: int, states: int, *, both: bool = False, truncation: int | None = None) -> MovingAverage:
    """Weights for outputs of size 1, and decays up to 0.9999."""
    random, sides = np.random.default_rng(0), []
    for _ in range(1 + both):
        decay = 1 - 10 ** random.uniform(-4, -0.5, (channels, states))
        decay[:, 0] = 0.9999
        sides.append(DecaySum(random.standard_normal(decay.shape) * np.sqrt(1 - decay**2), decay))
    return MovingAverage(sides[0], sides[1] if both else None, truncation)


def model(lowered, length: int, *, dynamic: bool = False, dtype=ir.DataType.DOUBLE) -> ir.Model:
    """x [batch, seq_len, channels] -> y, for windows of `length` frames or up to so many."""
    channels, graph = len(lowered.inside), Graph("average", dtype)
    shape = ["batch", "seq_len" if dynamic else length, channels]
    x = graph.input("x", shape)
    frames = graph.op.Shape(x, start=0, end=2) if dynamic else length
    y = moving_average(graph, graph.rows(x, channels), lowered, frames, length)
    graph.output(graph.windows(y, frames, channels), "y", shape)
    return graph.model()
