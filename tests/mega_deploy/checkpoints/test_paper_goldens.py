"""Checkpoints of fairseq and of Hugging Face give the outputs of fairseq and of Hugging Face."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from paper_goldens import CLASSIFIERS, HUGGING_FACE, LANGUAGE_MODELS, TRANSLATIONS, close

from mega_deploy.checkpoints import load_checkpoint, model_source, read_checkpoint, save_checkpoint
from mega_deploy.config.paper_signature import check_lengths, signature, stacks
from mega_deploy.signature import Range

ALL = {**CLASSIFIERS, **LANGUAGE_MODELS, **TRANSLATIONS, **HUGGING_FACE}


def loaded(case):
    model = load_checkpoint(case.checkpoint)
    assert not model.training
    assert model.source.format == case.source
    return model.double()


def test_the_goldens_are_there():
    assert (len(CLASSIFIERS), len(LANGUAGE_MODELS), len(TRANSLATIONS)) == (12, 6, 3)
    assert len(HUGGING_FACE) >= 22


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_of_fairseq(name):
    case = CLASSIFIERS[name]
    model = loaded(case)
    with torch.no_grad():
        close(model(**case.tensors())["logits"], case.outputs["logits"])
        tokens, lengths = case.tensors("src_tokens", "src_lengths").values()
        close(model.represent(tokens, lengths), case.outputs["sentence_rep"])


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_language_model_of_fairseq(name):
    case = LANGUAGE_MODELS[name]
    model = loaded(case)
    kinds = [kind.removeprefix("tokens_") for kind in case.inputs if kind.startswith("tokens_")]
    assert kinds
    for kind in kinds:
        tokens = case.tensors(f"tokens_{kind}")[f"tokens_{kind}"]
        with torch.no_grad():
            got = model(tokens)
        if f"log_probs_tokens_{kind}" in case.outputs:
            close(got["log_probs"], case.outputs[f"log_probs_tokens_{kind}"])
        elif model.config.output.cutoffs:  # what fairseq returns here are features
            with torch.no_grad():
                close(model.features(tokens), case.outputs[f"out_tokens_{kind}"])
        else:
            close(got["logits"], case.outputs[f"out_tokens_{kind}"])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", TRANSLATIONS)
def test_a_translation_of_fairseq(name, side):
    case = TRANSLATIONS[name]
    model = loaded(case)
    feeds = case.tensors(f"src_tokens_{side}", "src_lengths", "prev_output_tokens")
    feeds["src_tokens"] = feeds.pop(f"src_tokens_{side}")
    with torch.no_grad():
        got = model(**feeds)["logits"]
        close(got, case.outputs[f"tf_logits_{side}"])
        if side == "left":  # the same prefix fed token by token to the official code
            close(got, case.outputs["incr_logits_left"])
        memory, _ = model.encode(feeds["src_tokens"])
    close(memory, case.outputs[f"encoder_out_{side}"])


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_greedy_translation_follows_the_official_one(name):
    """Each token from the whole prefix; the official code decodes step by step."""
    case = TRANSLATIONS[name]
    model = loaded(case)
    tokens = torch.from_numpy(case.outputs["greedy_tokens"])
    prefix = torch.cat([torch.full_like(tokens[:, :1], 2), tokens[:, :-1]], 1)
    with torch.no_grad():
        memory = model.encode(case.tensors("src_tokens_left")["src_tokens_left"])
        scores = model.decode(prefix, *memory)
    close(scores, case.outputs["greedy_logits"])


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_a_class_of_hugging_face(name):
    case = HUGGING_FACE[name]
    model = loaded(case)
    with torch.no_grad():
        got = model(**case.tensors())
    for output, value in got.items():  # with a cache, transformers forgets the truncation; without, it does not
        want = case.outputs.get(f"nocache_{output}", case.outputs.get(output))
        close(value, want)
    told = signature(model.config, Range(1, 4, 32), Range(1, 1, 8))
    assert set(got) == {spec.name for spec in told.outputs}
    assert set(case.inputs) <= {spec.name for spec in told.inputs}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    "name",
    [
        "model_lra_pf128_syncbn",
        "model_lm_wiki103_adaptive",
        "model_nmt_wmt_base",
        "mlm_softmax_rotary",
        "model_rmsnorm",
    ],
)
def test_a_native_checkpoint_gives_the_model_back(name, suffix, tmp_path):
    model = load_checkpoint(ALL[name].checkpoint)
    path = tmp_path / f"own{suffix}"
    save_checkpoint(model, path)
    again = load_checkpoint(path)
    assert again.config == model.config
    assert again.source.format == "native"
    state = again.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    save_checkpoint(again, tmp_path / f"twice{suffix}")
    if suffix == ".safetensors":
        assert (tmp_path / f"twice{suffix}").read_bytes() == path.read_bytes()


def test_the_source_of_a_model_is_its_file_until_it_is_trained_on():
    model = load_checkpoint(ALL["model_lra_listops_mp"].checkpoint)
    assert model_source(model) == model.source
    with torch.no_grad():
        model.output.weight += 1
    assert model_source(model).format == "torch-module"


@pytest.mark.parametrize("name", ALL)
def test_the_signature_names_what_the_model_takes_and_gives(name):
    """Inputs made from the signature alone go in, and outputs of its shapes come out."""
    model = load_checkpoint(ALL[name].checkpoint)
    config, batch = model.config, 2
    # A whole number of every chunk here, unless a simple bias ends before.
    length = next((stack.chunk_size for stack in stacks(config) if stack.chunk_size is not None), 16)
    check_lengths(config, length)
    told = signature(config, length, Range(1, 2, 4))
    sizes = {"batch": batch, "seq_len": length, "choices": 3}

    def shape(spec):
        return tuple(sizes.get(axis, dim) for axis, dim in zip(spec.axes, spec.dims, strict=True))

    random = np.random.default_rng(0)
    feeds = {}
    for spec in told.inputs:
        if spec.dtype == "float32":
            array = random.standard_normal(shape(spec), np.float32)
        elif spec.name.endswith("lengths"):
            array = np.full(batch, length)
        else:
            array = random.integers(1 if spec.name.endswith("mask") else 0, 2, shape(spec))
        feeds[spec.name] = torch.from_numpy(array)
    with torch.no_grad():
        outputs = model(**feeds)
    assert {key: tuple(value.shape) for key, value in outputs.items()} == {s.name: shape(s) for s in told.outputs}
    assert all(torch.isfinite(value).all() for value in outputs.values())
    json.dumps(told.to_json())


def test_what_the_arguments_say_becomes_the_configuration():
    config = read_checkpoint(ALL["model_lm_wiki103_adaptive"].checkpoint).paper
    assert config.embedding.vocab_size == 53
    assert config.embedding.cutoffs == config.output.cutoffs == (12, 30)
    assert config.output.tied and config.output.tied_projections
    assert (config.decoder.chunk_size, config.decoder.truncation, config.decoder.position) == (8, 8192, "rotary")
    assert config.decoder.prenorm and not config.decoder.final_norm_affine and config.decoder.is_causal
    assert (config.decoder.dropout, config.decoder.activation_dropout) == (0.1, 0.1)
    config = read_checkpoint(ALL["model_nmt_wmt_base"].checkpoint).paper
    assert config.shared and config.output.tied and not config.encoder.prenorm
    assert (config.encoder.max_positions, config.decoder.max_positions, config.decoder.cross_positions) == (40, 34, 40)
    assert (config.encoder.z_dim, config.decoder.z_dim, config.decoder.ema_dim) == (16, 12, 5)
    config = read_checkpoint(ALL["model_lra_cls_dual_2layer_head"].checkpoint).paper
    assert (config.pair, config.pooling, config.widths, config.classes) == (True, "first", (44, 44), 3)
