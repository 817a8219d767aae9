"""Intervals that hold what they promise on samples of known distributions, and labels for what is not quiet."""

import numpy as np
import pytest

from mega_deploy.bench.measure.statistics import change, drift, jitter, mean, noise, over_rounds, quantile, ratio


def rounds_of(random, rounds=10, samples=60, between=0.05, within=0.1, centre=2.0):
    """Log-normal calls around a level of each round's own: [rounds, samples]; their median is `centre`."""
    level = random.normal(0, between, (rounds, 1))
    return centre * np.exp(level + random.normal(0, within, (rounds, samples)))


def coverage(trials, estimate, truth):
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(trials):
        found = estimate(random)
        assert found.low <= found.value <= found.high
        hits += found.low <= truth <= found.high
    return hits / trials


def test_the_interval_of_a_quantile_holds_the_truth_though_rounds_differ():
    share = coverage(40, lambda random: over_rounds(rounds_of(random, samples=30), quantile(0.5)), 2.0)
    assert 0.83 <= share <= 1.0  # the bootstrap over ten rounds promises a little too much: about 92 of 100


def test_an_interval_over_samples_alone_would_not():
    """What whole rounds are resampled for: calls of one round are alike."""
    pooled = coverage(40, lambda random: over_rounds(rounds_of(random, samples=30).reshape(-1, 1), quantile(0.5)), 2.0)
    assert pooled < 0.7


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    samples = np.random.default_rng(1).normal(10, 1, (200, 50))
    found = over_rounds(samples, mean)
    assert found.value == pytest.approx(10, abs=0.05)
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(200 * 50), rel=0.2)


def test_samples_that_are_all_alike_have_no_interval():
    found = over_rounds([[3.0, 3.0]] * 5, quantile(0.9))
    assert (found.value, found.low, found.high) == (3.0, 3.0, 3.0)
    assert (ratio([[4.0]] * 7, [[2.0]] * 7).low, drift([[4.0]] * 7)) == (2.0, 0.0)


def test_the_interval_of_a_ratio_holds_the_truth_though_the_machine_changes():
    """Both contenders meet the same state of the machine in a round, which then cancels."""

    def estimate(random):
        state = np.exp(random.normal(0, 0.5, (10, 1)))
        return ratio(state * rounds_of(random, centre=3.0), state * rounds_of(random))

    assert coverage(100, estimate, 1.5) >= 0.9


@pytest.mark.parametrize(("rounds", "low", "high"), [(3, 1.0, 3.0), (5, 1.0, 5.0), (6, 1.0, 6.0), (10, 2.0, 9.0)])
def test_the_interval_of_a_ratio_is_of_order_statistics(rounds, low, high):
    """Of ten, the second and the ninth: the median lies between them with a probability of 1 - 22 / 1024."""
    found = ratio(
        [[value] for value in np.random.default_rng(0).permutation(np.arange(1.0, rounds + 1))], [[1.0]] * rounds
    )
    assert (found.low, found.high, found.value) == (low, high, (rounds + 1) / 2)


def test_a_change_between_runs_is_told_with_both_runs_doubt():
    assert coverage(40, lambda random: change(rounds_of(random), rounds_of(random, centre=2.2)), 1.1) >= 0.83


def test_a_trend_is_drift_and_scatter_is_not():
    random = np.random.default_rng(0)
    scatter = rounds_of(random, between=0.02)
    assert drift(scatter) == 0.0
    assert drift(scatter * np.linspace(1, 1.3, 10)[:, None]) == pytest.approx(0.26, abs=0.05)
    assert drift(np.ones((10, 5)) * np.linspace(1, 1.01, 10)[:, None]) == 0.0  # a trend that does not matter


def test_quiet_rounds_have_no_label_and_others_one_for_each_reason():
    random = np.random.default_rng(0)
    quiet = rounds_of(random, between=0.005, within=0.05)
    assert noise(quiet) == []
    assert [label.partition(":")[0] for label in noise(quiet, others=0.2, converged=False)] == ["busy", "cold"]
    assert noise(quiet * np.linspace(1, 0.8, 10)[:, None])[0].startswith("drift: p50 fell by ")
    unsteady = quiet * np.array([1, 1.4] * 5)[:, None]
    assert [label.partition(":")[0] for label in noise(unsteady)] == ["unsteady"]
    tail = quiet.copy()
    tail[:, :3] *= 5
    assert [label.partition(":")[0] for label in noise(tail)] == ["tail"]


def test_jitter_is_the_difference_between_a_call_and_the_one_before_it_within_a_round():
    assert jitter([[1.0, 2.0, 4.0], [9.0, 9.0, 9.0]]) == pytest.approx(0.75)
    assert jitter([[1.0], [9.0]]) == 0
