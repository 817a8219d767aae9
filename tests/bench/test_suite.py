"""The suite of the paper's headline: its assembly with tiny sizes, and what it makes of times and memory."""

import dataclasses
import re

import numpy as np
import pytest

from mega_deploy.bench.command import bench, plan
from mega_deploy.bench.contenders.task import Task
from mega_deploy.bench.measure.rounds import Timed
from mega_deploy.bench.report.page import page
from mega_deploy.bench.report.terminal import table
from mega_deploy.bench.suites import lra, lra_text
from mega_deploy.bench.suites.options import Options
from mega_deploy.errors import MegaDeployError, OptionError

ABOUT = {"config": {"suite": "lra-text", "precision": "float32"}, "batch": 1, "seq_len": 8}


def timed(contender, seconds, held_mb):
    details = {"load_ms": 1.0, "cold_start_ms": 2.0, "relative_error": 1e-7, "settings": "", "peak_rss_mb": held_mb}
    details["warm_up"] = {"converged": True, "call_seconds": 1.0}
    one = Timed(Task(contender, "onnxruntime", "", 1, 8, (0,), ""), None, details, 20)
    for state in np.linspace(1, 1.1, 6):  # of the machine, the same for all in a round
        samples = [seconds * state] * 10
        one.add({"seconds": samples, "processor_seconds": 2 * samples[0]}, None)
    return one


def test_memory_is_what_a_process_held_beyond_one_without_a_model():
    contenders = [timed(lra.BASELINE, 1e-5, 50.0), timed("mega", 1.0, 60.0), timed("transformer-plain", 3.0, 90.0)]
    results, (row,) = lra_text.rows_of(contenders, ABOUT)
    assert {result["contender"]: result["memory_mb"] for result in results} == {"mega": 10, "transformer-plain": 40}
    assert (row["contender"], row["baseline"]) == ("mega", "transformer-plain")
    assert row["speed"]["value"] == row["processor_speed"]["value"] == pytest.approx(3)
    assert (row["memory"], row["held_mb"], row["held_by_baseline_mb"]) == (0.25, 10, 40)
    assert row["paper"] == {"speed": 2.9, "memory": 0.31}
    assert results[0]["processor_ms"] == pytest.approx(2100)  # two threads, 5 % slower in the middle round


def test_without_its_baseline_a_suite_tells_times_alone():
    _, (row,) = lra_text.rows_of([timed("mega-chunk", 1.0, 60.0), timed("transformer-fused", 2.0, 90.0)], ABOUT)
    assert row["memory"] is row["held_mb"] is None and row["speed"]["value"] == pytest.approx(2)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of every contender, made small."""
    folder = tmp_path_factory.mktemp("suite")
    real = lra.mega_config
    small = {"embed_dim": 8, "z_dim": 4, "hidden_dim": 8, "ffn_dim": 8, "ema_dim": 2, "num_layers": 1}

    def small_config(chunk_size, steps):
        config = real(chunk_size, steps)
        encoder = dataclasses.replace(config.encoder, **small)
        return dataclasses.replace(
            config, encoder=encoder, embedding=dataclasses.replace(config.embedding, dim=8), widths=(8,)
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder))
        patch.setattr(lra, "mega_config", small_config)
        patch.setattr(lra, "TRANSFORMER", {"embed_dim": 8, "heads": 2, "ffn_dim": 8, "num_layers": 1, "head_width": 8})
        options = Options(rounds=3, turn_seconds=0.01, threads=1)
        planned = lra_text.plan("lra-text", [256], [2], quick=False)
        return bench(
            planned,
            options,
            outputs={"html": folder / "r.html", "csv": folder / "r.csv"},
            on_step=lambda step: None,
            on_failure=lambda line: None,
        )


def test_every_contender_is_checked_and_timed(report):
    assert report["failures"] == []
    names = [*lra.MEGAS, *lra.TRANSFORMERS]
    assert [row["contender"] for row in report["results"]] == names
    for row in report["results"]:
        assert (row["batch"], row["seq_len"]) == (2, 256) and row["relative_error"] < 1e-5 and row["memory_mb"] >= 0
    pairs = [(row["contender"], row["baseline"]) for row in report["suite"]["rows"]]
    assert pairs == [(mega, transformer) for mega in lra.MEGAS for transformer in lra.TRANSFORMERS]
    lra_text.check(report)


def test_a_suite_is_shown_with_the_papers_figures(report, capsys):
    text = page(report)
    assert "Mega against the Transformer" in text and text.count("<td>mega-chunk, 256 steps") == len(lra.TRANSFORMERS)
    assert not re.search(r"<script|<link|<img|@import|url\(|src=|https?:", text)
    table(report)
    printed = capsys.readouterr().out
    assert printed.count("fused") >= 3 and "5.5 x" in printed and "0.31" in printed


def test_a_mega_that_fails_fails_the_suite():
    failure = {"contender": "transformer-plain", "reason": "killed", "exit_code": 1}
    lra_text.check({"failures": [failure]})
    with pytest.raises(MegaDeployError, match="mega-chunk: killed"):
        lra_text.check({"failures": [{**failure, "contender": "mega-chunk"}]})


NOTHING = {"batch": None, "sweep_file": None, "axes": {}, "on_step": print}


def test_a_suite_has_the_papers_length_unless_it_is_told_another():
    assert plan([], seq_len=None, suite_name="lra-text", **NOTHING).steps == (4096,)
    assert plan([], seq_len=None, suite_name="lra-text", quick=True, **NOTHING).steps == (1024,)
    assert plan([], seq_len="2048,4096", suite_name="lra-text", quick=True, **NOTHING).steps == (2048, 4096)


def test_what_a_suite_cannot_do_is_refused(tmp_path):
    with pytest.raises(OptionError, match="there is no suite 'lra'; there is lra-text"):
        plan([], seq_len=None, suite_name="lra", **NOTHING)
    with pytest.raises(OptionError, match="multiple of 128"):
        plan([], seq_len="1000", suite_name="lra-text", **NOTHING)
    with pytest.raises(OptionError, match="only one"):
        plan([tmp_path], seq_len=None, suite_name="lra-text", **NOTHING)
    planned = plan([], seq_len=None, suite_name="lra-text", **NOTHING)
    with pytest.raises(OptionError, match="--peers"):
        bench(planned, Options(peers=True), outputs={}, on_step=print, on_failure=print)
