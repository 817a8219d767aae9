"""Each module of the paper's Mega against the official code's outputs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from paper_goldens import Module, close, every_module, modules

from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.tasks import EmbeddingConfig, OutputConfig
from mega_deploy.errors import OptionError
from mega_deploy.models.paper.activation import ACTIVATIONS, laplace, relu2
from mega_deploy.models.paper.attention import GatedAttention, GatedCrossAttention
from mega_deploy.models.paper.ema import MultiHeadEMA
from mega_deploy.models.paper.embedding import AdaptiveEmbedding, ValueEmbedding
from mega_deploy.models.paper.encoder import FeedForward, MegaEncoder, MegaLayer
from mega_deploy.models.paper.norm import make_norm
from mega_deploy.models.paper.output import AdaptiveSoftmax
from mega_deploy.models.paper.position import RotaryBias, SimpleBias

BASE = MegaConfig(embed_dim=8, z_dim=4, hidden_dim=12, ffn_dim=16, ema_dim=2, num_layers=2)


def norm_name(name: str) -> str:
    return "batchnorm" if name == "syncbatchnorm" else name


def positive(size: int) -> int | None:
    return size if size > 0 else None


def attention_config(config: dict, **options) -> MegaConfig:
    return MegaConfig(
        embed_dim=config["embed_dim"],
        z_dim=config["zdim"],
        hidden_dim=config.get("hdim", 1),
        ffn_dim=None,
        ema_dim=config["ndim"],
        num_layers=1,
        attention=config["attention_activation"],
        position=config["rel_pos_bias"],
        norm=norm_name(config["norm_type"]),
        norm_affine=config["norm_affine"],
        prenorm=config["prenorm"],
        bidirectional=config.get("bidirectional", False),
        chunk_size=positive(config.get("chunk_size", -1)),
        truncation=config.get("truncation"),
        max_positions=config["max_positions"],
        activation=config["activation"],
        **options,
    )


@pytest.mark.parametrize("name", modules("MultiHeadEMA"))
def test_the_moving_average_is_the_official_one(name):
    case = Module(name)
    given = case.config
    config = dataclasses.replace(
        BASE,
        embed_dim=given["embed_dim"],
        ema_dim=given["ndim"],
        bidirectional=given["bidirectional"],
        truncation=given["truncation"],
    )
    ema = case.load(MultiHeadEMA(config), "move.")
    x = case.tensor("x")
    want = case.outputs.get("out", case.outputs.get("full_out"))
    close(ema(x, case.attention_mask()), want)
    if "kernel" in case.outputs:
        close(ema.kernel(x.shape[1]), case.outputs["kernel"])
    if "incremental" in case.flags:  # the recurrence knows no truncation
        ema.truncation = None
        steps = [case.outputs[f"step_{step:02}_out"] for step in range(len(case.flags["steps"]))]
        close(ema(x), np.concatenate(steps, 1))


@pytest.mark.parametrize("name", modules("MovingAverageGatedAttention"))
def test_gated_attention_is_the_official_one(name):
    case = Module(name)
    causal = case.flags.get("causal_mask", "incremental" in case.flags)
    config = attention_config(case.config, causal=causal)
    attention = case.load(GatedAttention(config), "mega_layer.")
    x = case.tensor("x")
    if "out" in case.outputs:
        close(attention(x, case.attention_mask()), case.outputs["out"])
        return
    steps = [case.outputs[f"step_{step:02}_out"] for step in range(len(case.flags["steps"]))]
    whole = x.shape[1] - x.shape[1] % (config.chunk_size or 1)
    close(attention(x[:, :whole]), np.concatenate(steps, 1)[:, :whole])


@pytest.mark.parametrize("name", modules("GatedCrossAttention"))
def test_gated_cross_attention_is_the_official_one(name):
    case = Module(name)
    config = attention_config(case.config)
    cross = case.load(GatedCrossAttention(config, config.max_positions), "cross_attn.")
    got = cross(case.tensor("query"), case.tensor("key"), case.attention_mask("key_padding_mask"))
    close(got, case.outputs.get("out", case.outputs.get("full_out")))


@pytest.mark.parametrize("name", modules("NormalizedFeedForwardNetwork"))
def test_the_feed_forward_network_is_the_official_one(name):
    case = Module(name)
    given = case.config
    config = dataclasses.replace(
        BASE,
        embed_dim=given["embed_dim"],
        activation=given["activation"],
        norm=given["norm_type"],
        prenorm=given["prenorm"],
        norm_affine=given["norm_affine"],
    )
    close(case.load(FeedForward(config, given["ffn_hidden_dim"]))(case.tensor("x")), case.outputs["out"])


@pytest.mark.parametrize("name", modules("SequenceNorm"))
def test_norms_are_the_official_ones(name):
    case = Module(name)
    norm = make_norm(norm_name(case.config["norm_type"]), case.config["embedding_dim"], case.config["affine"])
    norm = norm.double().eval()
    norm.load_state_dict({key.removeprefix("norm."): value for key, value in case.weights().items()})
    close(norm(case.tensor("x")), case.outputs["out"])


@pytest.mark.parametrize("name", modules("SimpleRelativePositionalBias", "RotaryRelativePositionalBias"))
def test_positional_biases_are_the_official_ones(name):
    case = Module(name)
    rotary = "embed_dim" in case.config
    bias = RotaryBias(case.config["embed_dim"]) if rotary else SimpleBias(case.config["max_positions"])
    bias = case.load(bias, "rel_pos_bias.")
    for key, want in case.outputs.items():
        length = int(key.removeprefix("bias_len"))
        close(bias(length, length), want)
        close(bias(1, length), want[:1])


@pytest.mark.parametrize("name", modules("MegaSentenceEncoderLayer", "MegaEncoderLayer", "MegaDecoderLayer"))
def test_layers_are_the_official_ones(name):
    case = Module(name)
    given = case.config
    decoder = "encoder_out" in case.inputs
    if "embedding_dim" in given:
        names = {"embed_dim": "embedding_dim", "z_dim": "z_dim", "hidden_dim": "hidden_dim", "ema_dim": "n_dim"}
        names |= {"attention": "attention_activation", "norm": "norm_type", "activation": "activation"}
        names |= {"prenorm": "prenorm"}
        names |= {"truncation": "truncation", "max_positions": "max_positions"}
        ffn, chunk = given["ffn_hidden_dim"], given["chunk_size"]
    else:
        side = "decoder" if decoder else "encoder"
        names = {
            ours: f"{side}_{theirs}"
            for ours, theirs in {
                "embed_dim": "embed_dim",
                "z_dim": "z_dim",
                "hidden_dim": "hidden_dim",
                "ema_dim": "n_dim",
            }.items()
        }
        names |= {"attention": "attention_activation_fn", "norm": "normalization_type", "prenorm": "normalize_before"}
        names |= {"activation": "activation_fn", "truncation": "truncation_length"}
        names |= {"max_positions": "max_target_positions" if decoder else "max_source_positions"}
        ffn, chunk = given[f"{side}_ffn_embed_dim"], given[f"{side}_chunk_size"]
    config = MegaConfig(
        **{ours: given[theirs] for ours, theirs in names.items()},
        ffn_dim=positive(ffn),
        chunk_size=positive(chunk),
        position=given["rel_pos_bias"],
        num_layers=1,
        bidirectional=not decoder,
        cross_positions=max(given["max_source_positions"], given["max_target_positions"]) if decoder else None,
    )
    layer = case.load(MegaLayer(config))
    if decoder:
        memory, memory_mask = case.tensor("encoder_out"), case.attention_mask("encoder_padding_mask")
        got = layer(case.tensor("x"), case.attention_mask("decoder_padding_mask"), memory, memory_mask)
    else:
        got = layer(case.tensor("x"), case.attention_mask())
    close(got, case.outputs["out"])


def test_activations_are_the_official_ones():
    case = Module("activations")
    x = case.tensor("x")
    for name, want in case.outputs.items():
        function = {"laplace": laplace, "relu2": relu2}.get(name) or ACTIVATIONS[name]
        close(function(x), want)


def bands(case: Module, prefix: str = "") -> AdaptiveEmbedding:
    """The case's adaptive input."""
    cutoffs = tuple(case.config["cutoff"])
    width = case.config.get("initial_dim", case.config.get("input_dim"))
    options = EmbeddingConfig(vocab_size=53, dim=width, cutoffs=cutoffs, factor=case.config["factor"])
    table = AdaptiveEmbedding(options, width).double()
    weights = case.weights()
    for band in range(len(cutoffs) + 1):
        table.tables[band].weight.data = weights[f"{prefix}embeddings.{band}.0.weight"]
        table.projections[band].weight.data = weights[f"{prefix}embeddings.{band}.1.weight"]
    return table


@pytest.mark.parametrize("name", modules("AdaptiveInput"))
def test_the_adaptive_input_is_the_official_one(name):
    case = Module(name)
    close(bands(case)(case.tensor("tokens")), case.outputs["out"])


@pytest.mark.parametrize("name", modules("AdaptiveSoftmax"))
def test_the_adaptive_softmax_is_the_official_one(name):
    case = Module(name)
    tied, projected = case.config["tied_to_adaptive_input"], case.config["tie_proj"]
    cutoffs = tuple(case.config["cutoff"])
    options = OutputConfig(tied=tied, cutoffs=cutoffs, factor=case.config["factor"], tied_projections=projected)
    output = AdaptiveSoftmax(options, 53, 24).double()
    weights = {name.removeprefix("adaptive_softmax."): value for name, value in case.weights().items()}
    if tied:
        output.bands.weight.data = weights["head.class_proj.weight"]
    else:
        output.words.weight.data, output.bands.weight.data = weights["head.weight"].split((cutoffs[0], len(cutoffs)))
    for band in range(len(cutoffs)):
        if not projected:
            output.projections[band].weight.data = weights[f"tail.{band}.0.weight"]
        if not tied:
            output.tails[band].weight.data = weights[f"tail.{band}.2.weight"]
    scores = output(case.tensor("features"), bands(case, "embed_tokens."))
    close(scores, case.outputs["log_probs"])
    assert torch.allclose(scores.exp().sum(-1), torch.ones(2, 9, dtype=torch.float64))


@pytest.mark.parametrize("name", modules("RealNumberEmbedding"))
def test_the_embedding_of_real_values_is_the_official_one(name):
    case = Module(name)
    close(case.load(ValueEmbedding(case.config["embedding_dim"]))(case.tensor("x")), case.outputs["out"])


def test_no_module_of_the_goldens_is_left_out():
    tested = {
        "AdaptiveInput",
        "AdaptiveSoftmax",
        "GatedCrossAttention",
        "MegaDecoderLayer",
        "MegaEncoderLayer",
        "MegaSentenceEncoderLayer",
        "MovingAverageGatedAttention",
        "MultiHeadEMA",
        "NormalizedFeedForwardNetwork",
        "RealNumberEmbedding",
        "RotaryRelativePositionalBias",
        "SequenceNorm",
        "SimpleRelativePositionalBias",
        "{laplace,relu2,get_activation_fn}",
    }
    assert sorted(modules(*tested)) == every_module()


def test_a_slow_decay_keeps_its_digits_in_float32():
    """Where 1 - p a rounds to 1 and log gives 0, log1p does not."""
    config = dataclasses.replace(BASE, embed_dim=1, ema_dim=1)
    ema = MultiHeadEMA(config)
    with torch.no_grad():
        ema.delta.fill_(-9.0)
        ema.alpha.fill_(-9.0)
        ema.beta.fill_(1.0)
        ema.gamma.fill_(1.0)
    single, double = ema.kernel(4096), ema.double().kernel(4096)
    assert double[0, -1] < double[0, 0]
    assert ((single - double).abs() / double).max() < 1e-6


def test_an_average_that_forgets_at_once_is_finite():
    """The official code makes NaN of it: 0 times the logarithm of 0."""
    ema = MultiHeadEMA(dataclasses.replace(BASE, embed_dim=1, ema_dim=1))
    with torch.no_grad():
        ema.delta.fill_(200.0)
        ema.alpha.fill_(200.0)
    kernel = ema.kernel(5)
    assert torch.equal(kernel, (ema.beta * ema.gamma) * torch.tensor([[1.0, 0, 0, 0, 0]]))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("truncation", [None, 5])
def test_the_moving_average_is_its_recurrence(bidirectional, truncation):
    """Term by term from the paper's definition, without the transform."""
    torch.manual_seed(0)
    config = dataclasses.replace(BASE, embed_dim=3, bidirectional=bidirectional, truncation=truncation)
    ema = MultiHeadEMA(config).double()
    x = torch.randn(2, 11, 3, dtype=torch.float64)
    p, q = torch.sigmoid(ema.delta), 1 - torch.sigmoid(ema.delta) * torch.sigmoid(ema.alpha)
    out = torch.zeros_like(x)
    for i in range(11):
        for j in range(11):
            if abs(i - j) >= (truncation or 11):
                continue
            weight = (p * ema.beta * ema.gamma * q ** abs(i - j)).sum(1) / math.sqrt(config.ema_dim)
            if j <= i:
                out[:, i] += weight[:3] * x[:, j]
            if bidirectional and j >= i:
                out[:, i] += weight[3:] * x[:, j]
    expected = torch.nn.functional.silu(out + ema.omega * x)
    assert torch.allclose(ema(x), expected, atol=1e-12)


@pytest.mark.parametrize("attention", ["softmax", "laplace", "relu2"])
def test_left_padding_of_a_causal_model_stays_finite_and_out_of_the_way(attention):
    """The official code makes NaN of it in softmax attention, which then spreads over the sequence."""
    torch.manual_seed(0)
    config = dataclasses.replace(BASE, attention=attention, position="rotary", causal=True)
    layer = MegaLayer(config).double()
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    keep = torch.tensor([[False] * 3 + [True] * 6])
    first, second = layer(x, keep), layer(torch.where(keep[..., None], x, 7.0), keep)
    assert torch.isfinite(first).all()
    assert torch.allclose(first[:, 3:], second[:, 3:])


def test_a_length_beyond_the_simple_bias_or_off_the_chunks_is_refused():
    short = dataclasses.replace(BASE, max_positions=4)
    with pytest.raises(OptionError, match=r"5 steps.*at most 4"):
        MegaEncoder(short)(torch.zeros(1, 5, 8))
    chunked = MegaEncoder(dataclasses.replace(BASE, chunk_size=4))
    assert chunked(torch.zeros(1, 3, 8)).shape == (1, 3, 8)
    assert chunked(torch.zeros(1, 8, 8)).shape == (1, 8, 8)
    with pytest.raises(OptionError, match=r"6 steps.*chunks of 4"):
        chunked(torch.zeros(1, 6, 8))
    with pytest.raises(OptionError, match="frames must be"):
        chunked(torch.zeros(1, 8, 7))


def test_an_encoder_can_be_trained():
    torch.manual_seed(0)
    config = dataclasses.replace(BASE, norm="batchnorm", dropout=0.1, attention_dropout=0.1, hidden_dropout=0.1)
    model = MegaEncoder(config)
    assert 0.015 < model.encoder.layers[0].attention.mx_proj.weight.std() < 0.025  # as the official code begins
    loss = model(torch.randn(4, 7, 8)).square().mean()
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
