"""What samples say, and how sure that is: intervals, ratios, drift and noise.

Calls that follow each other are alike, so that single samples would promise too much: everything is drawn from whole
rounds. A quantile's interval is the percentile bootstrap over rounds; a ratio is taken round by round, and its interval
is that of the rounds' median, from the binomial distribution alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mega_deploy.arrays import Float64Array
from mega_deploy.errors import require

CONFIDENCE = 0.95
RESAMPLES = 1000
AT_ONCE = 10_000_000
"""Numbers of resamples that are in memory together."""
# What is said to be drift: a trend that chance gives in fewer than 5 of 100 runs, and that matters.
DRIFT_CHANCE = 0.05
DRIFT_SHARE = 0.03
# Rounds differ: the half of them in the middle spreads over more than this share of their median.
SPREAD_SHARE = 0.05
# Others used more than this share of the cores while the contender worked.
OTHERS_SHARE = 0.05
# The slowest of a hundred calls takes so many times the median.
TAIL_RATIO = 2.0


@dataclass(frozen=True)
class Estimate:
    """A value, and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def over_rounds(rounds: Sequence[Sequence[float]], statistic: Callable[[Float64Array], Float64Array]) -> Estimate:
    """A statistic of all samples, with its bootstrap interval over whole rounds.

    Args:
        rounds: samples of each round, equally many: [rounds, samples].
        statistic: from samples [..., n] to [...].
    """
    samples = np.asarray(rounds)
    value = float(statistic(samples.ravel()))

    def of_rounds(indices: Any, axis: int) -> Float64Array:
        chosen = samples[np.moveaxis(indices, axis, -1).astype(int)]  # [..., rounds, samples]
        return statistic(chosen.reshape(*chosen.shape[:-2], -1))

    if np.ptp(statistic(samples)) == 0:
        return Estimate(value, value, value)
    interval = _scipy_stats().bootstrap(
        (np.arange(len(samples)),),
        of_rounds,
        axis=-1,
        n_resamples=RESAMPLES,
        batch=max(1, AT_ONCE // samples.size),
        method="percentile",
        confidence_level=CONFIDENCE,
        rng=0,
    )
    low, high = interval.confidence_interval
    return Estimate(value, min(float(low), value), max(float(high), value))


def quantile(q: float) -> Callable[[Float64Array], Float64Array]:
    """The statistic for `over_rounds` that is a quantile."""
    return lambda samples: np.asarray(np.quantile(samples, q, axis=-1))


def mean(samples: Float64Array) -> Float64Array:
    """The statistic for `over_rounds` that is the mean."""
    return np.asarray(samples.mean(-1))


def ratio(numerator: Sequence[Sequence[float]], denominator: Sequence[Sequence[float]]) -> Estimate:
    """How many times the p50 of one contender is that of another, round by round: the rounds' median.

    With fewer than 6 rounds no interval of the median reaches 95 %; then it spans all of them.
    """
    ratios = np.median(np.asarray(numerator), -1) / np.median(np.asarray(denominator), -1)
    low, high = _scipy_stats().quantile_test(ratios, q=float(np.median(ratios)), p=0.5).confidence_interval(CONFIDENCE)
    low, high = np.where(np.isfinite([low, high]), [low, high], [ratios.min(), ratios.max()])
    return Estimate(float(np.median(ratios)), float(low), float(high))


def change(old: Sequence[Sequence[float]], new: Sequence[Sequence[float]]) -> Estimate:
    """How many times the p50 of one run is that of an earlier one; the two share no rounds, so each is resampled."""
    random = np.random.default_rng(0)

    def medians(rounds: Sequence[Sequence[float]]) -> Float64Array:
        samples = np.asarray(rounds)
        chosen = samples[random.integers(len(samples), size=(RESAMPLES, len(samples)))]
        return np.asarray(np.median(chosen.reshape(RESAMPLES, -1), -1))

    value = float(np.median(np.asarray(new)) / np.median(np.asarray(old)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians(new) / medians(old), (tail, 1 - tail))
    return Estimate(value, min(float(low), value), max(float(high), value))


def jitter(rounds: Sequence[Sequence[float]]) -> float:
    """How much a call's time differs from that of the call before it in the same round, on average."""
    return float(np.abs(np.diff(np.asarray(rounds), axis=-1)).mean()) if len(rounds[0]) > 1 else 0.0


def drift(rounds: Sequence[Sequence[float]]) -> float:
    """By what share the p50 rose from the first round to the last, where that is a trend (Kendall's tau); else 0."""
    medians = np.median(np.asarray(rounds), -1)
    stats = _scipy_stats()
    turn = np.arange(len(medians))
    if np.ptp(medians) == 0 or stats.kendalltau(turn, medians).pvalue >= DRIFT_CHANCE:
        return 0.0
    share = stats.theilslopes(medians, turn).slope * turn[-1] / float(np.median(medians))
    return float(share) if abs(share) >= DRIFT_SHARE else 0.0


def noise(rounds: Sequence[Sequence[float]], *, others: float = 0.0, converged: bool = True) -> list[str]:
    """What makes a row doubtful, in words; nothing for a quiet one.

    Args:
        rounds: the samples.
        others: share of the cores that other processes used meanwhile.
        converged: whether the warm-up did.
    """
    medians = np.median(np.asarray(rounds), -1)
    found = []
    if share := drift(rounds):
        found.append(f"drift: p50 {'rose' if share > 0 else 'fell'} by {abs(share):.0%} over the rounds")
    quarter, three_quarters = np.quantile(medians, (0.25, 0.75))
    if (spread := (three_quarters - quarter) / np.median(medians)) > SPREAD_SHARE:
        found.append(f"unsteady: the middle half of the rounds spreads over {spread:.0%}")
    if (tail := np.quantile(rounds, 0.99) / np.median(np.asarray(rounds))) > TAIL_RATIO:
        found.append(f"tail: p99 is {tail:.1f} x p50")
    if others > OTHERS_SHARE:
        found.append(f"busy: others used {others:.0%} of the cores")
    if not converged:
        found.append("cold: still getting faster when the warm-up ended")
    return found


def _scipy_stats() -> Any:
    return require("scipy.stats", "bench", "the benchmark")
