"""Bundles that are streams of the paper's models: exported, judged, run, and in lower precisions."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from paper_goldens import close, models

import mega_deploy as md
from mega_deploy.bundle import MANIFEST, PREFILL, STEP, describe_files
from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.tasks import EmbeddingConfig, LanguageModelConfig, OutputConfig
from mega_deploy.errors import OptionError
from mega_deploy.models.paper import MegaEncoder, build_model

CASES = models("fairseq", "model_lm_")
SMALL = {"embed_dim": 8, "z_dim": 4, "hidden_dim": 6, "ffn_dim": 8, "ema_dim": 2, "num_layers": 2}
ENCODERS = [
    ("softmax", None, {"seq_range": "1:16:24"}),
    ("laplace", None, {"seq_len": 24}),
    ("relu2", 8, {"seq_len": 24}),
]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Chunks of 8, softmax."""
    out = tmp_path_factory.mktemp("streams") / "both.mega"
    return md.export(CASES["model_lm_enwik8"].checkpoint, out, form="both", seq_len=21)


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    """No chunks, Laplace."""
    out = tmp_path_factory.mktemp("streams") / "ending.mega"
    return md.export(CASES["model_lm_laplace_simple"].checkpoint, out, form="stream", seq_len=23)


@pytest.mark.parametrize("name", ["tokens_nonmult", "tokens_padded"])
def test_both_forms_give_the_official_scores(both, name):
    case = CASES["model_lm_enwik8"]
    tokens, want = case.inputs[name], case.outputs[f"out_{name}"]
    real = (tokens != 1)[..., None]
    for form in ("window", "stream"):
        close(both.runner(form).run_named({"tokens": tokens})["logits"] * real, want * real)


@pytest.mark.parametrize(("attention", "chunk", "lengths"), ENCODERS)
def test_bare_layers_that_look_back_alone_stream_frames(attention, chunk, lengths, tmp_path):
    torch.manual_seed(0)
    config = MegaConfig(**SMALL, attention=attention, chunk_size=chunk, position="rotary")
    bundle = md.export(MegaEncoder(config).eval(), tmp_path / "frames.mega", form="both", **lengths)
    assert bundle.stream_form.window == (chunk or 24) and md.validate(bundle, samples=2, seed=1).passed
    frames = np.random.default_rng(0).standard_normal((3, 24, 8), dtype=np.float32)
    want = bundle.session().run(frames)
    close(bundle.runner("stream").run_named(frames)["features"], want)
    close(bundle.stream(3).prefill(frames), want[:, -1])


def test_layers_that_look_ahead_have_no_stream_and_no_length_is_asked_for(tmp_path):
    model = MegaEncoder(MegaConfig(**SMALL, bidirectional=True)).eval()
    with pytest.raises(OptionError, match="no stream: it is not causal, every step looks at later ones"):
        md.export(model, tmp_path / "x.mega", form="stream")


def test_the_verdict_is_on_a_thousand_steps_and_more_and_on_padding(both):
    report = md.validate(both)
    names = [case.name for case in report.cases if case.name.startswith("stream: ")]
    assert report.passed and any("1008 steps" in name for name in names)
    assert {"padded", "padded on the left", "padding anywhere"} <= {name[8:].partition(",")[0] for name in names}


def test_validate_draws_anew_and_takes_sequences_of_ones_own(ending):
    assert md.validate(ending, samples=2, seed=3).passed
    report = md.validate(ending, inputs={"tokens": np.arange(2, 22)[None]})
    assert report.passed
    assert [case.name for case in report.cases] == ["given inputs, batch 1", "given inputs, batch 1, prefilled"]


def test_validate_finds_a_prefill_that_hands_over_a_wrong_state(ending, tmp_path):
    path = shutil.copytree(ending.path, tmp_path / "spoilt.mega")
    model = onnx.load(path / PREFILL)
    (leak,) = (tensor for tensor in model.graph.initializer if tensor.name == "decoder.layers.1.attention.ema.leak")
    leak.CopyFrom(onnx.numpy_helper.from_array(0.9 * onnx.numpy_helper.to_array(leak), leak.name))
    onnx.save(model, path / PREFILL)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"] = describe_files(path)
    (path / MANIFEST).write_text(json.dumps(manifest))
    report = md.validate(path)
    assert not report.passed and all(case.passed for case in report.cases if not case.name.endswith("prefilled"))


def test_the_manifest_tells_what_is_carried_and_how_far_it_goes(both, ending):
    for bundle, window, limit in ((both, 8, None), (ending, 23, 23)):
        manifest = json.loads((bundle.path / MANIFEST).read_text())
        state = {spec["name"]: spec for spec in manifest["signature"]["state"]}
        assert manifest["stream"]["window"] == window and state["steps_seen"].get("limit") == limit
        assert state["decoder.layers.1.keys"]["dims"][1:] == [window, 16]
    assert "not even at 8192 steps" in json.loads((both.path / MANIFEST).read_text())["stream"]["moving_average"]


def test_a_length_is_asked_for_only_where_no_chunk_says_it(tmp_path):
    model = build_model(
        LanguageModelConfig(
            decoder=MegaConfig(embed_dim=8, z_dim=4, hidden_dim=8, ffn_dim=8, ema_dim=2, num_layers=1),
            embedding=EmbeddingConfig(vocab_size=9, dim=8),
            output=OutputConfig(),
        )
    ).eval()
    with pytest.raises(OptionError, match="--seq-len"):
        md.export(model, tmp_path / "no.mega", form="stream")
    chunked = dataclasses.replace(model.config, decoder=dataclasses.replace(model.config.decoder, chunk_size=4))
    assert md.export(build_model(chunked).eval(), tmp_path / "lm.mega", form="stream").stream_form.window == 4


def test_run_takes_whole_sequences_and_refuses_what_no_stream_holds(ending, tmp_path):
    case = CASES["model_lm_laplace_simple"]

    def run(tokens):
        np.savez(tmp_path / "in.npz", tokens=tokens)
        command = [sys.executable, "-m", "mega_deploy", "run", str(ending.path), "in.npz", "-o", "out.npz"]
        return subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)

    tokens = case.inputs["tokens_a"]
    assert run(tokens).returncode == 0
    close(np.load(tmp_path / "out.npz")["logits"], case.outputs["out_tokens_a"])
    for bad, words in ((np.full((1, 24), 3), "beyond the 23"), (np.full((1, 4), 999), "from 0 to 52")):
        done = run(bad)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_lower_precisions_stay_within_their_limit_over_a_thousand_steps(precision, tmp_path):
    torch.manual_seed(0)
    decoder = MegaConfig(
        embed_dim=128, z_dim=32, hidden_dim=128, ffn_dim=128, ema_dim=4, num_layers=1, chunk_size=8, position="rotary"
    )
    embedding = EmbeddingConfig(vocab_size=60, dim=128)
    model = build_model(
        LanguageModelConfig(decoder=decoder, embedding=embedding, output=OutputConfig(tied=True))
    ).eval()
    bundle = md.export(model, tmp_path / "low.mega", form="stream", seq_len=8, precision=precision)
    assert {spec.dtype for spec in bundle.stream_form.step.state} == {"float32", "int64", "bool"}
    assert bundle.stream_form.parity["passed"]
    if precision == "int8":  # joint, value, hidden, both of the feed-forward network, and the table as the output
        kinds = [node.op_type for node in onnx.load(bundle.path / STEP).graph.node]
        assert kinds.count("DequantizeLinear") == 6 and kinds.count("Gemm") == 0
    stepped, filled = bundle.stream(2), bundle.stream(2)
    tokens = np.random.default_rng(0).integers(2, 60, (2, 13))
    want = [stepped.step(tokens[:, step]) for step in range(13)][-1]
    assert np.linalg.norm(filled.prefill(tokens) - want) <= 1e-2 * np.linalg.norm(want)
