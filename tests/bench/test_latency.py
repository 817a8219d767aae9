"""Quantiles of known samples, and a warm-up that ends when calls get no faster."""

import numpy as np
import pytest

from mega_deploy.bench.measure import latency


class Clock:
    """Time that passes only when a call says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


def test_latency_gives_the_quantiles_in_milliseconds():
    seconds = np.random.default_rng(0).permutation(np.linspace(0, 1, 1001))
    got = latency.Latency.of(seconds)
    assert (got.p50_ms, got.p90_ms, got.p99_ms, got.mean_ms, got.samples) == pytest.approx((500, 900, 990, 500, 1001))


def test_every_sample_is_the_time_of_one_call(clock):
    durations = iter([0.5, 0.25, 2.0])

    def call():
        clock.now += next(durations)

    assert latency.sample(call, 3) == [0.5, 0.25, 2.0]


@pytest.mark.parametrize("slow_calls", [0, 40, 400])
def test_the_warm_up_lasts_as_long_as_calls_get_faster(clock, slow_calls):
    count = 0

    def call():
        nonlocal count
        count += 1
        clock.now += 0.01 * (1 + max(0, slow_calls - count) / 40)

    warm = latency.warm_up(call, limit=1000.0)
    assert warm.converged and warm.call_seconds == pytest.approx(0.01, rel=0.02)
    assert slow_calls <= count == warm.calls <= slow_calls + 6 * latency.STRETCH_CALLS


def test_a_warm_up_that_does_not_end_says_so(clock):
    duration = 1.0

    def call():
        nonlocal duration
        duration *= 0.98
        clock.now += duration

    warm = latency.warm_up(call, limit=30.0)
    assert not warm.converged and 30.0 <= warm.seconds < 40.0


def test_fast_calls_are_warmed_up_by_time_and_not_by_number(clock):
    def call():
        clock.now += 1e-4

    assert latency.warm_up(call).seconds == pytest.approx(5 * latency.STRETCH_SECONDS, rel=0.05)
