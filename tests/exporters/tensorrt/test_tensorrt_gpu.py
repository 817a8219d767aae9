"""TensorRT's own way is walked with TensorRT-RTX's library under its name, on a machine that claims to have a GPU."""

import dataclasses
import logging
import sys
import types

import pytest
import tensorrt_rtx

import mega_deploy as md
from mega_deploy.errors import BundleError, InputError, MissingComponentError
from mega_deploy.exporters.tensorrt import engine as building
from mega_deploy.exporters.tensorrt import library, network, timing
from mega_deploy.machine.gpu import Gpu, Machine

pytestmark = pytest.mark.filterwarnings("ignore:Use .* instead:DeprecationWarning")

VERSION = (10, 14, 1, 48)
HERE = Machine("580.65.06", (Gpu("NVIDIA L4", "8.9"),), None, "linux-x86_64")


class Builder(tensorrt_rtx.Builder):
    """Writes TensorRT's name and version into the header."""

    def build_serialized_network(self, parsed, config):
        assert config.num_compute_capabilities == 0 and not config.get_flag(tensorrt_rtx.BuilderFlag.TF32)
        plan = super().build_serialized_network(parsed, config)
        return plan and b"ftrt" + bytes(plan)[4:24] + bytes(VERSION) + bytes(plan)[28:]


class Loaded:
    """An engine as TensorRT's runtime gives it; what it takes and gives is set by the test."""

    tensors: dict
    profile = ((1, 8, 6), (4, 8, 6), (16, 8, 6))

    def __init__(self, *_):
        self.num_io_tensors = len(self.tensors)

    def deserialize_cuda_engine(self, plan):
        return self if plan[:4] == b"ftrt" and self.tensors else None

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_mode(self, name):
        return getattr(tensorrt_rtx.TensorIOMode, "INPUT" if name == "frames" else "OUTPUT")

    def get_tensor_dtype(self, name):
        return getattr(tensorrt_rtx.DataType, self.tensors[name][0])

    def get_tensor_shape(self, name):
        return self.tensors[name][1]

    def get_tensor_profile_shape(self, name, index):
        return self.profile


@pytest.fixture
def tensorrt(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # a plugin that was built here would be taken
    module = types.ModuleType("tensorrt")
    module.__dict__.update(vars(tensorrt_rtx))
    loaded = type("Loaded", (Loaded,), {"tensors": {"frames": ("FLOAT", (-1, 8, 6)), "features": ("FLOAT", (-1, 16))}})
    module.__dict__.update(__version__=".".join(map(str, VERSION)), Builder=Builder, Runtime=loaded)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(building, "look", lambda: HERE)
    return module


@pytest.mark.parametrize("compatibility", ["none", "same", "ampere+"])
def test_tensorrt_builds_for_the_gpu_at_hand(tensorrt, laplace, compatibility, caplog):
    options = md.EngineOptions(hardware_compatibility=compatibility)
    with caplog.at_level(logging.INFO, "mega_deploy.tensorrt"):
        engine = md.build(laplace, target="tensorrt", options=options)
    # RTX's library has the setting, and says that it does not heed it.
    assert ("setHardwareCompatibilityLevel" in caplog.text) is (compatibility != "none")
    assert engine.compute_capabilities == ("8.9",) and engine.gpu == "NVIDIA L4" and engine.driver == "580.65.06"
    assert engine.options["hardware_compatibility"] == compatibility and engine.plugins == ()
    entries = md.open_bundle(laplace).manifest.engines
    assert [entry["target"] for entry in entries] == ["tensorrt"]
    md.build(laplace, target="tensorrt-rtx")
    assert {entry["target"] for entry in md.open_bundle(laplace).manifest.engines} == {"tensorrt", "tensorrt-rtx"}


def test_timings_are_kept_beside_the_bundle_by_version_gpu_and_driver(tensorrt, bundle):
    md.build(bundle, target="tensorrt")
    kept = list((bundle.parent / "x.mega.timing").iterdir())
    assert [path.name for path in kept] == ["10.14.1.48_NVIDIA_L4_8.9_580.65.06.cache"] and kept[0].stat().st_size
    other = dataclasses.replace(HERE, driver="590.1")
    assert timing.path_for(bundle, "10.14.1.48", other) != kept[0] == timing.path_for(bundle, "10.14.1.48", HERE)
    kept[0].write_bytes(b"no cache")
    md.build(bundle, target="tensorrt")
    assert kept[0].read_bytes() not in (b"", b"no cache")


@pytest.mark.parametrize("compatible", [False, True])
def test_a_version_compatible_engine_is_read_back_with_the_code_that_it_brings(tensorrt, bundle, compatible):
    loaded = []
    tensorrt.Runtime.deserialize_cuda_engine = lambda runtime, plan: loaded.append(runtime)
    with pytest.raises(BundleError, match="does not load"):
        signature, listener = md.open_bundle(bundle).manifest.signature, library.Listener(tensorrt, print)
        network.check_engine(tensorrt, b"ftrt", signature, {}, listener, host_code=compatible)
    assert getattr(loaded[0], "engine_host_code_allowed", False) is compatible


def test_version_compatibility_reaches_the_library_whose_reason_is_told(tensorrt, bundle):
    with pytest.raises(BundleError, match="lean"):  # RTX has no lean runtime to put into the engine
        md.build(bundle, target="tensorrt", options=md.EngineOptions(version_compatible=True))
    assert md.open_bundle(bundle).manifest.engines == ()


@pytest.mark.parametrize(
    ("tensors", "profile", "words"),
    [
        ({}, None, "does not load the engine it built"),
        ({"frames": ("HALF", (-1, 8, 6)), "features": ("FLOAT", (-1, 16))}, None, '"frames" as float16'),
        ({"frames": ("FLOAT", (-1, 8, 6)), "features": ("FLOAT", (-1, 17))}, None, r'"features" as float32 \[-1, 17\]'),
        (None, ((1, 8, 6), (4, 8, 6), (8, 8, 6)), r"\[8, 8, 6\]\] instead of"),
    ],
)
def test_an_engine_that_reads_back_as_another_is_not_kept(tensorrt, bundle, tensors, profile, words):
    if tensors is not None:
        tensorrt.Runtime.tensors = tensors
    if profile is not None:
        tensorrt.Runtime.profile = profile
    with pytest.raises(BundleError, match=words):
        md.build(bundle, target="tensorrt")
    assert md.open_bundle(bundle).manifest.engines == ()


def test_an_engine_of_another_version_than_the_library_says_is_not_kept(tensorrt, bundle):
    tensorrt.__version__ = "10.15.0.1"
    with pytest.raises(BundleError, match=r"TensorRT 10\.14\.1\.48.*10\.15\.0\.1"):
        md.build(bundle, target="tensorrt")
    assert md.open_bundle(bundle).manifest.engines == ()


def test_a_library_that_is_no_plugin_is_refused(tensorrt, laplace, tmp_path):
    with pytest.raises(InputError, match=r"absent\.so cannot be read as a plugin"):
        md.build(laplace, target="tensorrt", options=md.EngineOptions(plugin_library=tmp_path / "absent.so"))
    (tmp_path / "none.so").write_bytes(b"no library")
    with pytest.raises(InputError, match=r"none\.so holds no plugin LaplaceAttention"):
        md.build(laplace, target="tensorrt", options=md.EngineOptions(plugin_library=tmp_path / "none.so"))


def test_tensorrt_without_a_gpu_says_so(tensorrt, bundle, monkeypatch):
    monkeypatch.setattr(building, "look", lambda: Machine(None, (), "no NVIDIA driver", "linux-x86_64"))
    with pytest.raises(MissingComponentError, match=r"GPU.*no NVIDIA driver.*--target tensorrt-rtx"):
        md.build(bundle, target="tensorrt")
