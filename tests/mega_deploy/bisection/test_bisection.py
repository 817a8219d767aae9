"""The first bad block and node: of bundles that were spoilt on purpose, and of backends that compute wrongly."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorrt_rtx
import torch
from edifice_models import KINDS, SMALL
from spoiling import added, spoil

import mega_deploy as md
from mega_deploy.bisection import engine_parts
from mega_deploy.errors import BundleError, MissingComponentError
from mega_deploy.machine.gpu import Gpu, Machine
from mega_deploy.models.edifice import Mega
from mega_deploy.runtime import Session

WIDER = {"embed_dim": 12, "hidden_size": 64, "ema_dim": 8, "num_layers": 2, "window_size": 20}  # enough for int8
PRECISIONS = ("float32", "float16", "bfloat16", "int8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function that gives the bundle of a kind and a precision, made once."""
    folder, known = tmp_path_factory.mktemp("bisected"), {}

    def make(kind, precision="float32", **options):
        key = (kind, precision, *options)
        if key not in known:
            torch.manual_seed(2)  # int8 does not do for every untrained model
            sizes = WIDER if precision == "int8" else SMALL
            model = Mega.build(**sizes, laplace_attention=kind == "laplace").eval()
            known[key] = md.export(model, folder / "-".join(key), precision=precision, **options).path
        return known[key]

    return make


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_good_bundle_has_no_bad_block(made, kind, precision):
    found = md.bisect(made(kind, precision))
    assert found.passed and found.block is None and found.node is None and found.advice == "nothing to do"
    assert [value.name for value in found.blocks] == ["blocks.0.output", "blocks.1.output", "features"]
    for value in found.blocks:  # the limits are what rounding costs, and no wide guess
        assert value.error.relative_l2 > value.limit.relative_l2 / 30


def test_ranges_of_lengths_and_the_blocked_average_are_looked_into_as_well(made):
    path = made("softmax", seq_range="1:8:80", ema="blocked")
    assert md.bisect(path).passed


@pytest.mark.parametrize(
    ("constant", "block", "op"),
    [
        ("input_projection.weight", "blocks.0", "Gemm"),
        ("blocks.0.ema.kernel", "blocks.0", "Conv"),
        ("blocks.1.attention.out.weight", "blocks.1", "Gemm"),
        ("blocks.1.ffn.down.bias", "blocks.1", "Gemm"),
        ("final_norm.beta", "output", "LayerNormalization"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_spoilt_weight_is_found_with_its_node(made, tmp_path, kind, constant, block, op):
    path = spoil(made(kind), tmp_path / "x.mega", added(constant, 0.3))
    assert not md.validate(path).passed
    found = md.bisect(path)
    assert (found.passed, found.block, found.spoilt) == (False, block, (constant,))
    assert found.node.op == op and found.node.error.relative_l2 > 100 * found.node.limit.relative_l2
    node = next(node for node in onnx.load(path / "model.onnx").graph.node if node.name == found.node.node)
    assert constant in node.input
    assert constant in found.advice and "export the model anew" in found.advice


@pytest.mark.parametrize(("precision", "block"), [("float16", "blocks.1"), ("int8", None)])
def test_a_spoilt_weight_of_a_lower_precision_is_found(made, tmp_path, precision, block):
    """Among 8-bit weights a single wrong one drowns in what the others round, so that only its own value tells it."""
    names = [tensor.name for tensor in onnx.load(made("softmax", precision) / "model.onnx").graph.initializer]
    constant = next(name for name in names if name.startswith("blocks.1.ffn.down.weight"))
    path = spoil(made("softmax", precision), tmp_path / "x.mega", added(constant, 60))
    found = md.bisect(path)
    assert (found.passed, found.spoilt, found.block) == (False, (constant,), block)
    assert "export the model anew" in found.advice


def wrong(monkeypatch, name, change=1e-3):
    """Let every session give another number for one value, and all that is computed from it in the same session."""
    run_named = Session.run_named

    def run(self, inputs):
        outputs = run_named(self, inputs)
        return {key: value + change * np.abs(value).max() if key == name else value for key, value in outputs.items()}

    monkeypatch.setattr(Session, "run_named", run)


def test_a_backend_that_computes_one_node_wrongly_is_found(made, monkeypatch):
    wrong(monkeypatch, "blocks.0.output")
    found = md.bisect(made("softmax"))
    assert (found.block, found.node.name, found.spoilt) == ("blocks.0", "blocks.0.output", ())
    assert "onnxruntime computes Add wrongly" in found.advice


def test_in_a_lower_precision_the_advice_keeps_the_layer_in_float32(made, monkeypatch):
    wrong(monkeypatch, "blocks.0.output", 0.5)
    found = md.bisect(made("softmax", "float16"))
    assert found.block == "blocks.0" and found.advice.endswith("--precision float16 --float32 blocks.0.ffn")
    assert md.export(Mega.build(**SMALL).eval(), made("softmax").parent / "kept", precision="float16",
                     float32=["blocks.0.ffn"]).manifest.float32_islands  # fmt: skip


def test_outputs_beyond_their_limit_are_bad_also_where_no_node_is(made, monkeypatch):
    monkeypatch.setattr("mega_deploy.parity.Error.within", lambda self, limit: False)
    monkeypatch.setattr("mega_deploy.bisection.search.Value.passed", True)
    found = md.bisect(made("softmax"))
    assert not found.passed and found.block is None and "errors add up" in found.advice


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt-rtx"])
def test_backends_that_are_not_here_are_told_first(made, tmp_path, backend):
    path = Path(shutil.copytree(made("softmax"), tmp_path / "x.mega"))
    if backend == "tensorrt-rtx":
        md.build(path, target=backend)
    with pytest.raises(MissingComponentError, match=r"GPU|pip install"):
        md.bisect(path, backend=backend)


def test_a_graph_of_another_version_is_refused(made, monkeypatch):
    monkeypatch.setattr("mega_deploy.bisection.rebuild_graph.Rebuilt.blocks", ("blocks.0.renamed",), raising=False)
    monkeypatch.setattr("mega_deploy.bisection.rebuild_graph.Rebuilt.__init__", renamed(("blocks.0.renamed",)))
    with pytest.raises(BundleError, match=r"another mega-deploy .* has no blocks\.0\.renamed"):
        md.bisect(made("softmax"))


def renamed(blocks):
    def init(self, exact, lowered, _blocks):
        self.__dict__.update(exact=exact, lowered=lowered, blocks=blocks)

    return init


@pytest.fixture
def engines(monkeypatch):
    """TensorRT-RTX builds every part for real; onnxruntime then runs the part, for lack of a GPU."""
    built = []
    compile_graph = engine_parts.compile_graph

    def compiled(trt, model, path, signature, configure, **ways):
        built.append(model.SerializeToString())
        return compile_graph(trt, model, path, signature, configure, **ways)

    class Execution:
        def __init__(self, trt, plan, path, signature):
            assert plan[:4] == b"vtrt" and trt is tensorrt_rtx
            self.session = onnxruntime.InferenceSession(built[-1], providers=["CPUExecutionProvider"])
            self.names = [spec.name for spec in signature.outputs]

        def run(self, feeds):
            return dict(zip(self.names, self.session.run(self.names, feeds), strict=True))

    monkeypatch.setattr(engine_parts, "compile_graph", compiled)
    monkeypatch.setattr(engine_parts, "Execution", Execution)
    monkeypatch.setattr(engine_parts, "look", lambda: Machine("580.1", (Gpu("Fake", "8.9"),), None, "linux-x86_64"))
    monkeypatch.setattr("mega_deploy.runtime.OpenBundle.parity_session", lambda self, *_, **__: self.session())
    return built


@pytest.mark.parametrize(("kind", "precision"), [("softmax", "float32"), ("laplace", "float16")])
def test_the_parts_of_an_engine_are_built_with_their_values_as_outputs(made, tmp_path, engines, kind, precision):
    found = md.bisect(made(kind, precision), backend="tensorrt-rtx")
    assert found.passed and len(engines) == 1
    name = "blocks.1.ffn.down.weight"
    path = spoil(made(kind, precision), tmp_path / "x.mega", added(name, 0.3))
    found = md.bisect(path, backend="tensorrt-rtx")
    assert (found.block, found.spoilt) == ("blocks.1", (name,)) and len(engines) == 3
    assert "ffn" in found.node.node
