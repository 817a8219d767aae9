"""Engines are built for real by TensorRT-RTX, which needs no GPU."""

import dataclasses
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorrt_rtx
import torch
from edifice_models import KINDS, SMALL
from laplace_models import for_tensorrt, op_model

import mega_deploy as md
from mega_deploy.bundle.engine_file import read_header
from mega_deploy.errors import BundleError, OptionError
from mega_deploy.exporters import save_graph
from mega_deploy.exporters.edifice.fold import fold
from mega_deploy.exporters.edifice.window import mega_graph
from mega_deploy.exporters.precision.lowering import lower
from mega_deploy.exporters.tensorrt import library, network
from mega_deploy.exporters.tensorrt.compiling import compile_graph
from mega_deploy.models.edifice import Mega
from mega_deploy.plugins.laplace import DOMAIN
from mega_deploy.runtime.tensorrt import parsed as graph
from mega_deploy.signature import Range, Signature, TensorSpec

CAPABILITIES = list(library.capabilities(tensorrt_rtx))


@pytest.mark.parametrize("kind", KINDS)
def test_rtx_builds_an_engine_that_the_bundle_then_holds(bundles, tmp_path, kind):
    path = Path(shutil.copytree(bundles[kind], tmp_path / "x.mega"))
    steps = []
    engine = md.build(path, target="tensorrt-rtx", on_step=steps.append)
    assert engine.compute_capabilities == tuple(known for known in CAPABILITIES if known != "7.5")
    assert engine.profiles == ({"frames": {"min": [1, 8, 6], "opt": [4, 8, 6], "max": [16, 8, 6]}},)
    assert engine.layers > 50 and engine.seconds > 0 and engine.plugins == () and engine.gpu is None
    opened = md.open_bundle(path)
    assert opened.manifest.engines == (engine.to_json(),)
    header = read_header(opened.file(engine.file))
    assert header.library_version == engine.library_version == tensorrt_rtx.__version__
    assert any("build the engine: " in step and " of " in step for step in steps)
    frames = np.random.default_rng(0).standard_normal((3, 8, 6), np.float32)
    assert opened.session().run(frames).shape == (3, 16)


@pytest.mark.parametrize("ema", ["kernel", "blocked"])
@pytest.mark.parametrize("kind", KINDS)
def test_ranges_of_lengths_become_the_profile(tmp_path, kind, ema):
    torch.manual_seed(0)
    model = Mega.build(**SMALL, laplace_attention=kind == "laplace", output="sequence").eval()
    path = md.export(model, tmp_path / "x.mega", batch_range="1:2:3", seq_range="1:8:24", ema=ema).path
    engine = md.build(path, target="tensorrt-rtx")
    assert engine.profiles == ({"frames": {"min": [1, 1, 6], "opt": [2, 8, 6], "max": [3, 24, 6]}},)
    assert engine.outputs[0].dims == (Range(1, 2, 3), Range(1, 8, 24), 16)


def test_the_library_itself_says_that_the_engine_has_the_manifests_types_and_shapes(bundle, caplog):
    with caplog.at_level(logging.DEBUG, "mega_deploy.tensorrt"):
        md.build(bundle, target="tensorrt-rtx")
    layers = next(text for text in caplog.messages if text.startswith("Layers:"))
    found = dict(re.findall(r"Name: (frames|features), Dimensions: \[([-0-9,]+)\][^}]*Datatype: Float\b", layers))
    assert found == {"frames": "-1,6", "features": "-1,16"}  # the compiler folds [batch, 8] of the input into one axis
    assert "Half" not in layers and "BFloat" not in layers


@pytest.mark.parametrize(("precision", "written"), [("float16", "Half"), ("bfloat16", "BFloat16")])
@pytest.mark.parametrize("kind", KINDS)
def test_the_types_of_the_graph_are_those_of_the_engine(tmp_path, caplog, kind, precision, written):
    torch.manual_seed(0)
    model = Mega.build(**SMALL, laplace_attention=kind == "laplace").eval()
    path = md.export(model, tmp_path / "x.mega", precision=precision).path
    with caplog.at_level(logging.DEBUG, "mega_deploy.tensorrt"):
        assert md.build(path, target="tensorrt-rtx").precision == precision
    layers = next(text for text in caplog.messages if text.startswith("Layers:"))
    assert set(re.findall(r"Name: (?:frames|features), [^}]*Datatype: (\w+)", layers)) == {"Float"}
    assert f"Datatype: {written}" in layers


def test_an_int8_graph_is_refused_by_its_node(tmp_path):
    path = md.export(Mega.build(**SMALL).eval(), tmp_path / "x.mega", precision="int8").path
    with pytest.raises(BundleError, match=r"at node .*Quantize.*another precision"):
        md.build(path, target="tensorrt-rtx")
    assert md.open_bundle(path).manifest.engines == ()


def test_capabilities_are_taken_as_asked_and_declared_in_order(bundle):
    options = md.EngineOptions(compute_capabilities=("12.0", "8.9", "8.9"))
    assert md.build(bundle, target="tensorrt-rtx", options=options).compute_capabilities == ("8.9", "12.0")
    assert len(md.open_bundle(bundle).manifest.engines) == 1
    md.build(bundle, target="tensorrt-rtx")
    assert len(md.open_bundle(bundle).manifest.engines) == 1
    assert "8.0" in md.open_bundle(bundle).manifest.engines[0]["compute_capabilities"]


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("tensorrt-lean", {}, "tensorrt-lean.*tensorrt, tensorrt-rtx"),
        ("tensorrt-rtx", {"compute_capabilities": ("9.0",)}, "8.0, 8.6, 8.9.*'9.0'"),
        ("tensorrt-rtx", {"compute_capabilities": ("7.5", "8.0")}, "zeros in float32.*7.5"),
        ("tensorrt-rtx", {"version_compatible": True}, "for tensorrt"),
        ("tensorrt-rtx", {"hardware_compatibility": "same"}, "for tensorrt"),
        ("tensorrt-rtx", {"hardware_compatibility": "all"}, "none, same, ampere"),
        ("tensorrt-rtx", {"plugin_library": Path("x.so")}, "no plugins"),
        ("tensorrt", {"compute_capabilities": ("8.9",)}, "tensorrt-rtx"),
    ],
)
def test_an_impossible_option_is_refused_and_nothing_is_built(bundle, target, options, words):
    with pytest.raises(OptionError, match=words):
        md.build(bundle, target=target, options=md.EngineOptions(**options))
    assert md.open_bundle(bundle).manifest.engines == ()


def parse(model, listener=None):
    listener = listener or library.Listener(tensorrt_rtx, lambda step: None)
    builder = tensorrt_rtx.Builder(listener.logger)
    path = Path("model.onnx")
    return builder, network.parse(tensorrt_rtx, builder, model, path, listener), listener


def matmul(dtype, op="MatMul"):
    """x [batch, 4] times a constant [4, 3], cast from and to float32 where `dtype` is another one."""
    value = onnx.helper.make_tensor_value_info
    weights = onnx.helper.make_tensor("w", dtype, [4, 3], np.ones(12))
    nodes = [
        onnx.helper.make_node("Cast", ["x"], ["xc"], to=dtype),
        onnx.helper.make_node(op, ["xc", "w"], ["yc"], name="product"),
        onnx.helper.make_node("Cast", ["yc"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    ends = [value("x", onnx.TensorProto.FLOAT, ["batch", 4])], [value("y", onnx.TensorProto.FLOAT, ["batch", 3])]
    graph = onnx.helper.make_graph(nodes, "g", *ends, [weights])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(("dtype", "fine"), [("FLOAT16", True), ("FLOAT", False), ("BFLOAT16", False)])
def test_turing_takes_half_precision_alone(dtype, fine):
    parsed = parse(matmul(getattr(onnx.TensorProto, dtype)))
    if fine:
        network.check_turing(tensorrt_rtx, parsed[1])
    else:
        with pytest.raises(OptionError, match=r"7\.5 .*zeros.*8\.0 and up"):
            network.check_turing(tensorrt_rtx, parsed[1])


def test_what_the_parser_does_not_take_is_refused_by_its_node():
    model = matmul(onnx.TensorProto.FLOAT)
    model.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(BundleError, match=r"node product \(NoSuchOperator\)"):
        parse(model)


FRAMES = TensorSpec("x", "float32", (Range(1, 2, 8), 4))
RESULT = TensorSpec("y", "float32", (Range(1, 2, 8), 3))


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        (FRAMES, RESULT, None),
        (dataclasses.replace(FRAMES, name="z"), RESULT, "x, z"),
        (dataclasses.replace(FRAMES, dtype="float16"), RESULT, '"x" as float32'),
        (dataclasses.replace(FRAMES, dims=(2, 4)), RESULT, r'"x" as float32 \[-1, 4\]'),
        (FRAMES, dataclasses.replace(RESULT, dims=(Range(1, 2, 8), 4)), r'"y" as float32 \[-1, 3\]'),
        (FRAMES, dataclasses.replace(RESULT, dims=(Range(1, 2, 8), 3, 1)), '"y"'),
    ],
)
def test_a_network_must_be_what_the_signature_says(inputs, outputs, words):
    parsed = parse(matmul(onnx.TensorProto.FLOAT16))
    signature = Signature((inputs,), (outputs,))
    if words is None:
        network.check(tensorrt_rtx, parsed[1], signature)
    else:
        with pytest.raises(BundleError, match=words):
            network.check(tensorrt_rtx, parsed[1], signature)


def test_every_dynamic_axis_has_its_range_in_the_profile():
    tokens = TensorSpec("tokens", "int64", (Range(1, 2, 3), Range(4, 5, 6)))
    fixed = TensorSpec("fixed", "float32", (7,))
    shapes = network.profile_shapes(Signature((tokens, fixed), (RESULT,)))
    assert shapes == {"tokens": {"min": [1, 4], "opt": [2, 5], "max": [3, 6]}}


def test_shapes_that_the_library_refuses_are_told():
    builder, parsed, _ = parse(matmul(onnx.TensorProto.FLOAT))
    config = builder.create_builder_config()
    with pytest.raises(BundleError, match="range"):
        network.add_profile(builder, config, {"x": {"min": [4, 4], "opt": [2, 4], "max": [1, 4]}})
    network.add_profile(builder, config, {"x": {"min": [1, 4], "opt": [2, 4], "max": [4, 4]}})
    assert config.num_optimization_profiles == 1 and parsed.num_inputs == 1


def test_without_a_plugin_the_functions_are_inlined_and_the_numbers_stay(bundles):
    path = bundles["laplace"] / "model.onnx"
    assert onnx.load(path).functions
    model, served = graph.read(path.read_bytes())
    assert not served and not model.functions and not any(node.domain == DOMAIN for node in model.graph.node)
    frames = np.random.default_rng(0).standard_normal((3, 8, 6), np.float32)
    want, got = (
        onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, {"frames": frames})[0]
        for source in (path, model.SerializeToString())
    )
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_with_a_plugin_its_nodes_stay_and_name_it(bundles):
    path = bundles["laplace"] / "model.onnx"
    model, served = graph.read(path.read_bytes(), plugin=True)
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    assert served and not model.functions and len(nodes) == 2
    for node in nodes:
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        assert (attributes["plugin_version"], attributes["plugin_namespace"]) == (b"1", DOMAIN.encode())
        assert attributes["kernel"] == b"l1" and node.overload == ""


@pytest.mark.parametrize(
    ("options", "present", "inputs"),
    [
        ({}, 3, 0),
        ({"kernel": "erf"}, 3, 0),
        ({"kernel": "erf", "bias": True}, 4, 1),
        ({"kernel": "erf", "row_scale": True}, 4, 2),
        ({"kernel": "erf", "bias": True, "row_scale": True}, 5, 3),
    ],
)
def test_a_plugins_node_has_the_inputs_that_are_there_and_says_which(tmp_path, options, present, inputs):
    onnx.save(op_model(3, 5, 4, 6, **options), tmp_path / "model.onnx")
    model, served = graph.read((tmp_path / "model.onnx").read_bytes(), plugin=True)
    (node,) = model.graph.node
    fields = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    assert served and all(node.input) and (len(node.input), fields["inputs"]) == (present, inputs)
    assert fields["causal"] == 0 and ("sigma" in fields) is (options.get("kernel") == "erf")
    # As plugins/README.md tells to do it by hand.
    assert model.graph == for_tensorrt(onnx.load(tmp_path / "model.onnx"), tmp_path).graph


def test_a_signal_ends_the_build_at_its_next_step():
    listener = library.Listener(tensorrt_rtx, lambda step: None)
    done = []

    def work():
        while not listener.cancelled.wait(0.01):
            pass
        done.append(True)

    def interrupt(number, frame):
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(SystemExit):
            library.interruptible(work, listener.cancelled)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert done == [True]


def test_a_cancelled_build_gives_no_engine(bundle):
    listener = library.Listener(tensorrt_rtx, lambda step: None)
    builder, parsed, _ = parse(matmul(onnx.TensorProto.FLOAT), listener)
    config = builder.create_builder_config()
    config.progress_monitor = listener.monitor
    network.add_profile(builder, config, {"x": {"min": [1, 4], "opt": [2, 4], "max": [4, 4]}})
    listener.cancelled.set()
    assert builder.build_serialized_network(parsed, config) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["building", "writing"])
def test_a_killed_build_leaves_the_bundle_as_it_was_or_with_its_engine(bundle, number, moment):
    before = (bundle / "manifest.json").read_bytes()
    command = [sys.executable, "-m", "mega_deploy", "build", str(bundle), "--target", "tensorrt-rtx"]
    process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None:
        if moment == "building" and "libtensorrt_rtx" in maps.read_text():
            time.sleep(0.3)
            break
        if moment == "writing" and any(bundle.parent.glob(".x.mega.*.partial")):
            break
    process.send_signal(number)
    code = process.wait(timeout=60)
    engines = md.open_bundle(bundle).manifest.engines
    assert (engines == ()) == ((bundle / "manifest.json").read_bytes() == before)
    assert code in (0, -number, 128 + number) and (code == 0) <= (len(engines) == 1)
    if number == signal.SIGTERM:
        assert [path.name for path in bundle.parent.iterdir()] == ["x.mega"]


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("length", "ema"), [(60, "kernel"), (Range(1, 60, 240), "blocked"), (1024, "blocked")])
@pytest.mark.parametrize("kind", KINDS)
def test_engines_of_every_kind_precision_and_length_are_built(tmp_path, kind, length, ema, precision):
    """From the graph alone: holding a bundle of long windows against the trained model takes its time."""
    torch.manual_seed(0)
    ranged = isinstance(length, Range)
    window = {"seq_len": length.opt if ranged else length, "window_size": 8, "num_layers": 1}
    model = Mega.build(**{**SMALL, **window}, laplace_attention=kind == "laplace").eval()
    written = mega_graph(fold(model), ema=ema, seq_range=length if ranged else None)
    assert written.lowering.name == ema
    path = tmp_path / "model.onnx"
    save_graph.save(lower(written.model, precision).model, path)
    batch = Range(1, 1, 2)
    signature = Signature(
        (TensorSpec("frames", "float32", (batch, length, 6)),), (TensorSpec("features", "float32", (batch, 16)),)
    )

    def configure(config, _network):
        config.num_compute_capabilities = 1
        config.set_compute_capability(library.capabilities(tensorrt_rtx)["8.9"], 0)

    def silent(step):
        pass

    listener = library.Listener(tensorrt_rtx, silent)
    built, _ = graph.read(path.read_bytes())
    ways = {"listener": listener, "on_step": silent}
    compiled = compile_graph(tensorrt_rtx, built, path, signature, configure, **ways)
    assert compiled.plan[:4] == b"vtrt" and compiled.layers > 25
    assert compiled.shapes["frames"]["max"] == [2, length.max if ranged else length, 6]
