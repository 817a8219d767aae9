"""int8, bfloat16 as it is emulated, and lower precisions of graphs that compute shapes."""

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from onnx import TensorProto, helper
from onnxscript import ir
from precision_models import SHAPE, build, run
from strategies import relative_l2, trained_output

from mega_deploy.errors import MegaDeployError
from mega_deploy.exporters import save_graph
from mega_deploy.exporters.edifice.fold import fold
from mega_deploy.exporters.edifice.window import mega_graph
from mega_deploy.exporters.precision.lowering import lower
from mega_deploy.exporters.precision.quantise import LARGEST, quantise_in_blocks, quantise_weight
from mega_deploy.runtime import parity_session
from mega_deploy.runtime.onnxruntime.emulation import emulated
from mega_deploy.signature import Range, Signature, TensorSpec


@pytest.fixture(scope="module", params=[False, True], ids=["softmax", "laplace"])
def graph(request):
    return mega_graph(fold(build(request.param))).model


# int8.


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([1e-45, 1e-6, 1.0, 1e6]))
def test_a_weight_has_seven_bits_and_is_off_by_half_a_step_of_its_channel(rows, columns, seed, scale):
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32) * np.float32(scale)
    weight[:, 0] = 0
    whole, step = quantise_weight(weight)
    assert whole.dtype == np.int8 and np.abs(whole.astype(int)).max() <= LARGEST
    assert (np.abs(whole * step.astype(np.float64) - weight) <= 0.5001 * step).all()
    assert (whole[:, 0] == 0).all()


def test_two_products_fit_in_int16_so_that_no_processor_saturates():
    assert 2 * 255 * LARGEST <= np.iinfo(np.int16).max < 2 * 255 * (LARGEST + 1)


def test_int8_quantises_the_layers_and_nothing_else(graph):
    lowered = lower(graph, "int8")
    kinds = [node.op_type for node in lowered.model.graph]
    before = [node.op_type for node in graph.graph]
    variable = [node for node in graph.graph if node.op_type == "MatMul" and not node.inputs[1].is_initializer()]
    assert kinds.count("Gemm") == 1 and kinds.count("MatMul") == len(variable)
    assert kinds.count("MatMulInteger") == before.count("Gemm") - 1 + before.count("MatMul") - len(variable)
    assert kinds.count("Conv") == before.count("Conv") == 3
    assert {"input_projection", "blocks.0.ema.Conv", "final_norm"} <= set(lowered.float32_nodes)
    assert not any(name.endswith((".ffn.down", ".attention.out", ".ema.proj")) for name in lowered.float32_nodes)
    # One quantisation serves all layers that read the same values.
    read = [node.inputs[0].name for node in lowered.model.graph if node.op_type == "QuantizeLinear"]
    assert len(read) == len(set(read))


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
def test_a_product_may_be_the_output_of_a_model(precision, tmp_path):
    """As of a language model's logits: the last layer is lowered, and the output keeps its name and stays float32."""
    random = np.random.default_rng(0)
    names, sizes = ("input", "head"), ((6, 40), (40, 50))
    weights = [random.standard_normal(size).astype(np.float32) for size in sizes]
    tensors = [onnx.numpy_helper.from_array(w, f"{name}.weight") for name, w in zip(names, weights, strict=True)]
    nodes = [
        helper.make_node("MatMul", ["frames", "input.weight"], ["h"], name="input/MatMul"),
        helper.make_node("MatMul", ["h", "head.weight"], ["logits"], name="head/MatMul"),
    ]
    ends = [helper.make_tensor_value_info(*end) for end in (("frames", 1, ("n", 6)), ("logits", 1, ("n", 50)))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    lowered = lower(model, precision)
    proto = save_graph.save(lowered.model, tmp_path / "model.onnx")
    assert lowered.float32_nodes == ("input",) and list(proto.graph.output) == ends[1:]
    frames = random.standard_normal((3, 6)).astype(np.float32)
    signature = Signature((TensorSpec("frames", "float32", (3, 6)),), (TensorSpec("logits", "float32", ()),))
    got = parity_session(tmp_path / "model.onnx", signature, precision).run(frames)
    assert 1e-6 < relative_l2(got, frames @ weights[0] @ weights[1]) < 2e-2


@pytest.mark.parametrize("laplace", [False, True])
def test_int8_comes_as_near_as_its_bits_allow(laplace):
    model = build(laplace, hidden_size=64)
    frames = np.random.default_rng(0).standard_normal((4, *SHAPE)).astype(np.float32)
    got = run(lower(mega_graph(fold(model)).model, "int8").model, frames)
    assert 1e-3 < relative_l2(got, trained_output(model, frames)) < 5e-2


@pytest.mark.parametrize("laplace", [False, True])
def test_what_int8_gives_for_a_window_does_not_depend_on_its_batch(laplace):
    model = lower(mega_graph(fold(build(laplace, hidden_size=64))).model, "int8").model
    random = np.random.default_rng(0)
    frames = random.standard_normal((3, *SHAPE)).astype(np.float32)
    others = 1e4 * random.standard_normal((3, *SHAPE)).astype(np.float32)
    assert relative_l2(run(model, np.concatenate([frames, others]))[:3], run(model, frames)) < 1e-5


def test_a_row_of_zeros_is_no_reason_for_nan():
    model = build(laplace=False, hidden_size=64)
    for norm in (model.blocks[0].ema_norm, model.blocks[0].ffn_norm):
        norm.weight.data[:] = 0
    zeros = np.zeros((1, *SHAPE), np.float32)
    assert np.isfinite(run(lower(mega_graph(fold(model)).model, "int8").model, zeros)).all()


# bfloat16 emulated.


def test_the_emulation_rounds_every_result_as_bfloat16_does():
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((5, 7)).astype(np.float32), random.standard_normal((7, 3)).astype(np.float32)
    low = weight.astype(ml_dtypes.bfloat16)
    tensor = helper.make_tensor("w", TensorProto.BFLOAT16, low.shape, low.tobytes(), raw=True)
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.BFLOAT16),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["c"]),
        helper.make_node("Mul", ["b", "c"], ["d"]),
        helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", (5, 7)), ("y", (5, 3)))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    before = model.SerializeToString()
    session = onnxruntime.InferenceSession(emulated(model).SerializeToString())
    assert model.SerializeToString() == before

    def rounded(array):
        return array.astype(ml_dtypes.bfloat16).astype(np.float32)

    b = rounded(rounded(x) @ rounded(weight))
    want = rounded(b * rounded(1 / (1 + np.exp(-b))))
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], want)


def test_the_emulation_keeps_the_names_of_values(graph):
    lowered = ir.to_proto(lower(graph, "bfloat16").model)
    names = {name for node in lowered.graph.node for name in node.output}
    model = emulated(lowered)
    onnx.checker.check_model(model, full_check=True)
    assert names <= {name for node in model.graph.node for name in node.output}


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("seq_range", [None, Range(1, 40, 100)], ids=["static", "dynamic"])
@pytest.mark.parametrize("laplace", [False, True])
def test_sizes_are_no_numbers_to_lower(tmp_path, laplace, seq_range, precision):
    """The blocked moving average and ranges of lengths compute shapes in the graph."""
    model = build(laplace, window_size=40)
    graph = mega_graph(fold(model), ema="blocked", seq_range=seq_range)
    lowered = lower(graph.model, precision)
    save_graph.save(lowered.model, tmp_path / "model.onnx")  # whose checks tell where a type does not fit
    frames = np.random.default_rng(0).standard_normal((2, 40, model.config.embed_dim), np.float32)
    signature = Signature((TensorSpec("frames", "float32", frames.shape),), (TensorSpec("features", "float32", ()),))
    got = parity_session(tmp_path / "model.onnx", signature, precision).run(frames)
    want = model.double()(torch.from_numpy(frames).double()).detach().numpy()
    assert np.linalg.norm(got - want) <= {"float16": 5e-3, "bfloat16": 4e-2, "int8": 2e-1}[precision] * np.linalg.norm(
        want
    )


def test_a_weight_that_two_products_read_in_different_ways_is_refused():
    weight = ir.Value(name="w", shape=ir.Shape((4, 4)), type=ir.TensorType(ir.DataType.FLOAT))
    weight.const_value = ir.tensor(np.arange(16, dtype=np.float32).reshape(4, 4), name="w")
    x = ir.Value(name="x", shape=ir.Shape((1, 4)), type=ir.TensorType(ir.DataType.FLOAT))
    nodes = [
        ir.node("Gemm", [x, weight], {"transB": turned}, name=f"product.{turned}", version=21) for turned in (0, 1)
    ]
    for node in nodes:
        node.outputs[0].name, node.outputs[0].type = node.name, ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [x], [node.outputs[0] for node in nodes], nodes=nodes, initializers=[weight], opset_imports={"": 21}
    )
    with pytest.raises(MegaDeployError, match="quantised in two ways"):
        quantise_in_blocks(ir.Model(graph, ir_version=10), lambda node: False)
