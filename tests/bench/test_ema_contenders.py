"""The moving average's contenders compute the same thing, in processes of their own."""

import json
import subprocess
import sys

import numpy as np
import pytest
from averages import recurrence

from mega_deploy.bench.measure import statistics
from mega_deploy.bench.suites.averages import BLOCKED, CONTENDERS, Task, build, convolve
from mega_deploy.bench.suites.ema import TOLERANCE, figures
from mega_deploy.errors import OptionError


@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_errors_are_measured_against_is_the_recurrence(bidirectional):
    average = Task(channels=3, states=2, seq_len=50, bidirectional=bidirectional).average
    x = np.random.default_rng(0).standard_normal((2, 3, 50))
    np.testing.assert_allclose(convolve(average, x), recurrence(average, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", ["rows", "channels"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("contender", CONTENDERS)
def test_every_contender_is_the_moving_average(contender, bidirectional, layout):
    task = Task(channels=3, states=2, seq_len=200, batch=2, bidirectional=bidirectional, layout=layout, threads=1)
    x = np.random.default_rng(0).standard_normal((2, 3, 200)).astype(np.float32)
    want = convolve(task.average, x)
    if layout == "rows":
        x, want = (np.ascontiguousarray(a.transpose(0, 2, 1)).reshape(400, 3) for a in (x, want))
    got = build(contender, task, x)()
    assert got.shape == want.shape
    assert np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)


def test_an_unknown_contender_is_refused():
    with pytest.raises(OptionError, match=r"abacus.*blocked"):
        build("abacus", Task(1, 1, 8), np.zeros((8, 1), np.float32))


def test_the_command_gives_every_contender_and_its_ratio():
    command = [
        sys.executable,
        "-m",
        "mega_deploy.bench.ema",
        "--channels",
        "4",
        "--states",
        "2",
        "--seq-len",
        "300",
    ]
    command += ["--rounds", "3", "--turn", "0", "--without", "conv", "--without", "conv-1d", "--json"]
    results = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [result["contender"] for result in results] == [BLOCKED, "torch-fft"]
    for result in results:
        assert result["error"] < 1e-6 and result["latency"]["samples"] == 9
        for ratio in (result["ratio"], result["processor_ratio"]):
            assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert results[0]["ratio"] == results[0]["processor_ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_ratios_are_taken_round_by_round():
    found = statistics.ratio([[2.0], [40.0], [9.0]], [[1.0], [10.0], [3.0]])
    assert found == statistics.Estimate(3.0, 2.0, 4.0)


def test_each_figure_compares_with_the_blocks_of_its_own_size():
    for figure in figures(threads=1):
        (first, task), *others = figure.entrants
        assert first == BLOCKED and others and task.threads == 1
        assert all(other == task for _, other in others) != figure.per_frame
