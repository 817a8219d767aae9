"""Refittable, stripped and plugin-holding engines, with a library that stands for TensorRT where there is no GPU.

What it stands for is checked against TensorRT-RTX, which has the same names: an engine that takes other weights is
compiled there on a GPU alone.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import sys
import types
from pathlib import Path

import onnx
import pytest
import tensorrt_rtx
import torch
from edifice_models import SMALL
from fake_registry import Registry

import mega_deploy as md
from mega_deploy.bundle import add_engines
from mega_deploy.bundle.engines import Engine
from mega_deploy.errors import BundleError, InputError, MissingComponentError, OptionError
from mega_deploy.exporters.tensorrt import engine as building
from mega_deploy.exporters.tensorrt import refitting
from mega_deploy.exporters.tensorrt.engine import _Job, _loaded_plugin
from mega_deploy.exporters.tensorrt.library import Listener
from mega_deploy.inspection import inspect
from mega_deploy.machine.gpu import Gpu, Machine, look
from mega_deploy.models.edifice import Mega
from mega_deploy.plugins.laplace import DOMAIN, NAME

ADA = Machine("580.65.06", (Gpu("NVIDIA L4", "8.9"),), None, look().platform)
VERSION = "10.14.1.48"
HEADER = b"ftrt" + bytes(20) + bytes([10, 14, 1, 48])


@pytest.fixture(scope="module")
def bundles_of_two(tmp_path_factory):
    """Of the same architecture after another training, and of a larger one."""
    folder, made = tmp_path_factory.mktemp("refit"), {}
    for name, seed, sizes in (("old", 0, SMALL), ("new", 1, SMALL), ("larger", 0, {**SMALL, "hidden_size": 24})):
        torch.manual_seed(seed)
        made[name] = md.export(Mega.build(**sizes).eval(), folder / f"{name}.mega").path
    return made


def with_engine(path, **options):
    """The bundle with an engine as TensorRT would have built it on ADA."""
    opened = md.open_bundle(path)
    manifest = opened.manifest
    engine = Engine(
        target="tensorrt",
        file="engines/tensorrt.engine",
        library_version=VERSION,
        compute_capabilities=("8.9",),
        precision=manifest.precision,
        profiles=({"frames": {"min": [1, 8, 6], "opt": [1, 8, 6], "max": [64, 8, 6]}},),
        inputs=manifest.signature.inputs,
        outputs=manifest.signature.outputs,
        plugins=(),
        source={"model": manifest.files["model.onnx"]["sha256"], "checkpoint": manifest.source["sha256"]},
        options={
            "strongly_typed": True,
            "tf32": False,
            "version_compatible": False,
            "hardware_compatibility": "none",
            "refittable": True,
            "stripped": False,
            **options,
        },
        platform=ADA.platform,
        driver=ADA.driver,
        gpu="NVIDIA L4",
        layers=100,
        seconds=1.0,
    )
    add_engines(opened, [(engine.to_json(), HEADER + b"old weights")])
    return md.open_bundle(path)


@pytest.fixture
def old(bundles_of_two, tmp_path):
    return with_engine(shutil.copytree(bundles_of_two["old"], tmp_path / "old.mega"))


@pytest.fixture
def new(bundles_of_two, tmp_path):
    return Path(shutil.copytree(bundles_of_two["new"], tmp_path / "new.mega"))


@pytest.fixture
def library(monkeypatch):
    """TensorRT as far as refitting calls it: an engine is the weights that it was given last."""
    module = types.ModuleType("tensorrt")
    module.missing, module.takes, module.excluded = [], True, None

    class Refitter:
        def __init__(self, engine, logger):
            self.engine = engine

        def get_missing_weights(self):
            return module.missing

        def refit_cuda_engine(self):
            self.engine.weights = self.given
            return True

    class OnnxParserRefitter:
        num_errors = 1

        def __init__(self, refitter, logger):
            self.refitter = refitter

        def refit_from_bytes(self, model, path):
            constants = onnx.load_from_string(model).graph.initializer
            self.refitter.given = {tensor.name: tensor.raw_data for tensor in constants}
            return module.takes

        def get_error(self, index):
            return types.SimpleNamespace(desc=lambda: "a reason of\nits own")

    class Config:
        def set_flag(self, flag):
            module.excluded = True

        def clear_flag(self, flag):
            module.excluded = False

    class Loaded:
        def __init__(self, plan):
            self.weights = None

        create_serialization_config = staticmethod(Config)

        def serialize_with_config(self, config):
            return HEADER + hashlib.sha256(repr(sorted(self.weights.items())).encode()).digest()

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger):
            module.runtime = self

        def deserialize_cuda_engine(self, plan):
            return Loaded(plan)

    module.__dict__.update(
        __version__=VERSION,
        ILogger=tensorrt_rtx.ILogger,
        IProgressMonitor=tensorrt_rtx.IProgressMonitor,
        SerializationFlag=tensorrt_rtx.SerializationFlag,
        Refitter=Refitter,
        OnnxParserRefitter=OnnxParserRefitter,
        Runtime=Runtime,
    )
    for name in ("Refitter", "OnnxParserRefitter", "Runtime"):  # the stand-ins call nothing that the real one lacks
        ours = {call for call in vars(getattr(module, name)) if not call.startswith("_")}
        assert ours <= set(dir(getattr(tensorrt_rtx, name)))
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr("mega_deploy.runtime.tensorrt.library.look", lambda: ADA)
    checked = []
    monkeypatch.setattr(refitting.network, "check_engine", lambda trt, plan, *rest, **ways: checked.append(plan))
    module.checked = checked
    return module


def test_an_engine_gets_the_weights_of_a_new_checkpoint_and_a_true_identity(old, new, library):
    before = (new / "manifest.json").read_bytes()
    engine = md.build(new, target="tensorrt", refit_from=old)
    opened = md.open_bundle(new)  # verifies every hash
    assert opened.manifest.engines == (engine.to_json(),) and (new / "manifest.json").read_bytes() != before
    constants = onnx.load(new / "model.onnx").graph.initializer
    weights = {tensor.name: tensor.raw_data for tensor in constants}
    plan = (new / engine.file).read_bytes()
    assert plan == HEADER + hashlib.sha256(repr(sorted(weights.items())).encode()).digest()
    assert library.checked == [plan] and library.excluded is False
    assert engine.source["model"] == opened.manifest.files["model.onnx"]["sha256"]
    assert engine.source["checkpoint"] == opened.manifest.source["sha256"]
    assert engine.options["refitted_from"] == old.manifest.files["model.onnx"]["sha256"]
    told = inspect(new / engine.file)
    assert told["options"]["refittable"] is True and told["runs_here"] is True


def test_names_of_weights_are_the_same_after_another_training(bundles_of_two):
    assert (
        list(refitting.differences(*(onnx.load(bundles_of_two[name] / "model.onnx") for name in ("old", "new")))) == []
    )


def test_another_architecture_is_refused_by_the_first_difference(old, bundles_of_two, tmp_path, library):
    larger = shutil.copytree(bundles_of_two["larger"], tmp_path / "larger.mega")
    with pytest.raises(BundleError, match=r"another graph.*outputs are others.*--target tensorrt --refit"):
        md.build(larger, target="tensorrt", refit_from=old)
    assert md.open_bundle(larger).manifest.engines == ()


@pytest.mark.parametrize("change", ["shape", "whole number", "node", "name"])
def test_every_difference_but_the_weights_numbers_is_told(bundles_of_two, tmp_path, change):
    model = onnx.load(bundles_of_two["old"] / "model.onnx")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    if change == "shape":
        constants["blocks.0.ema.kernel"].dims[2] -= 1
    elif change == "whole number":
        tensor = next(tensor for tensor in constants.values() if tensor.data_type == onnx.TensorProto.INT64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 1, tensor.name))
    elif change == "node":
        model.graph.node[4].op_type = "Relu"
    else:
        constants["blocks.0.ema.kernel"].name = "kernel"
    onnx.save(model, tmp_path / "x.onnx")
    words = {"shape": "is [", "whole number": "is no weight", "node": "is Relu", "name": "in one of them alone"}[change]
    found = list(refitting.differences(onnx.load(bundles_of_two["old"] / "model.onnx"), onnx.load(tmp_path / "x.onnx")))
    assert found and any(words in text for text in found)


def test_an_engine_that_was_not_built_for_it_is_refused(bundles_of_two, new, tmp_path, library):
    old = with_engine(shutil.copytree(bundles_of_two["old"], tmp_path / "old.mega"), refittable=False)
    with pytest.raises(OptionError, match=r"one set of weights.*--refit"):
        md.build(new, target="tensorrt", refit_from=old)
    with pytest.raises(OptionError, match="leave the other options out"):
        md.build(new, target="tensorrt", refit_from=old, options=md.EngineOptions(refit=True))
    with pytest.raises(BundleError, match="holds no engine for tensorrt"):
        md.build(new, target="tensorrt", refit_from=bundles_of_two["larger"])


def test_what_the_library_refuses_is_told_and_nothing_is_lost(old, new, library):
    library.takes = False
    with pytest.raises(BundleError, match=r"does not take the weights of .*a reason of its own"):
        md.build(new, target="tensorrt", refit_from=old)
    library.takes, library.missing = True, ["blocks.9.weight"]
    with pytest.raises(BundleError, match=r"does not name: blocks\.9\.weight"):
        md.build(new, target="tensorrt", refit_from=old)
    assert md.open_bundle(new).manifest.engines == ()


def test_a_machine_without_the_gpu_is_told_before_the_library_is_asked(old, new, monkeypatch):
    with pytest.raises(MissingComponentError, match=r"TensorRT 10.*is not installed.*no usable GPU"):
        md.build(new, target="tensorrt", refit_from=old)


def test_a_stripped_engine_stays_stripped(bundles_of_two, new, tmp_path, library):
    old = with_engine(shutil.copytree(bundles_of_two["old"], tmp_path / "old.mega"), stripped=True)
    assert md.build(new, target="tensorrt", refit_from=old).options["stripped"] and library.excluded is True


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, ()),
        ({"refit": True}, ("REFIT",)),
        ({"strip_plan": True}, ("STRIP_PLAN", "REFIT_IDENTICAL")),
        (
            {"refit": True, "strip_plan": True, "version_compatible": True},
            ("VERSION_COMPATIBLE", "REFIT", "STRIP_PLAN"),
        ),
    ],
)
def test_options_become_the_librarys_flags(options, flags):
    assert md.EngineOptions(**options).flags == flags
    assert all(hasattr(tensorrt_rtx.BuilderFlag, name) for name in flags)


@pytest.mark.parametrize("option", ["refit", "strip_plan"])
def test_tensorrt_rtx_compiles_such_engines_on_a_gpu_alone(bundle, option, monkeypatch):
    options = md.EngineOptions(**{option: True}, compute_capabilities=("8.9",))
    if look().gpus:
        pytest.skip("there is a GPU")
    with pytest.raises(MissingComponentError, match="refittable or stripped on a GPU"):
        md.build(bundle, target="tensorrt-rtx", options=options)
    # The reason for it: the library itself gives up there.
    monkeypatch.setattr(building, "look", lambda: ADA)
    with pytest.raises(BundleError, match="CUDA_SUCCESS"):
        md.build(bundle, target="tensorrt-rtx", options=options)
    assert md.open_bundle(bundle).manifest.engines == ()


@pytest.fixture
def registry():
    found = Registry()
    return types.SimpleNamespace(
        get_plugin_registry=lambda: found, ILogger=tensorrt_rtx.ILogger, IProgressMonitor=tensorrt_rtx.IProgressMonitor
    )


def test_a_plugin_is_named_by_hash_or_held_by_the_engine(laplace, registry, tmp_path, monkeypatch):
    library = tmp_path / "plugin.so"
    library.write_bytes(b"a plugin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    entries = {}
    for plugin in ("reference", "embed"):
        options = md.EngineOptions(plugin=plugin, plugin_library=library)
        listener = Listener(registry, print)
        job = _Job(md.open_bundle(laplace), building.TARGETS["tensorrt"], registry, ADA, options, listener, print)
        with _loaded_plugin(job) as loaded:
            entries[plugin] = loaded.entry
        assert entries[plugin]["sha256"] == hashlib.sha256(b"a plugin").hexdigest()
    opened = with_engine(laplace)
    engine = Engine.from_json(opened.manifest.engines[0])
    by_hash, held = (dataclasses.replace(engine, plugins=(entries[way],)) for way in ("reference", "embed"))
    assert (by_hash.host_code, held.host_code) == (False, True)
    assert (len(by_hash.outside_plugins), len(held.outside_plugins)) == (1, 0)
    library.unlink()  # the engine that holds it needs nothing else
    for one, lacking in ((by_hash, True), (held, False)):
        add_engines(md.open_bundle(laplace), [(one.to_json(), HEADER)])
        told = inspect(laplace / one.file)
        assert any(NAME in text for text in told["missing"]) is lacking
        assert told["plugins"][0]["embedded"] is not lacking and told["plugins"][0]["namespace"] == DOMAIN
    manifest = json.loads((laplace / "manifest.json").read_text())
    assert manifest["engines"][0]["plugins"][0]["embedded"] is True


def test_an_engine_is_not_recorded_with_a_plugin_that_another_library_served(laplace, registry, tmp_path):
    served = []
    for number in (1, 2):
        library = tmp_path / f"{number}.so"
        library.write_bytes(b"build %d" % number)
        options = md.EngineOptions(plugin_library=library)
        listener = Listener(registry, print)
        job = _Job(md.open_bundle(laplace), building.TARGETS["tensorrt"], registry, ADA, options, listener, print)
        with contextlib.ExitStack() as stack:
            if number == 2:
                stack.enter_context(pytest.raises(InputError, match=r"another build of the plugin .* another process"))
            with _loaded_plugin(job) as loaded:
                served.append(loaded.entry["sha256"])
                assert Path(loaded.path).read_bytes() == b"build 1"
    assert served == [hashlib.sha256(b"build 1").hexdigest()]


def test_an_engine_cannot_hold_a_plugin_that_is_not_built(laplace, registry, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    job = _Job(
        md.open_bundle(laplace),
        building.TARGETS["tensorrt"],
        registry,
        ADA,
        md.EngineOptions(plugin="embed"),
        Listener(registry, print),
        print,
    )
    with pytest.raises(MissingComponentError, match="plugins build tensorrt"), _loaded_plugin(job):
        pass


@pytest.mark.parametrize(("options", "words"), [({"plugin": "embed"}, "none to put"), ({"plugin": "x"}, "reference")])
def test_impossible_options_are_refused(bundle, options, words):
    with pytest.raises(OptionError, match=words):
        md.build(bundle, target="tensorrt-rtx", options=md.EngineOptions(**options))


def test_a_plugin_is_put_into_version_compatible_engines_alone(bundle):
    with pytest.raises(OptionError, match="add --version-compatible"):
        md.build(bundle, target="tensorrt", options=md.EngineOptions(plugin="embed"))
