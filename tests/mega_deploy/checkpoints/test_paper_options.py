"""What callers say of a checkpoint of the paper's Mega, what it says itself, and what it is told to be."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from checkpoints.attacks import saved
from checkpoints.paper_attacks import FOLDERS, GONE, INDEX, SHARDS, fairseq, in_shards, with_args
from paper_goldens import DATA, close, models

from mega_deploy.checkpoints import describe_checkpoint, load_checkpoint, read_checkpoint
from mega_deploy.checkpoints.containers.torch_zip import read_pt
from mega_deploy.config.paper_signature import signature, stacks
from mega_deploy.errors import CheckpointError, InputError, OptionError
from mega_deploy.signature import Range

FAIRSEQ = DATA / "fairseq"
HUGGING_FACE = DATA / "huggingface"
MATCHING = FAIRSEQ / "model_lra_aan_dual" / "checkpoint.pt"


@pytest.mark.parametrize(
    ("path", "source", "other"),
    [
        (MATCHING, "fairseq", "huggingface"),
        (HUGGING_FACE / "qa", "huggingface", "fairseq"),
        (MATCHING, "auto", "native"),
    ],
)
def test_a_source_is_insisted_on(path, source, other):
    assert read_checkpoint(path, source).format in (source, "fairseq")
    with pytest.raises(CheckpointError, match=f"is a checkpoint of the source .*, not {other}"):
        read_checkpoint(path, other)


def test_the_content_decides_and_not_the_name(tmp_path):
    shutil.copyfile(MATCHING, tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path / "model.safetensors").format == "fairseq"
    shutil.copytree(HUGGING_FACE / "qa", tmp_path / "checkpoint.pt")
    assert read_checkpoint(tmp_path / "checkpoint.pt").format == "huggingface"


def test_weights_without_their_folder_are_told_from_strangers():
    with pytest.raises(CheckpointError, match="without their configuration; give the Hugging Face folder"):
        read_checkpoint(HUGGING_FACE / "qa" / "model.safetensors")


def test_pytorch_bin_serves_where_safetensors_is_absent(tmp_path):
    case = models("huggingface")["mlm_softmax_rotary"]
    shutil.copytree(case.checkpoint, tmp_path / "bin")
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "bin" / "model.safetensors")
    (tmp_path / "bin" / "model.safetensors").unlink()
    weights["mlm_head.weight"] = weights["mega.embedding_layer.word_embeddings.weight"]  # a .bin holds it twice
    torch.save(weights, tmp_path / "bin" / "pytorch_model.bin")
    with torch.no_grad():
        close(load_checkpoint(tmp_path / "bin").double()(**case.tensors())["logits"], case.outputs["logits"])


def test_weights_in_shards_are_the_same_model(tmp_path):
    in_shards(case="qa")(tmp_path / "qa")
    whole, parts = read_checkpoint(HUGGING_FACE / "qa"), read_checkpoint(tmp_path / "qa")
    assert parts.paper == whole.paper and parts.weights.keys() == whole.weights.keys()
    assert all((parts.weights[name] == tensor).all() for name, tensor in whole.weights.items())
    files = [tmp_path / "qa" / name for name in (INDEX, *SHARDS)]
    content = b"".join(file.read_bytes() for file in files)
    assert (parts.bytes, parts.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    # As transformers does, one file is taken before an index.
    shutil.copyfile(HUGGING_FACE / "qa" / "model.safetensors", tmp_path / "qa" / "model.safetensors")
    assert read_checkpoint(tmp_path / "qa").sha256 == whole.sha256


@pytest.mark.parametrize(
    ("attack", "tells"),
    [
        ("shards: one is missing", f"shard {SHARDS[1]}: does not exist"),
        ("shards: one lies outside", "expected the name of a .safetensors file beside it"),
        ("shards: a tensor is in none", f"{INDEX} says that {SHARDS[0]} holds beyond, which is not there"),
        ("shards: a tensor is not in the index", f"its shard {SHARDS[0]} holds .*, which its {INDEX} does not say"),
        ("shards: an index that names a tensor twice", f"its {INDEX}: it has the entry a twice"),
    ],
)
def test_what_is_wrong_with_shards_is_said(attack, tells, tmp_path):
    FOLDERS[attack](tmp_path / "folder")
    with pytest.raises(CheckpointError, match=tells):
        read_checkpoint(tmp_path / "folder")


def test_what_a_caller_says_must_not_contradict():
    model = load_checkpoint(MATCHING, attention="softmax", seq_len=60, config={"pair": True, "pooling": "mean"})
    assert model.config.pair
    for wrong, tells in [
        ({"attention": "laplace"}, "checkpoint says softmax"),
        ({"config": {"pair": False}}, "pair is False in the config, but the checkpoint says True"),
        ({"config": {"window_size": 3}}, "unknown option 'window_size'"),
        ({"config": [1]}, "must map options"),
        ({"output": "last"}, "output is for checkpoints of Edifice"),
        ({"seq_len": 61}, "61 steps .* at most 60"),
    ]:
        with pytest.raises(OptionError, match=tells):
            load_checkpoint(MATCHING, **wrong)


def test_inspect_says_what_it_is():
    seen = json.loads(json.dumps(describe_checkpoint(MATCHING)))
    assert (seen["kind"], seen["architecture"], seen["format"]) == ("checkpoint", "mega-classifier", "fairseq")
    assert seen["task"] == "classification of sequences"
    assert (seen["unknown"], seen["lengths"]) == (["seq_len"], {"max": 60, "chunks": None})
    assert [spec["name"] for spec in seen["inputs"]] == ["src_tokens", "src_lengths", "src1_tokens", "src1_lengths"]
    assert seen["inputs"][0]["dims"] == [{"min": 1, "opt": 1, "max": 64}, {"min": 1, "opt": 60, "max": 60}]
    assert [spec["name"] for spec in seen["outputs"]] == ["logits"]
    assert seen["layers"][0] | {"attention": "softmax", "norm": "scalenorm", "num_layers": 2} == seen["layers"][0]
    assert seen["parameters"] == sum(p.numel() for p in load_checkpoint(MATCHING).parameters())
    assert seen["export_needs"].startswith("--seq-len")
    speech = FAIRSEQ / "model_sc_raw" / "checkpoint.pt"
    seen = describe_checkpoint(speech)
    assert seen["parameters"] == sum(p.numel() for p in load_checkpoint(speech).parameters())
    assert seen["lengths"] == {"max": None, "chunks": "of 20: whole ones, or less than one"}
    seen = describe_checkpoint(HUGGING_FACE / "multichoice")
    assert (seen["architecture"], seen["task"]) == ("mega-huggingface", "multiple choice")
    assert seen["inputs"][0]["axes"] == ["batch", "choices", "seq_len"]
    seen = describe_checkpoint(FAIRSEQ / "model_nmt_laplace_rotary_chunk" / "checkpoint.pt")
    assert [stack["name"] for stack in seen["layers"]] == ["encoder", "decoder"]
    assert seen["lengths"] == {"max": None, "chunks": "of 5 and 6, to which the model pads"}


@pytest.mark.parametrize("name", ["model_token_types", "clm_cross_softmax_rotary", "multichoice"])
def test_an_optional_input_left_out_is_its_default(name):
    case = models("huggingface")[name]
    model = load_checkpoint(case.checkpoint).double()
    given = case.tensors()
    specs = signature(model.config, given["input_ids"].shape[-1], Range(1, 1, 64)).inputs
    optional = [spec.name for spec in specs if spec.default is not None and spec.name in given]
    assert optional
    bare = {input: value for input, value in given.items() if input not in optional}
    default = {i: torch.zeros_like(given[i]) if "type" in i else torch.ones_like(given[i]) for i in optional}
    with torch.no_grad():
        left_out, said = model(**bare), model(**bare, **default)
    for output, value in said.items():
        assert torch.allclose(left_out[output], value, atol=1e-12)


def test_cross_attention_needs_what_it_looks_at():
    case = models("huggingface")["clm_cross_softmax_rotary"]
    with pytest.raises(InputError, match="encoder_hidden_states"):
        load_checkpoint(case.checkpoint)(case.tensors()["input_ids"])


def test_a_matching_model_needs_both_documents():
    case = models("fairseq", "model_lra_aan")["model_lra_aan_dual"]
    with pytest.raises(InputError, match="src1_tokens"):
        load_checkpoint(case.checkpoint)(**case.tensors("src_tokens", "src_lengths"))


@pytest.mark.parametrize(
    ("case", "lags"),
    [
        ("model_lm_enwik8", 2048),
        ("model_nmt_wmt_base", 1024),
        ("model_lra_listops_mp", 1024),
        ("model_lra_pf128_syncbn", 4096),
        ("model_sc_raw", 1000),
    ],
)
def test_an_argument_that_older_runs_lack_has_the_official_default(case, lags, tmp_path):
    path = tmp_path / "checkpoint.pt"
    for value, expected in [(GONE, lags), (None, None)]:
        path.write_bytes(with_args(case, truncation_length=value)())
        config = read_checkpoint(path).paper
        assert {stack.truncation for stack in stacks(config)} == {expected}


@pytest.mark.parametrize(
    ("case", "argument", "value"),
    [
        ("model_lm_enwik8", "decoder_chunk_size", -5),
        ("model_lm_enwik8", "decoder_chunk_size", 0),
        ("model_lm_enwik8", "decoder_ffn_embed_dim", -1),
        ("model_nmt_wmt_base", "encoder_chunk_size", -2),
        ("model_lra_listops_mp", "chunk_size", -(1 << 40)),
        ("model_lra_listops_mp", "encoder_ffn_embed_dim", -7),
        ("model_lra_listops_mp", "classifier_layers", -1),
        ("model_lra_listops_mp", "max_positions", -1),
        ("model_lra_listops_mp", "n_dim", -1),
        ("model_lra_listops_mp", "encoder_layers", 1 << 40),
    ],
)
def test_a_size_that_is_none_is_refused(case, argument, value, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(with_args(case, **{argument: value})())
    with pytest.raises(CheckpointError, match=f"must be.* got {value}"):
        read_checkpoint(path)


@pytest.mark.parametrize("option", ["chunk_size", "truncation", "max_positions", "nffn_hidden_size", "vocab_size"])
@pytest.mark.parametrize("value", [-5, 0, 1 << 40])
def test_a_size_that_is_none_in_a_folders_config_is_refused(option, value, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(HUGGING_FACE / "qa", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, option: value}))
    with pytest.raises(CheckpointError, match=f"(must be|needs).* got {value}"):
        read_checkpoint(folder)


def test_a_language_model_without_the_optional_arguments_is_the_plain_one(tmp_path):
    names = ["activation_dropout", "adaptive_softmax_cutoff", "tie_adaptive_weights", "normalize_embedding"]
    names += ["adaptive_input", "decoder_input_dim", "feature_dropout", "no_scale_embedding", "activation_fn"]
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(with_args("model_lm_enwik8", **dict.fromkeys(names, GONE))())
    told = read_checkpoint(FAIRSEQ / "model_lm_enwik8" / "checkpoint.pt").paper
    assert read_checkpoint(path).paper == replace(told, decoder=replace(told.decoder, activation_dropout=0.0))


def test_weights_that_are_one_are_counted_and_kept_once(tmp_path):
    """A stripped checkpoint holds less than its tensors together: an embedding has three names there."""
    content = fairseq("model_nmt_wmt_base")
    weights = dict(content["model"])
    giant = torch.randn(47, 24)
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        weights[name] = giant
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(saved({"args": content["args"], "model": weights}))
    model = load_checkpoint(path)
    assert torch.equal(model.target_table.weight, giant) and model.source_table is None
    tensors, _ = read_pt(saved({"a": torch.ones(1 << 16), "b": (one := torch.ones(1 << 18)), "c": one, "d": one}))
    assert tensors["b"] is tensors["c"] is tensors["d"]


def test_half_precision_becomes_float32(tmp_path):
    path = tmp_path / "checkpoint.pt"
    content = fairseq()
    halves = {name: value.half() for name, value in content["model"].items()}
    path.write_bytes(saved({**content, "model": halves}))
    weights = read_checkpoint(path).weights
    assert all(weight.dtype == "float32" for weight in weights.values())
    table = halves["encoder.encoder.embed_tokens.embed.weight"]
    assert torch.equal(torch.from_numpy(weights["table.weight"]), table.float())
