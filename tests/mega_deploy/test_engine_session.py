"""A session on an engine, with a driver whose GPU is host memory and a library whose engine is onnxruntime."""

import ctypes
import enum
import gc
import hashlib
import json
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
import tensorrt_rtx

import mega_deploy as md
from mega_deploy.errors import BundleError, MegaDeployError, MissingComponentError, OptionError
from mega_deploy.runtime.library import LOGGER


class Validity(enum.IntEnum):
    VALID, SUBOPTIMAL, INVALID = range(3)


class Context:
    """Runs model.onnx on the arrays at the addresses that it was given."""

    def __init__(self, model):
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.shapes, self.addresses = {}, {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def get_tensor_shape(self, name):
        return self.shapes[name]

    def execute_async_v3(self, stream):
        assert stream == 7
        (taken,), (given,) = self.session.get_inputs(), self.session.get_outputs()
        feeds = {taken.name: self._array(taken.name)}
        (result,) = self.session.run(None, feeds)
        self.shapes[given.name] = result.shape
        self._array(given.name)[:] = result
        return True

    def _array(self, name):
        size = int(np.prod(self.shapes[name]))
        memory = (ctypes.c_float * size).from_address(self.addresses[name])
        return np.frombuffer(memory, np.float32).reshape(self.shapes[name])


@pytest.fixture
def library(monkeypatch, driver, built):
    """The library; its `validity`, `context` and what the runtime gives can be set."""
    module = types.ModuleType("tensorrt_rtx")

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger):
            self.logger = logger
            module.runtime = self

        def get_engine_validity(self, plan):
            return module.validity

        def deserialize_cuda_engine(self, plan):
            assert plan[:4] == b"vtrt"
            self.logger.log(tensorrt_rtx.ILogger.Severity.ERROR, "a reason of the\nlibrary's own")
            return module.engine

    module.__dict__.update(
        __version__=tensorrt_rtx.__version__,
        ILogger=tensorrt_rtx.ILogger,
        EngineInvalidityDiagnostics=tensorrt_rtx.EngineInvalidityDiagnostics,
        EngineValidity=Validity,
        Runtime=Runtime,
        validity=(Validity.VALID, 0),
        context=Context(built / "model.onnx"),
    )
    module.engine = types.SimpleNamespace(create_execution_context=lambda: module.context)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    for place in ("mega_deploy.machine", "mega_deploy.runtime.cuda"):
        monkeypatch.setattr(f"{place}.DRIVER_LIBRARY", str(driver))
    return module


@pytest.fixture
def session(library, built):
    return md.open_bundle(built).session("tensorrt-rtx")


def test_a_session_gives_what_the_model_gives_whatever_the_batch(session, built):
    reference = md.open_bundle(built).session()
    random = np.random.default_rng(0)
    for batch in (3, 64, 1, 5):
        frames = random.standard_normal((batch, 8, 6), np.float32)
        np.testing.assert_allclose(session.run(frames), reference.run(frames), atol=1e-6)
        assert session.run_named({"frames": frames})["features"].shape == (batch, 16)
    assert session.backend == "tensorrt-rtx" and session.native_ops == ()
    assert session.providers == (f"TensorRT-RTX {tensorrt_rtx.__version__}",)


def test_validate_judges_an_engine_by_the_same_cases(library, built):
    report = md.validate(built, backend="tensorrt-rtx")
    assert report.passed and report.backend == "tensorrt-rtx" and report.blocks == ()
    assert [case.name for case in report.cases] == [case.name for case in md.validate(built).cases]


def test_inputs_are_checked_as_everywhere(session):
    with pytest.raises(md.InputError, match="batch 65"):
        session.run(np.zeros((65, 8, 6), np.float32))


def test_many_threads_may_call_it(session):
    batches = np.random.default_rng(1).standard_normal((40, 2, 8, 6), np.float32)
    want = [session.run(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(got, one) for got, one in zip(pool.map(session.run, batches), want, strict=True))


def test_memory_on_the_gpu_goes_with_the_session(library, built, driver):
    blocks = ctypes.CDLL(str(driver)).fake_blocks
    gc.collect()
    before = blocks()
    session = md.open_bundle(built).session("tensorrt-rtx")
    assert blocks() == before + 2
    session.run(np.zeros((2, 8, 6), np.float32))
    assert blocks() == before + 2
    del session
    gc.collect()
    assert blocks() == before


def test_a_gpu_without_memory_is_told(library, built, monkeypatch):
    monkeypatch.setenv("FAKE_MEMORY", "0")
    with pytest.raises(MissingComponentError, match="too little free memory"):
        md.open_bundle(built).session("tensorrt-rtx")


def test_an_engine_for_other_gpus_is_refused_with_the_command_that_builds_for_this_one(library, built, monkeypatch):
    monkeypatch.setenv("FAKE_CAPABILITY", "9.0")
    with pytest.raises(BundleError, match=r"Fake GPU 0 of 9\.0; .*--compute-capability 9\.0"):
        md.open_bundle(built).session("tensorrt-rtx")


def test_another_release_of_the_library_is_refused(library, built):
    library.__version__ = "9.9.9.9"
    with pytest.raises(MissingComponentError, match=r"9\.9\.9\.9 is installed"):
        md.open_bundle(built).session("tensorrt-rtx")


def test_the_librarys_own_refusals_are_put_into_words(library, built):
    library.validity = (Validity.INVALID, 4 | 2)
    with pytest.raises(BundleError, match="unsupported cc, old cuda driver"):
        md.open_bundle(built).session("tensorrt-rtx")
    library.validity = (Validity.VALID, 0)
    library.context = None
    with pytest.raises(BundleError, match="cannot be prepared to run: a reason of the library's own"):
        md.open_bundle(built).session("tensorrt-rtx")
    library.engine = None
    with pytest.raises(BundleError, match="does not load: a reason of the library's own"):
        md.open_bundle(built).session("tensorrt-rtx")


def test_an_engine_that_fails_does_not_give_old_numbers(session, library, monkeypatch):
    monkeypatch.setattr(library.context, "execute_async_v3", lambda stream: False)
    with pytest.raises(MegaDeployError, match="the engine failed"):
        session.run(np.zeros((1, 8, 6), np.float32))


def test_a_failure_of_the_driver_is_told_in_its_words(session, monkeypatch):
    monkeypatch.setattr(session.device, "_stream", ctypes.c_void_p())
    with pytest.raises(MegaDeployError, match="cuMemcpyHtoDAsync_v2 says error 400"):
        session.run(np.zeros((1, 8, 6), np.float32))
    monkeypatch.undo()


@pytest.mark.parametrize("compatible", [False, True])
def test_code_in_an_engine_is_allowed_to_a_version_compatible_one_alone(library, engine, compatible):
    path = engine.parents[1] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["engines"][0]["options"]["version_compatible"] = compatible
    path.write_text(json.dumps(manifest))
    md.open_bundle(path.parent).session("tensorrt-rtx")
    assert library.runtime.engine_host_code_allowed is compatible


def test_a_plugins_library_is_loaded_from_where_it_was_if_it_is_still_the_same(library, engine, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place, loaded = tmp_path / "plugin.so", []
    place.write_bytes(b"a library")
    digest = hashlib.sha256(b"a library").hexdigest()
    library.get_plugin_registry = lambda: types.SimpleNamespace(load_library=loaded.append)
    path = engine.parents[1] / "manifest.json"
    manifest = json.loads(path.read_text())
    plugin = {"name": "LaplaceAttention", "version": "1", "namespace": "mega.deploy"}
    manifest["engines"][0]["plugins"] = [{**plugin, "sha256": digest, "library": str(place)}]
    path.write_text(json.dumps(manifest))
    assert md.open_bundle(path.parent).session("tensorrt-rtx").native_ops == ("LaplaceAttention",)
    assert loaded == [str(place)]
    place.write_bytes(b"another")
    with pytest.raises(BundleError, match="is not the engine's"):
        md.open_bundle(path.parent).session("tensorrt-rtx")
    place.unlink()
    with pytest.raises(MissingComponentError, match="LaplaceAttention is not built"):
        md.open_bundle(path.parent).session("tensorrt-rtx")
    assert len(loaded) == 1


def test_options_of_onnxruntime_are_refused(library, built):
    with pytest.raises(OptionError, match="onnxruntime's"):
        md.open_bundle(built).session("tensorrt-rtx", threads=2)


def test_a_bundle_without_an_engine_says_how_to_add_one(pristine):
    for backend in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(BundleError, match=f"mega-deploy build .* --target {backend}"):
            md.open_bundle(pristine).session(backend)


def test_what_the_library_says_is_logged_and_not_printed(library, built, capfd):
    md.open_bundle(built).session("tensorrt-rtx")
    assert capfd.readouterr() == ("", "") and LOGGER.name == "mega_deploy.tensorrt"
