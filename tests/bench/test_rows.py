"""Rows from samples: ratios within a round, shares of the limit, and what others did meanwhile."""

import numpy as np
import pytest

from mega_deploy.bench.contenders.task import Task
from mega_deploy.bench.measure.rounds import Timed
from mega_deploy.bench.report.rows import limit_row, ratio_rows, result_row

ABOUT = {"form": "window", "config": {"precision": "int8"}, "batch": 4, "seq_len": 3}
LIMIT = {"gemm_floor_ms": 1.0, "compute_floor_ms": 0.5, "memory_floor_ms": 0.1}
PROFILE = {"nodes": 3, "products": 1, "nodes_ms": 1.0, "by_op": [], "by_block": []}


def timed(contender, scale, gpu=None):
    warm = {"converged": True, "call_seconds": 1.0}
    details = {"peak_rss_mb": 9.0, "load_ms": 1.0, "cold_start_ms": 2.0, "relative_error": 1e-7, "settings": ""}
    details |= {"warm_up": warm, "gpu": gpu}
    one = Timed(Task(contender, "b", "x.mega", 4, 3, (0, 1), ""), None, details, 20)
    for state in np.linspace(1, 1.02, 7):  # of the machine, the same for all in a round
        seconds = (scale * state * np.linspace(0.99, 1.01, 20) / 1e3).tolist()
        one.add({"seconds": seconds, "processor_seconds": 0.07, "cpu_seconds": 1.5, "wall_seconds": 1.0}, 1.8)
    return one


def test_ratios_are_of_ours_against_each_peer_of_the_same_device():
    contenders = [timed("mega-deploy", 2.0), timed("torch-eager", 5.0), timed("torch-compile", 1.0, gpu={"name": "g"})]
    (row,) = ratio_rows(contenders, ABOUT)
    assert (row["contender"], row["baseline"], row["batch"]) == ("mega-deploy", "torch-eager", 4)
    assert row["low"] == pytest.approx(2.5) and row["ratio"] == pytest.approx(2.5) and row["high"] == pytest.approx(2.5)


def test_a_row_tells_latency_throughput_precision_and_share():
    limits = {"gemm-floor": timed("gemm-floor", 1.0).rounds}
    ours, peer = (result_row(timed(name, 2.0), ABOUT, LIMIT, limits) for name in ("mega-deploy", "torch-eager"))
    assert (ours["precision"], peer["precision"]) == ("int8", "float32")
    assert ours["samples"] == 140 and ours["rounds"] == 7
    assert ours["throughput_per_s"] == pytest.approx(4 / ours["mean_ms"] * 1e3)
    assert ours["limit_share"]["gemm_floor"]["value"] == pytest.approx(0.5)
    assert ours["limit_share"]["compute"] == pytest.approx(0.25, rel=0.02)
    assert ours["noise"] == ["busy: others used 15% of the cores"]  # 1.8 - 1.5 of 2 core seconds
    assert result_row(timed("mega-deploy", 2.0), ABOUT, None, {})["limit_share"] is None


def test_a_prefill_is_no_alternative_to_a_step():
    contenders = [timed("mega-deploy", 2.0), timed("window-session", 9.0), timed("prefill", 9.0)]
    assert [row["baseline"] for row in ratio_rows(contenders, ABOUT)] == ["window-session"]
    rows = [result_row(one, ABOUT, None, {}) for one in contenders]
    assert {row["precision"] for row in rows} == {"int8"}  # all three are the bundle's


def test_the_limit_says_how_many_times_the_floor_ours_takes():
    limits = {name: timed(name, scale).rounds for name, scale in (("gemm-floor", 1.0), ("memory-read", 0.5))}
    row = limit_row(ABOUT, LIMIT, PROFILE, [timed("mega-deploy", 1.2)], limits)
    assert row["times_gemm_floor"]["value"] == pytest.approx(1.2) and row["p50_ms"] == pytest.approx(1.2, rel=0.02)
    assert row["times_memory_floor"]["value"] == pytest.approx(2.4)
    assert limit_row(ABOUT, LIMIT, PROFILE, [], limits)["times_gemm_floor"] is None
