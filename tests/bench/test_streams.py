"""The benchmark of streams: every contender computes the trained model, and rows tell what a stream's user asks."""

import csv
import json
import os
import time

import numpy as np
import pytest
import torch
from benching import FAST, bench
from paper_goldens import models

import mega_deploy as md
from mega_deploy.bench.command import plan
from mega_deploy.bench.contenders import streams
from mega_deploy.bench.contenders.case import frames_of, load_case, relative_error, save_case, takes_whole
from mega_deploy.bench.contenders.catalogue import open_contender
from mega_deploy.bench.contenders.limits import floor
from mega_deploy.bench.contenders.replay import Replay
from mega_deploy.bench.contenders.task import Task
from mega_deploy.bench.suites.sweep import AXES
from mega_deploy.config.paper import MegaConfig
from mega_deploy.errors import BundleError, InputError, OptionError
from mega_deploy.models.edifice import Mega
from mega_deploy.models.paper import MegaEncoder

WINDOW, FEATURES, HIDDEN = 6, 4, 16


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    torch.manual_seed(0)
    model = Mega.build(embed_dim=FEATURES, hidden_size=HIDDEN, ema_dim=2, num_layers=2, window_size=WINDOW).eval()
    return md.export(model, tmp_path_factory.mktemp("streams") / "causal.mega", form="both", batch_range="1:1:4")


def task_of(bundle, folder, contender="mega-deploy", batch=3):
    frames = frames_of(bundle)
    save_case(bundle, batch, frames, folder, "stream")
    return Task(contender, "onnxruntime", os.fspath(bundle.path), batch, frames, (0,), os.fspath(folder), form="stream")


@pytest.mark.parametrize("name", [name for name in streams.BUILD if name != streams.ENCODE])
def test_a_contender_ends_a_window_with_what_the_trained_model_gives(causal, tmp_path, name):
    task = task_of(causal, tmp_path, name)
    case = load_case(tmp_path)
    sequences = case.inputs
    assert sequences["frames"].shape == (3, WINDOW, FEATURES) and case.outputs["features"].shape == (3, HIDDEN)
    contender = open_contender(task, sequences)
    for _ in range(WINDOW + 2):  # as warm-up and rounds do; the check begins anew
        contender.call()
    outputs = contender.call() if contender.check is None else contender.check()
    assert relative_error(outputs, case) < 1e-5 and contender.settings


SOURCE, LIMITED, CHUNKED = "model_nmt_laplace_rotary_chunk", "model_lm_softmax_nochunk", "model_lm_enwik8"
CROSSED, TRUNCATED = "clm_cross_softmax_rotary", "model_lm_relu2_chunk_trunc"
STEPS = 16


@pytest.fixture(scope="module")
def of_tokens(tmp_path_factory):
    """Bundles of both forms of the paper's models, as they are asked for."""
    found = models("fairseq", "model_") | models("huggingface", "clm_")
    folder, made = tmp_path_factory.mktemp("tokens"), {}

    def get(name):
        if name not in made:
            made[name] = md.export(
                found[name].checkpoint, folder / f"{name}.mega", form="both", seq_len=STEPS, batch_range="1:1:4"
            )
        return made[name]

    return get


@pytest.mark.parametrize(
    ("name", "contender"),
    [
        (name, contender)
        for name in (SOURCE, LIMITED, CHUNKED, CROSSED)
        for contender in streams.BUILD
        if contender != streams.ENCODE or name in (SOURCE, CROSSED)
    ],
)
def test_streams_of_tokens_end_and_begin_anew_with_their_source(of_tokens, tmp_path, name, contender):
    bundle = of_tokens(name)
    task = task_of(bundle, tmp_path, contender)
    case = load_case(tmp_path)
    sequences = case.inputs
    assert takes_whole(bundle, sequences) and case.outputs["logits"].shape[0] == 3
    one = open_contender(task, sequences)
    for _ in range(2 * STEPS + 3):  # a stream that ends has to begin anew
        one.call()
    for outputs in (one.call() if one.check is None else one.check(), one.check()):
        assert relative_error(outputs, case) < 2e-5
    seconds, _ = one.sample(STEPS + 1)
    assert len(seconds) == STEPS + 1 and min(seconds) > 0 and one.settings


def bare_layers(folder, **options):
    torch.manual_seed(0)
    config = MegaConfig(embed_dim=4, z_dim=2, hidden_dim=4, ffn_dim=None, ema_dim=1, num_layers=1, **options)
    return md.export(MegaEncoder(config).eval(), folder / "bare.mega", form="both", seq_len=STEPS)


def test_a_window_that_truncates_its_average_stands_for_no_step(of_tokens, tmp_path):
    for bundle in (of_tokens(TRUNCATED), bare_layers(tmp_path, truncation=4)):
        task_of(bundle, tmp_path)
        assert not takes_whole(bundle, load_case(tmp_path).inputs)


def test_bare_layers_go_along_their_frames(tmp_path):
    bundle = bare_layers(tmp_path, attention="laplace", chunk_size=4, truncation=STEPS)
    for contender in (name for name in streams.BUILD if name != streams.ENCODE):
        task = task_of(bundle, tmp_path, contender)
        case = load_case(tmp_path)
        assert takes_whole(bundle, case.inputs)
        assert relative_error(open_contender(task, case.inputs).check(), case) < 2e-5, contender


def test_what_lies_between_calls_is_in_no_calls_time():
    begun = []
    replay = Replay([1, 2], lambda part: part, lambda: (time.sleep(0.05), begun.append(1)), ends=True)
    seconds, more = replay.measure(7)
    assert len(begun) == 3 and max(seconds) < 0.04 and more["processor_seconds"] < 0.04
    assert replay.call() == (2,) and replay.check() == (2,) and replay.call() == (1,)


def test_the_products_of_a_step_with_a_source_are_counted(of_tokens, tmp_path):
    bundle = of_tokens(SOURCE)
    floor.prepare(task_of(bundle, tmp_path, "gemm-floor"))
    counted = json.loads((tmp_path / floor.COUNTED).read_text())
    state = sum(array.nbytes for array in bundle.stream(3).state.values())
    assert counted["bytes"] > state and counted["products"] > 0  # keys and values of the source among them


def test_a_report_has_a_row_for_the_source(of_tokens, tmp_path):
    files = ("--html", "r.html", "--frames", "120", "--no-limit")
    done = bench(
        of_tokens(SOURCE).path, "--form", "stream", "--batch", "2", "--peers", *files, *FAST, "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["contender"] for row in report["results"]] == [
        "mega-deploy",
        "encode",
        "prefill",
        "window-session",
        "torch-cached",
    ]
    assert [row["baseline"] for row in report["ratios"]] == ["window-session", "torch-cached"]
    assert report["failures"] == [] and "encode" in (tmp_path / "r.html").read_text()


def test_calls_take_one_frame_after_the_other_and_then_the_first_again(causal, tmp_path):
    task = task_of(causal, tmp_path)
    sequences = load_case(tmp_path).inputs
    contender, stream = open_contender(task, sequences), causal.stream(3)
    for step in range(2 * WINDOW + 1):
        np.testing.assert_array_equal(contender.call()[0], stream.step(sequences["frames"][:, step % WINDOW]))


def test_what_a_step_must_read_is_its_weights_and_its_state(causal, tmp_path):
    task = task_of(causal, tmp_path, "gemm-floor")
    floor.prepare(task)
    counted = json.loads((tmp_path / floor.COUNTED).read_text())
    import onnx

    weights = sum(len(one.raw_data) for one in onnx.load(causal.path / "step.onnx").graph.initializer)
    state = sum(array.nbytes for array in causal.stream(3).state.values())
    assert counted["bytes"] == pytest.approx(weights + state, rel=0.02)  # onnxruntime folds a few small constants
    assert counted["flop"] == 3 * causal.stream_form.flops
    assert {"blocks.0/ema", "blocks.1/ffn"} <= {row["name"] for row in counted["by_block"]}


def test_a_report_of_streams_has_the_keys_of_windows(causal, made, tmp_path):
    files = ("--json-file", "r.json", "--csv", "r.csv", "--html", "r.html")
    done = bench(
        causal.path, "--form", "stream", "--batch", "2", "--frames", "240", *FAST, *files, "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    report, of_windows = json.loads(done.stdout), made[1]
    rows = {row["contender"]: row for row in report["results"]}
    assert set(rows) == {"mega-deploy", "window-session", "prefill"}
    assert {frozenset(row) for row in rows.values()} == {frozenset(row) for row in of_windows["results"]}
    for row in rows.values():
        assert (row["form"], row["batch"], row["seq_len"]) == ("stream", 2, WINDOW)
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["p999_ms"] and row["jitter_ms"] > 0
        assert row["relative_error"] < 1e-5
    assert rows["mega-deploy"]["samples"] >= 120  # of 2 streams each
    assert [(row["contender"], row["baseline"]) for row in report["ratios"]] == [("mega-deploy", "window-session")]
    (limit,) = report["limit"]
    assert set(limit) == set(of_windows["limit"][0]) and limit["memory_floor_ms"] > 0
    assert limit["times_memory_floor"]["low"] <= limit["times_memory_floor"]["high"]
    assert "2 streams over 6 frames" in (tmp_path / "r.html").read_text()
    assert {row["form"] for row in csv.DictReader((tmp_path / "r.csv").read_text().splitlines())} == {"stream"}


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"form": "streams"}, OptionError, "stream"),
        ({"form": "stream", "seq_len": "5"}, InputError, "their own 6 frames, not 5"),
        ({"form": "stream", "batch": "5"}, InputError, "--batch-range"),
    ],
)
def test_what_a_stream_cannot_be_timed_for_is_refused(causal, options, error, word):
    axes = dict.fromkeys(AXES) | {"form": options["form"]}
    with pytest.raises(error, match=word):
        plan(
            [causal.path],
            batch=options.get("batch"),
            seq_len=options.get("seq_len"),
            sweep_file=None,
            axes=axes,
            on_step=print,
        )


def test_a_bundle_without_the_form_is_refused(tiny):
    with pytest.raises(BundleError, match="--form stream or both"):
        plan([tiny.path], batch=None, seq_len=None, sweep_file=None, axes={"form": "stream"}, on_step=print)
