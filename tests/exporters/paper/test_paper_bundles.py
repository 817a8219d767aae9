"""Bundles of the paper's models: exported, compared, run by names, and built into engines."""

import json

import numpy as np
import pytest
import torch
from commands import within
from paper_goldens import MODELS, close

import mega_deploy as md
from mega_deploy.errors import InputError, OptionError
from mega_deploy.models.paper import MegaConfig, MegaEncoder

# A classifier padded to chunks, a language model whose output shares the embedding, a translation, and a class of
# Hugging Face's: for each the range of lengths, and a precision.
FAMILIES = {
    "model_lra_imdb_mp_chunk_pre": ("1:30:60", "float16"),
    "model_lm_wiki103_adaptive": ("1:19:40", "int8"),
    "model_nmt_laplace_rotary_chunk": ("1:15:34", "bfloat16"),
    "model_token_types": ("1:19:24", "float16"),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    return {
        name: md.export(MODELS[name].checkpoint, folder / f"{name}.mega", seq_range=lengths, batch_range="1:2:8")
        for name, (lengths, _) in FAMILIES.items()
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bundle_is_compared_on_its_own_kinds_of_inputs_and_on_others(bundles, name):
    report = md.validate(bundles[name])
    assert report.passed and report.blocks and all(block.passed for block in report.blocks)
    kinds = {case.name.partition(",")[0] for case in report.cases}
    assert {"random", "padded", "padded on the left", "padding anywhere", "a single token"} <= kinds
    assert any("length" in case.name for case in report.cases)
    assert md.validate(bundles[name], samples=3, seed=5).passed


def test_a_session_takes_arrays_by_name_and_gives_several(bundles):
    case, session = MODELS["model_token_types"], bundles["model_token_types"].session()
    got = session.run(case.inputs)
    for name in ("last_hidden_state", "pooler_output"):
        close(got[name], case.outputs[name])
    ids = case.inputs["input_ids"]
    said = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    for name, value in session.run(said).items():
        assert np.array_equal(session.run(ids)[name], value)


def test_the_manifest_tells_names_values_and_defaults(bundles):
    manifest = json.loads((bundles["model_token_types"].path / "manifest.json").read_text())
    ids, mask, types = manifest["signature"]["inputs"]
    assert (ids["name"], ids["dtype"], ids["values"][0], "default" in ids) == ("input_ids", "int64", 0, False)
    assert (mask["name"], mask["default"]) == ("attention_mask", 1)
    assert (types["name"], types["default"], types["values"]) == ("token_type_ids", 0, [0, 1])
    assert manifest["config"]["architecture"] == "mega-huggingface"
    assert manifest["flops"]["trained"] > 0 and manifest["flops"]["deployed"] > 0


def test_source_and_target_may_have_lengths_of_their_own(bundles):
    case = MODELS["model_nmt_laplace_rotary_chunk"]
    feeds = {name: case.inputs[name] for name in ("src_lengths", "prev_output_tokens")}
    got = (
        bundles["model_nmt_laplace_rotary_chunk"].session().run({**feeds, "src_tokens": case.inputs["src_tokens_left"]})
    )
    assert feeds["prev_output_tokens"].shape[1] != case.inputs["src_tokens_left"].shape[1]
    close(got, case.outputs["tf_logits_left"])


@pytest.mark.parametrize(
    ("name", "feeds", "words"),
    [
        ("model_lm_wiki103_adaptive", {"tokens": np.full((1, 4), 999)}, ["tokens", "999", "from 0 to"]),
        ("model_lm_wiki103_adaptive", {"tokens": np.zeros((1, 4))}, ["int64", "float64"]),
        ("model_lra_imdb_mp_chunk_pre", {"src_tokens": np.full((1, 4), 5)}, ["src_lengths", "missing"]),
        (
            "model_lra_imdb_mp_chunk_pre",
            {"src_tokens": np.full((1, 4), 5), "src_lengths": [0]},
            ["src_lengths", "0 at"],
        ),
        (
            "model_lra_imdb_mp_chunk_pre",
            {"src_tokens": np.full((1, 61), 5), "src_lengths": [61]},
            ["seq_len 61", "--seq-range 1:30:61"],
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(bundles, name, feeds, words):
    with pytest.raises(InputError) as caught:
        bundles[name].session().run(feeds)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_lower_precisions_pass_their_own_verdict(name, tmp_path):
    precision = FAMILIES[name][1]
    bundle = md.export(
        MODELS[name].checkpoint, tmp_path / "x.mega", seq_len=15, precision=precision, batch_range="1:1:4"
    )
    assert md.validate(bundle).passed
    assert bundle.manifest.precision == precision


@pytest.mark.parametrize("name", list(FAMILIES)[:3])
def test_an_engine_is_built_for_a_range_of_lengths(bundles, name):
    engine = md.build(bundles[name], target="tensorrt-rtx")
    low, usual, high = (int(size) for size in FAMILIES[name][0].split(":"))
    tokens = next(spec.name for spec in bundles[name].manifest.signature.inputs)
    assert engine.profiles[0][tokens] == {"min": [1, low], "opt": [2, usual], "max": [8, high]}


def test_a_length_must_be_said(tmp_path):
    case = MODELS["model_lm_wiki103_adaptive"]
    with pytest.raises(OptionError, match="--seq-len"):
        md.export(case.checkpoint, tmp_path / "x.mega")
    assert not list(tmp_path.iterdir())


def test_the_command_line_goes_from_a_hugging_face_folder_to_outputs(tmp_path):
    case = MODELS["qa"]
    np.savez(tmp_path / "in.npz", **case.inputs)
    for arguments in (
        ("export", case.checkpoint, "-o", "qa.mega", "--seq-len", "19", "--source", "huggingface"),
        ("run", "qa.mega", "in.npz", "-o", "out.npz"),
    ):
        done = within(*arguments, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as got:
        for name in ("start_logits", "end_logits"):
            close(got[name], case.outputs[name])


def test_the_last_layer_computes_the_first_step_alone_where_no_other_is_wanted(tmp_path):
    bundle = md.export(MODELS["seqcls_laplace_simple"].checkpoint, tmp_path / "x.mega", seq_len=19, batch_range="1:1:4")
    reference = bundle.reference()
    assert [array.shape[1] for array in reference.block_outputs.values()][-1] == 1


def test_an_encoder_of_chunks_serves_long_sequences(tmp_path):
    torch.manual_seed(0)
    options = {"embed_dim": 8, "z_dim": 4, "hidden_dim": 8, "ffn_dim": 8, "ema_dim": 4, "num_layers": 1}
    config = MegaConfig(**options, chunk_size=64, bidirectional=True)
    bundle = md.export(MegaEncoder(config).eval(), tmp_path / "x.mega", seq_len=2048, ema="blocked")
    assert bundle.manifest.ema["lowering"] == "blocked" and bundle.manifest.parity["passed"]
    with pytest.raises(OptionError, match="64"):
        md.export(MegaEncoder(config).eval(), tmp_path / "y.mega", seq_len=100)
