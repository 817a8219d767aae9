"""The paper's Mega as plain data: options, lengths, and no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.paper_signature import check_lengths, signature
from mega_deploy.config.tasks import (
    ClassifierConfig,
    EmbeddingConfig,
    HuggingFaceConfig,
    LanguageModelConfig,
    OutputConfig,
    TranslationConfig,
    architecture,
    from_dict,
    to_dict,
)
from mega_deploy.errors import OptionError
from mega_deploy.signature import Range

STACK = MegaConfig(embed_dim=8, z_dim=4, hidden_dim=12, ffn_dim=16, ema_dim=2, num_layers=2, max_positions=60)
CHUNKED = replace(STACK, chunk_size=10)
WORDS = EmbeddingConfig(vocab_size=50, dim=8)
BANDS = EmbeddingConfig(vocab_size=50, dim=8, cutoffs=(12, 30), factor=2)
CONFIGS = [
    STACK,
    ClassifierConfig(encoder=CHUNKED, embedding=WORDS, classes=3, widths=(16, 16), pair=True),
    LanguageModelConfig(decoder=STACK, embedding=BANDS, output=OutputConfig(tied=True, cutoffs=(12, 30), factor=2)),
    TranslationConfig(
        encoder=replace(STACK, bidirectional=True),
        decoder=replace(STACK, max_positions=34, cross_positions=60),
        source=WORDS,
        target=WORDS,
        output=OutputConfig(tied=True),
        shared=True,
    ),
    HuggingFaceConfig(encoder=CHUNKED, vocab_size=50, head="multiple_choice"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=architecture)
def test_a_configuration_comes_back_from_json(config):
    assert from_dict(architecture(config), json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("change", "tells"),
    [
        ({"embed_dim": 0}, "embed_dim must be between 1"),
        ({"embed_dim": 1 << 21}, "embed_dim must be between 1"),
        ({"z_dim": 4.0}, "z_dim must be a whole number"),
        ({"num_layers": True}, "num_layers must be a whole number"),
        ({"attention": "cosine"}, "attention must be one of softmax, laplace, relu2, got 'cosine'"),
        ({"position": "rotary", "z_dim": 5}, "z_dim must be even"),
        ({"truncation": 0}, "truncation must be between 1"),
        ({"prenorm": 1}, "prenorm must be True or False"),
        ({"causal": "yes"}, "causal must be True or False"),
        ({"dropout": float("nan")}, "dropout must be"),
    ],
)
def test_an_impossible_option_is_refused_by_name(change, tells):
    with pytest.raises(OptionError, match=tells):
        replace(STACK, **change)


@pytest.mark.parametrize(
    ("make", "tells"),
    [
        (lambda: MegaConfig.from_dict({"embed_dim": 8}), "option z_dim is required"),
        (lambda: MegaConfig.from_dict({**STACK.to_dict(), "heads": 1}), "unknown option 'heads'"),
        (lambda: from_dict("mega", {}), "no architecture 'mega'"),
        (lambda: replace(WORDS, cutoffs=(50,)), "cutoffs must lie below the vocabulary of 50"),
        (lambda: replace(BANDS, factor=8), "factor 8 leaves nothing of dim 8"),
        (lambda: replace(BANDS, cutoffs=(30, 12)), "cutoffs must rise"),
        (lambda: replace(WORDS, pad=-1), "pad must be a token"),
        (lambda: OutputConfig(tied_projections=True), "tied_projections is for an adaptive softmax"),
        (lambda: replace(CONFIGS[2], embedding=WORDS), "needs the cutoffs and the factor"),
        (lambda: replace(CONFIGS[2], output=OutputConfig(cutoffs=(50,))), "cutoffs must lie below"),
        (lambda: replace(CONFIGS[3], target=replace(WORDS, vocab_size=40)), "shared table needs one vocabulary"),
        (lambda: replace(CONFIGS[3], decoder=STACK), "the decoder needs cross_positions"),
        (lambda: replace(CONFIGS[3], encoder=replace(STACK, embed_dim=4)), "reads embed_dim 8, but the encoder's is 4"),
        (lambda: replace(CONFIGS[1], widths=(16,) * 65), "widths must be a list of at most 64"),
        (lambda: replace(CONFIGS[4], head="chat"), "head must be one of model"),
    ],
)
def test_a_contradiction_between_options_is_refused(make, tells):
    with pytest.raises(OptionError, match=tells):
        make()


VALUES = ClassifierConfig(encoder=CHUNKED, embedding=EmbeddingConfig(vocab_size=None, dim=8), classes=3)


@pytest.mark.parametrize(
    ("config", "taken", "refused"),
    [
        (STACK, [1, 60, Range(1, 31, 60)], {61: "at most 60", Range(1, 31, 61): "--seq-range 1:31:60"}),
        (replace(STACK, position="rotary"), [61, Range(1, 31, 4096)], {}),
        # fairseq's tokens are padded to whole chunks; nothing else is.
        (CONFIGS[1], [9, 10, 13, Range(1, 31, 4096)], {}),
        (VALUES, [9, 10, 20, Range(1, 5, 10)], {13: "--seq-len 10 or 20", Range(1, 5, 20): "chunks of 10"}),
        (CHUNKED, [4, 20, Range(20, 20, 20)], {11: "chunks of 10", Range(10, 20, 30): "not each of 10 to 30"}),
        (CONFIGS[4], [4, 20], {11: "chunks of 10"}),
        (CONFIGS[3], [34], {35: "at most 34"}),
    ],
)
def test_lengths_that_a_model_cannot_take_are_refused(config, taken, refused):
    for length in taken:
        check_lengths(config, length)
    for length, tells in refused.items():
        with pytest.raises(OptionError, match=tells):
            check_lengths(config, length)


def test_an_adaptive_softmax_returns_logarithms():
    told = signature(CONFIGS[2], Range(1, 8, 60), Range(1, 1, 4))
    assert [(spec.name, str(spec)) for spec in told.outputs] == [
        ("log_probs", "[batch 1..4, seq_len 1..60, vocabulary 50]")
    ]


def test_none_of_it_needs_torch():
    code = "import sys, mega_deploy.config.paper_signature, mega_deploy.config.tasks; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
