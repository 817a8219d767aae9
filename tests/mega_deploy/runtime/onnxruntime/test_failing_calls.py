"""A graph that fails in the middle of a call, or gives what its signature does not say, is one line and exit code 2."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import process
from model_attacks import ATTACKS
from paper_goldens import DATA
from spoiling import spoil

import mega_deploy as md
from mega_deploy.bundle import PREFILL, STEP, describe_files
from mega_deploy.errors import BundleError, InputError
from mega_deploy.runtime.onnxruntime.calls import call_error
from mega_deploy.signature import Range, Signature, TensorSpec
from mega_deploy.signature.outputs import OutputCheck


def attacked(pristine: Path, target: Path, model: onnx.ModelProto) -> Path:
    return spoil(pristine, target, lambda proto: proto.CopyFrom(model))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_one_line(name, pristine, tmp_path, frames, capfd):
    make, tells = ATTACKS[name]
    bundle = attacked(pristine, tmp_path / "x.mega", make())
    with pytest.raises(InputError, match=tells) as caught:
        md.open_bundle(bundle).session().run(frames)
    assert str(caught.value).isprintable() and caught.value.exit_code == 2
    assert capfd.readouterr() == ("", "")  # onnxruntime's own log says nothing besides


def test_the_command_exits_with_2_and_writes_nothing(pristine, tmp_path, frames):
    bundle = attacked(pristine, tmp_path / "x.mega", ATTACKS["gather"][0]())
    np.save(tmp_path / "x.npy", frames)
    done = process("run", bundle, tmp_path / "x.npy", "-o", tmp_path / "y.npy")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: the model fails")
    assert not (tmp_path / "y.npy").exists()


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> Path:
    """A language model whose manifest does not say how many tokens there are."""
    source = DATA / "fairseq" / "model_lm_softmax_nochunk" / "checkpoint.pt"
    bundle = md.export(source, tmp_path_factory.mktemp("language") / "x.mega", seq_len=8, form="both").path
    manifest = json.loads((bundle / "manifest.json").read_text())
    stream = manifest["stream"]
    for spec in (manifest["signature"]["inputs"][0], stream["inputs"][0], stream["prefill"]["inputs"][0]):
        del spec["values"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def test_a_token_beyond_the_vocabulary_is_one_line_in_every_form(language):
    bundle = md.open_bundle(language)
    stream = bundle.stream()
    for call in (
        lambda: bundle.session().run(np.full((1, 8), 99_999)),
        lambda: stream.prefill(np.full((1, 4), 99_999)),
        lambda: stream.step(np.array([99_999])),
    ):
        with pytest.raises(BundleError, match="fails on inputs that fit its signature"):
            call()
    with pytest.raises(InputError, match="stream 0 was in a call that did not end"):
        stream.step(np.array([1]))
    stream.reset()
    assert np.isfinite(stream.step(np.array([1]))).all()


@pytest.mark.parametrize("graph", [STEP, PREFILL])
@pytest.mark.parametrize("change", ["width", "type"])
def test_a_streams_graphs_are_held_against_their_signature(graph, change, model, tmp_path):
    bundle = md.export(model, tmp_path / "x.mega", form="stream").path
    proto = onnx.load(bundle / graph)
    output = next(value for value in proto.graph.output if value.name == "features")
    for node in proto.graph.node:
        node.output[:] = ["inner" if name == "features" else name for name in node.output]
        node.input[:] = ["inner" if name == "features" else name for name in node.input]
    if change == "width":
        proto.graph.node.append(onnx.helper.make_node("Concat", ["inner", "inner"], ["features"], axis=-1))
        output.type.tensor_type.shape.dim[-1].dim_param = "width"
    else:
        proto.graph.node.append(onnx.helper.make_node("Cast", ["inner"], ["features"], to=onnx.TensorProto.DOUBLE))
        output.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    onnx.save(proto, bundle / graph)
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "files": describe_files(bundle)}))
    with pytest.raises(BundleError, match='"features"'):
        md.open_bundle(bundle).stream().prefill(np.zeros((1, 4, 6), np.float32))


BATCH, LENGTH = Range(1, 1, 4), Range(1, 2, 9)
GIVEN = Signature(
    (TensorSpec("x", "int64", (BATCH, LENGTH), ("batch", "seq_len")),),
    (
        TensorSpec("y", "float32", (BATCH, LENGTH, 3), ("batch", "seq_len", "width")),
        TensorSpec("free", "float32", (BATCH, Range(1, 1, 5)), ("batch", "kept")),
        TensorSpec("inner", "float32", ()),
    ),
)


@pytest.mark.parametrize(
    ("change", "tells"),
    [
        ({}, None),
        ({"inner": np.zeros((9, 9))}, None),
        ({"y": np.zeros((2, 4, 3), np.float32)}, '"y" as float32 .2, 4, 3.'),
        ({"y": np.zeros((1, 5, 3), np.float32)}, '"y"'),
        ({"y": np.zeros((2, 5, 4), np.float32)}, '"y"'),
        ({"y": np.zeros((2, 5, 3))}, '"y" as float64'),
        ({"y": np.zeros((2, 5), np.float32)}, '"y"'),
        ({"free": np.zeros((2, 6), np.float32)}, '"free"'),
    ],
)
def test_outputs_have_the_sizes_of_the_inputs_of_the_same_call(change, tells):
    good = {"y": np.zeros((2, 5, 3), np.float32), "free": np.zeros((2, 5), np.float32), "inner": np.zeros(1)}
    check = OutputCheck(GIVEN)
    if tells is None:
        check({"x": np.zeros((2, 5), np.int64)}, {**good, **change})
        return
    with pytest.raises(BundleError, match=tells):
        check({"x": np.zeros((2, 5), np.int64)}, {**good, **change})


def test_what_is_not_onnxruntimes_stays_as_it_is():
    for error in (TypeError("a slip of ours"), BundleError("ours already")):
        assert call_error(error, {}) is error
    assert "not enough memory" in str(call_error(MemoryError("no"), {}))
    assert "not enough memory" in str(call_error(RuntimeError("std::bad_alloc"), {}))


def test_what_a_signals_handler_raises_while_a_graph_is_loaded_stays_as_it_is(pristine, monkeypatch):
    class Interrupted(Exception):
        pass

    def interrupted(*_, **__):
        raise Interrupted

    monkeypatch.setattr("onnxruntime.InferenceSession", interrupted)
    with pytest.raises(Interrupted):
        md.open_bundle(pristine).session()
