"""The first bad block and node of the paper's models, whose graphs are trees of many sequences and norms."""

import dataclasses

import onnx
import pytest
import torch
from paper_goldens import MODELS
from spoiling import added, other_axis, other_body, other_op, spoil

import mega_deploy as md
from mega_deploy.models.paper import MegaConfig, MegaEncoder
from mega_deploy.parity import Error

LENGTHS = {
    "model_lm_enwik8": {"seq_len": 16},  # softmax
    "model_lm_relu2_chunk_trunc": {"seq_range": "1:16:20"},  # chunks that end within
    "model_lra_imdb_mp_chunk_pre": {"seq_range": "1:16:20"},  # laplace, scale norm: powers, and divisions by counts
    "model_nmt_laplace_rotary_chunk": {"seq_range": "1:15:20"},  # two sequences
    "model_token_types": {"seq_len": 16},  # two outputs
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function that gives a bundle by the name of its golden, made once."""
    folder, known = tmp_path_factory.mktemp("bisected"), {}

    def make(name):
        if name not in known:
            options = {**LENGTHS[name], "batch_range": "1:1:4"}
            known[name] = md.export(MODELS[name].checkpoint, folder / name, **options).path
        return known[name]

    return make


@pytest.mark.parametrize("name", LENGTHS)
def test_a_good_bundle_is_well_within_limits_that_are_no_wide_guess(made, name):
    found = md.bisect(made(name))
    assert found.passed and found.advice == "nothing to do"
    for value in found.blocks:
        assert 1 / 30 < value.error.relative_l2 / value.limit.relative_l2 < 0.7


@pytest.mark.parametrize("attention", ["softmax", "laplace", "relu2"])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_good_encoder_of_a_lower_precision_passes(tmp_path, attention, precision):
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "z_dim": 4, "hidden_dim": 8, "ffn_dim": 8, "ema_dim": 2, "num_layers": 2}
    model = MegaEncoder(MegaConfig(**sizes, attention=attention, chunk_size=4, norm="scalenorm")).eval()
    bundle = md.export(model, tmp_path / "x.mega", seq_len=8, batch_range="1:1:4", precision=precision)
    assert md.bisect(bundle).passed


@pytest.mark.parametrize(
    ("name", "constant", "block", "op"),
    [
        ("model_lm_enwik8", "decoder.layers.0.attention.query.weight", "decoder.layers.0", "Mul"),
        ("model_lm_relu2_chunk_trunc", "decoder.layers.1.attention.bias", "decoder.layers.1", "Gather"),
        ("model_lra_imdb_mp_chunk_pre", "encoder.layers.1.attention.ema.kernel", "encoder.layers.1", "Conv"),
        ("model_lra_imdb_mp_chunk_pre", "output.weight", "output", "Gemm"),
        ("model_nmt_laplace_rotary_chunk", "encoder.layers.1.ffn.first.weight", "encoder.layers.1", "Gemm"),
        ("model_nmt_laplace_rotary_chunk", "decoder.layers.0.attention.update.bias", "decoder.layers.0", "Gemm"),
        ("model_nmt_laplace_rotary_chunk", "decoder.layers.1.cross_attention.value.bias", "decoder.layers.1", "Gemm"),
        ("model_token_types", "encoder.layers.0.attention.value.weight", "encoder.layers.0", "Gemm"),
    ],
)
def test_a_spoilt_weight_is_found_with_its_node(made, tmp_path, name, constant, block, op):
    path = spoil(made(name), tmp_path / "x.mega", added(constant, 0.5))
    found = md.bisect(path)
    assert (found.passed, found.block, found.spoilt) == (False, block, (constant,))
    node = next(node for node in onnx.load(path / "model.onnx").graph.node if node.name == found.node.node)
    assert node.op_type == op and found.node.error.relative_l2 > 10 * found.node.limit.relative_l2


@pytest.mark.parametrize(
    ("name", "edit", "block", "op"),
    [
        ("model_lm_enwik8", other_axis("decoder.layers.1", "Softmax", 1), "decoder.layers.1", "Softmax"),
        ("model_lm_relu2_chunk_trunc", other_op("decoder.layers.0", "Relu", "Abs"), "decoder.layers.0", "Abs"),
        (
            "model_nmt_laplace_rotary_chunk",
            other_body("Erf", "Tanh"),
            "encoder.layers.0",
            "LaplaceAttention",
        ),
        ("model_lra_imdb_mp_chunk_pre", other_op("Gelu", "Gelu", "Relu"), "output", "Relu"),
    ],
)
def test_a_wrong_node_is_found_where_no_constant_is_spoilt(made, tmp_path, name, edit, block, op):
    found = md.bisect(spoil(made(name), tmp_path / "x.mega", edit), native_ops=False)
    assert (found.passed, found.block, found.node.op, found.spoilt) == (False, block, op, ())
    assert f"computes {op} wrongly" in found.advice


def test_a_native_kernel_is_suspected_of_its_own_op_alone(made, tmp_path):
    edit = other_op("Gelu", "Gelu", "Relu")
    found = md.bisect(spoil(made("model_lra_imdb_mp_chunk_pre"), tmp_path / "x.mega", edit), native_ops=False)
    served = dataclasses.replace(found, native_ops=("LaplaceAttention",))
    assert "computes Relu wrongly" in served.advice
    kernel = dataclasses.replace(found.values[-1], op="LaplaceAttention", error=Error(1.0, 1.0, 1.0))
    assert "--no-native-ops" in dataclasses.replace(served, values=(kernel,)).advice
