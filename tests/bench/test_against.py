"""The regression gate: like with like, and a verdict only beyond the interval."""

import copy
import json

import numpy as np
import pytest

from mega_deploy.bench.report.against import check_alike, compare, fail_on_regression, parse_limit, read_report
from mega_deploy.errors import InputError, OptionError, QualityGateError

MACHINE = {"cpu": "a", "platform": "Linux-x86_64", "memory_gb": 8, "threads": 2, "cores_seen": 2, "governor": None}


def report(scale=1.0, spread=0.02, seed=0, **about):
    random = np.random.default_rng(seed)
    samples = scale * np.exp(random.normal(0, spread, (8, 1)) + random.normal(0, 0.02, (8, 30)))
    row = {"contender": "mega-deploy", "backend": "onnxruntime", "config": {"hidden_size": 8}, "batch": 1}
    row |= {"seq_len": 3, "precision": "float32", "noise": [], "p50_ms": float(np.median(samples)), **about}
    row["samples_ms"] = samples.tolist()
    peer = {**row, "contender": "torch-eager", "samples_ms": (samples * 100).tolist()}
    method = {"cores": [0, 1], "threads": 2, "isolation": "own", "clock": "wall"}
    return {"machine": {**MACHINE, "gpu": None}, "method": method, "results": [row, peer], "limit": []}


def test_the_same_twice_is_no_regression_and_peers_do_not_count():
    new = report(seed=1)
    new["results"][1]["samples_ms"] = [[1e6] * 30] * 8
    found = compare(report(), new, 1.05)
    assert [row["regression"] for row in found["rows"]] == [False]
    fail_on_regression(found)


def test_a_slower_run_fails_with_figures():
    with pytest.raises(
        QualityGateError, match=r"slower: 1 of 1 rows, .* by 1\.2\d \(1\.\d\d to 1\.\d\d\), where 1.1 is allowed"
    ):
        fail_on_regression(compare(report(), report(1.25, seed=1), 1.10))
    fail_on_regression(compare(report(), report(1.25, seed=1), 1.5))


def test_what_may_be_chance_does_not_fail():
    """The point is beyond the factor, the interval is not beyond 1."""
    found = compare(report(spread=0.4, seed=2), report(1.2, spread=0.4, seed=5), 1.0001)
    (row,) = found["rows"]
    assert row["change"]["value"] > 1.0001 and row["change"]["low"] < 1 and not row["regression"]


def test_a_machine_that_is_slower_itself_is_told():
    old, new = report(), report(1.3)
    old["limit"], new["limit"] = [{"peak_gflop_s": 100.0}], [{"peak_gflop_s": 80.0}]
    with pytest.raises(QualityGateError, match=r"0\.80 of its earlier speed"):
        fail_on_regression(compare(old, new, 1.1))


@pytest.mark.parametrize(
    ("part", "key"), [("machine", "cpu"), ("machine", "gpu"), ("method", "threads"), ("machine", "governor")]
)
def test_unlike_set_ups_are_refused(part, key):
    old, new = report(), report()
    check_alike(old, new)
    new[part][key] = "another"
    with pytest.raises(InputError, match=rf"{key} was .* and is 'another'.*--other-machine"):
        check_alike(old, new)


def test_only_what_both_have_is_compared():
    old, new = report(), report()
    new["results"] += copy.deepcopy(new["results"])
    new["results"][2]["batch"] = 8
    assert (len(compare(old, new, 1.1)["rows"]), len(compare(old, new, 1.1)["only_new"])) == (1, 1)
    with pytest.raises(InputError, match="nothing can be compared"):
        compare(old, report(batch=8), 1.1)


@pytest.mark.parametrize(
    "text", ["1.1", "slower", "slower:", "slower:1", "slower:0.9", "faster:2", "slower:nan", "slower:-2"]
)
def test_a_gate_that_makes_no_sense_is_refused(text):
    assert parse_limit("slower:1.10") == 1.1
    with pytest.raises(OptionError, match=r"slower:1\.10"):
        parse_limit(text)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "{}", '{"machine": 1, "method": 2, "results": []}', '{"results": [{}]}', "[" * 99999]
)
def test_what_is_no_report_is_refused(tmp_path, text):
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(InputError, match="no report"):
        read_report(path)
    path.write_text(json.dumps(report()))
    assert read_report(path)["results"]
