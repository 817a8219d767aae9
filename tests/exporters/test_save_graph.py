"""The graph: what it holds, what it is called, and that it is the same each time."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnxscript import ir

import mega_deploy as md
from mega_deploy.errors import MegaDeployError
from mega_deploy.exporters import save_graph
from mega_deploy.exporters.edifice.fold import fold
from mega_deploy.exporters.edifice.window import mega_graph
from mega_deploy.models.edifice import Mega


@pytest.fixture(scope="module", params=["softmax", "laplace"])
def model(request):
    torch.manual_seed(0)
    laplace = request.param == "laplace"
    return Mega.build(
        embed_dim=6, hidden_size=16, ema_dim=3, num_layers=3, window_size=9, laplace_attention=laplace
    ).eval()


@pytest.fixture
def proto(model, tmp_path):
    return save_graph.save(mega_graph(fold(model)).model, tmp_path / "model.onnx")


def test_the_signature_is_frames_to_features_with_a_dynamic_batch(proto):
    def dims(value):
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    assert [(value.name, dims(value)) for value in proto.graph.input] == [("frames", ["batch", 9, 6])]
    assert [(value.name, dims(value)) for value in proto.graph.output] == [("features", ["batch", 16])]


def test_there_is_no_projection_more_than_folding_leaves(proto, model):
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("Conv") == 3
    # The input's; each block's ema.proj, ema.out, query, value, gate, out, and SwiGLU's three. Laplace attention has
    # keys as well, and in the last block no Gemm for the value.
    laplace = model.config.laplace_attention
    assert kinds.count("Gemm") == 1 + 3 * 9 + (3 - 1 if laplace else 0)
    # softmax: scores and weighted sum; laplace: the value behind the weighted sum, with its bias as a row.
    assert kinds.count("MatMul") == (1 if laplace else 2 * 3)


def test_nothing_is_copied_apart(proto):
    assert "Split" not in {node.op_type for node in proto.graph.node}


def test_every_laplace_attention_is_one_node_of_the_op(model, proto):
    nodes = [node for node in proto.graph.node if node.op_type == "LaplaceAttention"]
    if not model.config.laplace_attention:
        assert nodes == [] and not proto.functions
        return
    assert [(node.domain, node.overload) for node in nodes] == [("mega.deploy", "")] * 2 + [("mega.deploy", "last_row")]
    attributes = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes]
    assert attributes == [{"kernel": b"l1", "causal": 0}] * 3
    assert {(function.domain, function.name, function.overload) for function in proto.functions} == {
        ("mega.deploy", "LaplaceAttention", ""),
        ("mega.deploy", "LaplaceAttention", "last_row"),
    }


def test_every_op_is_a_standard_one_or_the_op_of_ours(proto):
    domains = {node.domain for node in (*proto.graph.node, *(n for f in proto.functions for n in f.node))}
    assert domains <= {"", "mega.deploy"}


SCRIPT = """
import hashlib, sys, torch
from pathlib import Path
from mega_deploy.exporters import save_graph
from mega_deploy.exporters.edifice.window import mega_graph
from mega_deploy.exporters.edifice.fold import fold
from mega_deploy.models.edifice import Mega
torch.manual_seed(3)
model = Mega.build(embed_dim=6, hidden_size=16, ema_dim=3, num_layers=2, window_size=9, laplace_attention=True).eval()
save_graph.save(mega_graph(fold(model)).model, Path(sys.argv[1]))
"""


def test_the_same_model_gives_the_same_bytes_in_every_process(tmp_path):
    digests = set()
    for seed in ("0", "1"):
        path = tmp_path / f"{seed}.onnx"
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(path)], check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_large_weights_go_to_a_file_beside_the_model(model, tmp_path, monkeypatch):
    frames = np.random.default_rng(0).standard_normal((2, 9, 6), dtype=np.float32)
    want = md.export(model, tmp_path / "inline.mega").session().run(frames)
    monkeypatch.setattr(save_graph, "MAX_INLINE_BYTES", 1000)
    bundle = md.export(model, tmp_path / "split.mega")
    assert bundle.manifest.files["model.onnx.data"]["bytes"] > bundle.manifest.files["model.onnx"]["bytes"] / 4
    assert np.array_equal(bundle.session().run(frames), want)
    assert [block.name for block in md.validate(bundle).blocks] == [f"blocks.{index}.output" for index in range(3)]


def test_a_graph_with_a_loop_is_refused(tmp_path):
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=[4])
    total = ir.node("CumSum", [x, ir.val("axis", dtype=ir.DataType.INT64, shape=[])])
    graph = ir.Graph([x, total.inputs[1]], total.outputs, nodes=[total], opset_imports={"": 20}, name="g")
    total.outputs[0].name, total.outputs[0].dtype, total.outputs[0].shape = "y", ir.DataType.FLOAT, ir.Shape([4])
    with pytest.raises(MegaDeployError, match="CumSum"):
        save_graph.save(ir.Model(graph, ir_version=10), tmp_path / "bad.onnx")


def test_an_invalid_graph_is_refused(tmp_path):
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=[4])
    bad = ir.node("NoSuchOperator", [x])
    bad.outputs[0].name, bad.outputs[0].dtype, bad.outputs[0].shape = "y", ir.DataType.FLOAT, ir.Shape([4])
    graph = ir.Graph([x], bad.outputs, nodes=[bad], opset_imports={"": 20}, name="g")
    with pytest.raises(MegaDeployError, match="NoSuchOperator"):
        save_graph.save(ir.Model(graph, ir_version=10), tmp_path / "bad.onnx")
