"""Quantiles of known samples, and contenders that are what they say."""

import numpy as np
import pytest
import torch

import mega_deploy as md
from mega_deploy.bench import latency
from mega_deploy.bench.compare import compare
from mega_deploy.bench.contenders import available, build
from mega_deploy.errors import OptionError
from mega_deploy.models.edifice import Mega


class Clock:
    """Time that passes only when a call says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def test_latency_gives_the_quantiles_in_milliseconds():
    seconds = np.random.default_rng(0).permutation(np.linspace(0, 1, 1001))
    got = latency.Latency.of(seconds)
    assert (got.p50_ms, got.p90_ms, got.p99_ms, got.mean_ms, got.samples) == pytest.approx((500, 900, 990, 500, 1001))


def test_every_sample_is_the_time_of_one_call(monkeypatch):
    clock, durations = Clock(), iter([0.5, 0.25, 2.0])
    monkeypatch.setattr(latency, "time", clock)

    def call():
        clock.now += next(durations)

    assert latency.sample(call, 3) == [0.5, 0.25, 2.0]


@pytest.mark.parametrize(("duration", "calls"), [(1.0, latency.WARM_UP_CALLS), (latency.WARM_UP_SECONDS / 40, 40)])
def test_the_warm_up_takes_its_calls_and_its_time(monkeypatch, duration, calls):
    clock, count = Clock(), 0
    monkeypatch.setattr(latency, "time", clock)

    def call():
        nonlocal count
        count += 1
        clock.now += duration

    latency.warm_up(call)
    assert count == pytest.approx(calls, abs=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(0)
    model = Mega.build(
        embed_dim=4, hidden_size=8, ema_dim=2, num_layers=1, window_size=3, laplace_attention=True
    ).eval()
    return md.export(model, tmp_path_factory.mktemp("bench") / "tiny.mega")


def test_contenders_run_side_by_side_in_their_own_processes(bundle):
    results = compare(bundle.path, 2, rounds=3, samples=4, threads=1)
    assert [result.contender for result in results] == list(available())
    assert all(
        result.latency.samples == 12 and result.ratio_low <= result.ratio <= result.ratio_high for result in results
    )
    assert results[0].ratio == results[0].ratio_low == results[0].ratio_high == 1.0


def test_an_unknown_contender_is_refused(bundle):
    with pytest.raises(OptionError, match="abacus"):
        build("abacus", bundle, np.zeros((1, 3, 4), np.float32), 1)
