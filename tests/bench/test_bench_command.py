"""`mega-deploy bench` from outside: what it measures, writes, refuses and gates."""

import csv
import json
import os
import re

import onnx
import pytest
from benching import FAST, bench
from spoiling import spoil

from mega_deploy.bench.report.page import page


def test_every_configuration_is_measured_and_checked(made):
    folder, printed = made
    whole = json.loads((folder / "r.json").read_text())
    rows = whole["results"]
    assert {(row["batch"], row["seq_len"]) for row in rows} == {(1, 3), (1, 5), (2, 3), (2, 5)}
    for row in rows:
        assert row["samples"] >= 50 and row["rounds"] == 3 and 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert sum(map(len, row["samples_ms"])) == row["samples"] and row["relative_error"] < 1e-5
        assert row["cold_start_ms"] > row["load_ms"] > 0 and row["peak_rss_mb"] > 10
        interval = row["intervals"]["p50_ms"]
        assert interval["low"] <= row["p50_ms"] <= interval["high"]
    assert [{**row, "samples_ms": 0} for row in rows] == [{**row, "samples_ms": 0} for row in printed["results"]]
    assert whole["machine"]["threads"] == 1 and whole["machine"]["cpu"] and whole["machine"]["gpu"] is None
    assert whole["ratios"] == whole["failures"] == [] and len(whole["limit"]) == 4


def test_each_result_says_what_share_of_the_limit_it_reaches(made):
    for row in made[1]["results"]:
        share = row["limit_share"]
        assert 0 < share["gemm_floor"]["low"] <= share["gemm_floor"]["value"] <= share["gemm_floor"]["high"]
        assert 0 < share["compute"] < 1 and share["memory"] > 0
    for limit in made[1]["limit"]:
        profile = limit["profile"]
        assert sum(one["share"] for one in profile["by_op"]) == pytest.approx(1)
        assert sum(one["ms"] for one in profile["by_block"]) == pytest.approx(profile["nodes_ms"])
        assert {"blocks.0/ema", "blocks.0/attention", "blocks.0/ffn"} <= {one["name"] for one in profile["by_block"]}


def test_csv_has_a_row_each(made):
    rows = list(csv.DictReader((made[0] / "r.csv").read_text().splitlines()))
    assert len(rows) == 4 and float(rows[0]["p50_ms"]) > 0 and rows[0]["config.hidden_size"] == "8"


def test_the_page_has_its_pictures_and_loads_nothing(made):
    text = (made[0] / "r.html").read_text()
    for heading in (
        "Each configuration",
        "Against the batch",
        "Against the length",
        "Share of the limit",
        "By operator",
    ):
        assert heading in text
    assert text.count("<svg") == 4 + 2 + 2 + 3 * 4
    assert not re.search(r"<script|<link|<img|@import|url\(|src=|https?:", text)
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_what_a_report_holds_cannot_break_out_of_the_page(made):
    report = json.loads((made[0] / "r.json").read_text())
    for row in report["results"]:
        row["settings"] = row["contender"] = "<script>alert(1)</script>"
        row["noise"] = ['"><img src=x>']
    report["machine"]["cpu"] = "<b>\x1b[2J\u202e\u2028\x00"
    text = page(report)
    assert "<script" not in text and "<img" not in text and "<b>" not in text
    assert all(line.replace("\N{NO-BREAK SPACE}", "").isprintable() for line in text.split("\n"))


def test_an_earlier_report_is_a_gate(made, tiny):
    folder, _ = made
    again = (tiny.path, "--batch", "1", *FAST, "--no-limit", "--against")
    done = bench(*again, "r.json", "--fail-if", "slower:1000", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [row["regression"] for row in json.loads(done.stdout)["against"]["rows"]] == [False]
    old = json.loads((folder / "r.json").read_text())
    for row in old["results"]:
        row["samples_ms"] = [[value / 1000 for value in turn] for turn in row["samples_ms"]]
    (folder / "fast.json").write_text(json.dumps(old))
    done = bench(*again, "fast.json", "--html", "gate.html", cwd=folder)
    assert done.returncode == 3 and done.stderr.startswith("error: slower: 1 of 1 rows"), done.stderr
    assert "REGRESSION" in done.stdout and "regression" in (folder / "gate.html").read_text()
    old["machine"]["cpu"] = "another"
    (folder / "other.json").write_text(json.dumps(old))
    done = bench(*again, "other.json", "--json-file", "kept.json", cwd=folder)
    assert done.returncode == 2 and "--other-machine" in done.stderr
    assert json.loads((folder / "kept.json").read_text())["results"]  # what was measured is not lost
    done = bench(*again, "other.json", "--other-machine", "--fail-if", "slower:1000000", cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (("--batch", "0"), 2, "--batch"),
        (("--batch", "5"), 2, "--batch-range"),
        (("--seq-len", "9"), 2, "--seq-range"),
        (("--rounds", "2"), 2, "rounds"),
        (("--turn", "0"), 2, "turn_seconds"),
        (("--threads", "4096"), 2, "threads"),
        (("--backend", "abacus"), 2, "abacus"),
        (("--backend", "tensorrt-rtx"), 2, "mega-deploy build"),
        (("--fail-if", "slower"), 2, "slower:1.10"),
        (("--against", "absent.json"), 2, "absent.json"),
        (("--html", "no/such/folder.html"), 2, "cannot be written"),
        (("--layers", "2"), 2, "only one"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(tiny, tmp_path, options, code, word):
    done = bench(tiny.path, *options, cwd=tmp_path)
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (code, "", [])
    assert word in done.stderr and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


def test_contenders_that_fail_are_told_and_the_others_go_on(tiny, tmp_path):
    """One gives no answer, the others do not import; and the verdict is about ours alone."""
    (tmp_path / "openvino.py").touch()
    once = (
        "import os, time\ntry: os.mkdir('asleep')\nexcept FileExistsError: raise RuntimeError('no such\\nprocessor')\n"
    )
    (tmp_path / "torch.py").write_text(f"{once}time.sleep(600)\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = bench(tiny.path, "--peers", "--timeout", "8", *FAST, "--no-limit", "--json", env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["contender"] for row in report["results"]] == ["mega-deploy"]
    reasons = {row["contender"]: row["reason"] for row in report["failures"]}
    assert set(reasons) == {"torch-eager", "torch-compile", "torch-aotinductor", "onnxruntime-naive", "openvino-naive"}
    assert sorted(set(reasons.values())) == ["RuntimeError: no such processor", "gave no answer within 8 s (--timeout)"]
    assert done.stderr.count("warning: ") == 5 and "Traceback" not in done.stderr


def test_a_bundle_that_computes_something_else_is_not_timed(tiny, tmp_path):
    """Its outputs are compared with the trained model's that were recorded: here those of another model."""
    path = spoil(tiny.path, tmp_path / "wrong.mega", negate)
    done = bench(path, *FAST, "--no-limit", "--json-file", "r.json", cwd=tmp_path)
    assert done.returncode == 3 and "differs from the trained model's" in done.stderr, done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["failures"][0]["contender"] == "mega-deploy"


def negate(model):
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Neg", ["before"], ["features"]))
