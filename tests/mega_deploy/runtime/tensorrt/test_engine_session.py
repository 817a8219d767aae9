"""A session on an engine, with a driver whose GPU is host memory and a library whose engine is onnxruntime."""

import ctypes
import gc
import hashlib
import json
import os
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import fake_engine
import numpy as np
import pytest
import tensorrt_rtx
from fake_engine import Validity
from fake_registry import NO_PLUGIN, Registry

import mega_deploy as md
from mega_deploy.errors import BundleError, MegaDeployError, MissingComponentError, OptionError
from mega_deploy.inspection import inspect
from mega_deploy.plugins import cache
from mega_deploy.plugins.private import make_folder
from mega_deploy.runtime.tensorrt import library as engine_library
from mega_deploy.runtime.tensorrt import plugin_registry
from mega_deploy.runtime.tensorrt.library import LOGGER
from mega_deploy.runtime.tensorrt.trust import EngineTrust


@pytest.fixture
def library(monkeypatch, driver, built):
    return fake_engine.install(monkeypatch, driver, built / "model.onnx")


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


def test_calls_that_repeat_are_replayed_as_a_graph_with_the_same_numbers(session, library, built):
    reference = md.open_bundle(built).session()
    random = np.random.default_rng(2)
    for batch, calls in ((3, 1), (3, 2), (3, 2), (3, 2), (5, 3), (3, 4), (3, 5), (3, 5)):
        frames = random.standard_normal((batch, 8, 6), np.float32)
        np.testing.assert_allclose(session.run(frames), reference.run(frames), atol=1e-6)
        assert library.context.calls == calls
    assert set(library.context.streams) == {7}


def test_a_graph_goes_with_its_session_and_with_other_shapes(library, built):
    session, graphs = md.open_bundle(built).session("tensorrt-rtx"), library.context.driver.fake_graphs
    assert graphs() == 0
    for batch, alive in ((2, 0), (2, 1), (2, 1), (4, 0), (4, 1)):
        session.run(np.zeros((batch, 8, 6), np.float32))
        assert graphs() == alive
    del session
    gc.collect()
    assert graphs() == 0


@pytest.mark.parametrize("why", ["asked", "tried"])
def test_what_cannot_be_captured_is_launched_as_usual(session, library, monkeypatch, why):
    if why == "asked":
        library.context.capturable = False
    else:
        monkeypatch.setenv("FAKE_NO_CAPTURE", "1")
    frames = np.random.default_rng(3).standard_normal((2, 8, 6), np.float32)
    want = session.run(frames)
    for _ in range(3):
        assert np.array_equal(session.run(frames), want)
    assert library.context.driver.fake_graphs() == 0


class Tensor:
    """What a library of GPU arrays makes: memory of the fake GPU, which numpy holds."""

    def __init__(self, array, index=0):
        self.array, self.device = np.asarray(array), types.SimpleNamespace(index=index)

    @property
    def __cuda_array_interface__(self):
        return {**self.array.__array_interface__, "data": (self.array.ctypes.data, False)}


@pytest.fixture
def gpu_arrays(monkeypatch):
    """A library `torch` in the place of the real one, as far as sessions may see it."""
    made = types.SimpleNamespace(
        __name__="torch", float32=np.float32, empty=lambda shape, dtype, device: Tensor(np.empty(shape, dtype))
    )
    monkeypatch.setitem(sys.modules, "torch", made)
    monkeypatch.setattr(Tensor, "__module__", "torch")


def test_arrays_on_the_gpu_are_read_and_written_where_they_are(session, library, built, gpu_arrays):
    frames = np.random.default_rng(4).standard_normal((3, 8, 6), np.float32)
    want = md.open_bundle(built).session().run(frames)
    given = Tensor(frames)
    got = session.run(given)
    assert isinstance(got, Tensor) and library.context.streams == [7]
    np.testing.assert_allclose(got.array, want, atol=1e-6)
    assert library.context.addresses == {"frames": frames.ctypes.data, "features": got.array.ctypes.data}
    out = Tensor(np.empty((3, 16), np.float32))
    assert session.run({"frames": given}, out={"features": out}) is out
    np.testing.assert_allclose(out.array, want, atol=1e-6)
    np.testing.assert_allclose(session.run(frames), want, atol=1e-6)  # the host's way uses its own memory again


def test_work_goes_into_the_stream_that_is_given_also_when_it_is_replayed(session, library, gpu_arrays, monkeypatch):
    monkeypatch.setattr(session.execution.device, "wait", lambda: pytest.fail("the caller's stream is waited for"))
    given, out = Tensor(np.zeros((2, 8, 6), np.float32)), {"features": Tensor(np.empty((2, 16), np.float32))}
    for stream in (11, types.SimpleNamespace(cuda_stream=12), types.SimpleNamespace(ptr=13)):
        session.run(given, stream=stream, out=out)
    assert library.context.streams == [11, 12, 13] and library.context.calls == 2


@pytest.mark.parametrize(
    ("inputs", "options", "words"),
    [
        (Tensor(np.zeros((2, 8, 6), np.float64)), {}, "must be float32 on the GPU, got float64"),
        (Tensor(np.zeros((65, 8, 6), np.float32)), {}, "batch 65"),
        (Tensor(np.zeros((2, 6, 8), np.float32).transpose(0, 2, 1)), {}, "not contiguous"),
        (Tensor(np.zeros((2, 8, 6), np.float32), index=1), {}, "on GPU 1"),
        (Tensor(np.zeros((2, 8, 6), np.float32)), {"out": {}}, '"features" is missing'),
        (Tensor(np.zeros((2, 8, 6), np.float32)), {"out": {"features": np.zeros((2, 16))}}, "on the host"),
        (Tensor(np.zeros((2, 8, 6), np.float32)), {"out": {"features": Tensor(np.zeros((3, 16), "f"))}}, "3, 16"),
        (Tensor(np.zeros((2, 8, 6), np.float32)), {"stream": "main"}, "a stream is"),
        (np.zeros((2, 8, 6), np.float32), {"stream": 5}, "for inputs on the GPU"),
    ],
)
def test_arrays_on_the_gpu_that_do_not_fit_are_refused(session, gpu_arrays, inputs, options, words):
    with pytest.raises(md.InputError, match=words):
        session.run(inputs, **options)


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
    monkeypatch.setattr(session.execution.device, "stream", 0)
    with pytest.raises(MegaDeployError, match="cuMemcpyHtoDAsync says error 400"):
        session.run(np.zeros((1, 8, 6), np.float32))
    monkeypatch.undo()


def change(engine, *, plugins=(), **options):
    """Write into the manifest what its maker says of an engine, and give the bundle's path."""
    path = engine.parents[1] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["engines"][0]["options"] |= options
    manifest["engines"][0]["plugins"] = list(plugins)
    path.write_text(json.dumps(manifest))
    return path.parent


def plugin_of(path, **entries):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"name": "LaplaceAttention", "version": "1", "namespace": "mega.deploy", "sha256": digest, **entries}


@pytest.fixture
def loaded(library, tmp_path, monkeypatch):
    """The bytes of the plugin libraries that were loaded; with a cache of the test's own, which is empty."""
    registry = Registry()
    library.get_plugin_registry = lambda: registry
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(plugin_registry, "_LOADED", {})
    return registry.loaded


def put_into_cache(data, name="0.0.1-trt10.14.1-0123456789ab"):
    """A library as `plugins build tensorrt` of another version leaves it."""
    folder = make_folder(cache.home(), name)
    (folder / "mega_deploy-1.so").write_bytes(data)
    (folder / cache.RECORD).write_text(
        json.dumps({"library": "mega_deploy-1.so", "sha256": hashlib.sha256(data).hexdigest()})
    )
    for path in folder.iterdir():
        path.chmod(0o600)
    return folder / "mega_deploy-1.so"


@pytest.mark.parametrize("where", ["in the bundle", "anywhere"])
def test_a_library_that_a_manifest_names_is_neither_loaded_nor_read(library, engine, loaded, tmp_path, where):
    """Its hash is right and its place is right, but both were written by whoever made the bundle."""
    place = engine.parent / "plugin.so" if where == "in the bundle" else tmp_path / "plugin.so"
    place.write_bytes(b"native code of an attacker")
    bundle = change(engine, plugins=[plugin_of(place, library=str(place))])
    if where == "in the bundle":
        manifest = json.loads((bundle / "manifest.json").read_text())
        digest = hashlib.sha256(place.read_bytes()).hexdigest()
        manifest["files"]["engines/plugin.so"] = {"sha256": digest, "bytes": place.stat().st_size}
        (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MissingComponentError, match="LaplaceAttention is not built"):
        md.open_bundle(bundle).session("tensorrt-rtx")
    assert loaded == []
    if where == "anywhere":
        place.unlink()
        os.mkfifo(place)  # who reads it, waits for ever
        assert any("is not built" in text for text in inspect(engine)["missing"])


def test_a_plugins_library_is_loaded_from_this_users_cache_by_its_hash(library, engine, loaded):
    place = put_into_cache(b"the library")
    bundle = change(engine, plugins=[plugin_of(place)])
    put_into_cache(b"a newer one", "0.0.2-trt10.14.1-0123456789ab")
    assert md.open_bundle(bundle).session("tensorrt-rtx").native_ops == ("LaplaceAttention",)
    assert loaded == [b"the library"]
    place.chmod(0o666)
    with pytest.raises(MissingComponentError, match="LaplaceAttention is not built"):
        md.open_bundle(bundle).session("tensorrt-rtx")
    assert loaded == [b"the library"]


@pytest.mark.parametrize("way", ["argument", "variable"])
def test_a_plugins_library_is_loaded_from_where_the_caller_says(library, engine, loaded, tmp_path, monkeypatch, way):
    place = tmp_path / "plugin.so"
    place.write_bytes(b"a library")
    bundle = change(engine, plugins=[plugin_of(place)])
    given = {"plugin_library": place} if way == "argument" else {}
    if way == "variable":
        monkeypatch.setenv("MEGA_DEPLOY_PLUGIN_LIBRARY", str(place))
    md.open_bundle(bundle).session("tensorrt-rtx", **given)
    assert loaded == [b"a library"]
    place.write_bytes(b"another")
    with pytest.raises(BundleError, match="is not the engine's"):
        md.open_bundle(bundle).session("tensorrt-rtx", **given)
    place.unlink()
    with pytest.raises(OptionError, match=r"plugin\.so is no file that can be read"):
        md.open_bundle(bundle).session("tensorrt-rtx", **given)
    assert len(loaded) == 1


@pytest.mark.parametrize("way", ["cached", "given"])
def test_a_second_engine_does_not_run_on_the_plugin_of_another_build(library, engine, loaded, tmp_path, way):
    def open_with(data, number):
        place = tmp_path / f"{number}.so"
        place.write_bytes(data)
        if way == "cached":
            put_into_cache(data, f"0.0.{number}-trt10.14.1-0123456789ab")
        bundle = change(engine, plugins=[plugin_of(place)])
        return md.open_bundle(bundle).session("tensorrt-rtx", **({"plugin_library": place} if way == "given" else {}))

    open_with(b"one build", 1)
    open_with(b"one build", 2)
    with pytest.raises(
        BundleError, match=r"this process has loaded another build of the plugin .* use another process"
    ):
        open_with(b"another build", 3)
    assert loaded == [b"one build"]


def test_a_plugin_that_something_else_loaded_is_of_an_unknown_build(library, engine, loaded, tmp_path):
    (tmp_path / "plugin.so").write_bytes(b"a library")
    bundle = change(engine, plugins=[plugin_of(tmp_path / "plugin.so")])
    loaded.append(b"by the caller's own code")
    with pytest.raises(BundleError, match="nobody knows which, for something else loaded it"):
        md.open_bundle(bundle).session("tensorrt-rtx", plugin_library=tmp_path / "plugin.so")


def test_a_library_that_tensorrt_does_not_take_is_named(library, engine, loaded, tmp_path):
    place = tmp_path / "plugin.so"
    place.write_bytes(NO_PLUGIN)
    bundle = change(engine, plugins=[plugin_of(place)])
    for _ in range(2):
        with pytest.raises(BundleError, match=r"plugin\.so holds no plugin LaplaceAttention of version 1"):
            md.open_bundle(bundle).session("tensorrt-rtx", plugin_library=place)


def test_the_callers_library_is_loaded_as_it_was_hashed(library, engine, loaded, tmp_path, monkeypatch):
    place = tmp_path / "plugin.so"
    place.write_bytes(b"the library")
    bundle = change(engine, plugins=[plugin_of(place)])
    registry = library.get_plugin_registry()

    def swap(*name):
        place.write_bytes(b"native code of an attacker")  # between the check of the hash and the loading
        return Registry.get_creator(registry, *name)

    monkeypatch.setattr(registry, "get_creator", swap)
    md.open_bundle(bundle).session("tensorrt-rtx", plugin_library=place)
    assert loaded == [b"the library"]


@pytest.mark.parametrize("when", ["before it is looked at", "before it is loaded"])
def test_a_library_that_vanishes_is_told_in_one_line(library, engine, loaded, tmp_path, monkeypatch, when):
    place = tmp_path / "plugin.so"
    place.write_bytes(b"a library")
    bundle = change(engine, plugins=[plugin_of(place)])
    looks = engine_library.look

    def look():
        place.unlink()
        return looks()

    if when == "before it is loaded":
        monkeypatch.setattr(engine_library, "look", look)
    else:
        chosen = EngineTrust.chosen(place)
        monkeypatch.setattr(EngineTrust, "chosen", lambda *given: place.unlink() or chosen)
    with pytest.raises(OptionError, match=r"plugin\.so cannot be read as a plugin library: No such file"):
        md.open_bundle(bundle).session("tensorrt-rtx", plugin_library=place)
    assert loaded == []


@pytest.mark.parametrize("held", ["reader", "plugin", "nothing"])
def test_code_in_an_engine_runs_only_where_the_caller_allows_it(library, engine, loaded, tmp_path, monkeypatch, held):
    (tmp_path / "plugin.so").write_bytes(b"a library")
    plugins = [plugin_of(tmp_path / "plugin.so", embedded=True)] if held == "plugin" else []
    bundle = change(engine, plugins=plugins, version_compatible=held == "reader")
    if held == "nothing":
        md.open_bundle(bundle).session("tensorrt-rtx", engine_code=True)
        assert library.runtime.engine_host_code_allowed is False
        return
    with pytest.raises(BundleError, match="code that would run on the host"):
        md.open_bundle(bundle).session("tensorrt-rtx")
    assert any("code that would run on the host" in text for text in inspect(engine)["missing"])
    md.open_bundle(bundle).session("tensorrt-rtx", engine_code=True)
    assert library.runtime.engine_host_code_allowed is True
    monkeypatch.setenv("MEGA_DEPLOY_ENGINE_CODE", "1")
    md.open_bundle(bundle).session("tensorrt-rtx")
    with pytest.raises(BundleError, match="code that would run on the host"):
        md.open_bundle(bundle).session("tensorrt-rtx", engine_code=False)
    monkeypatch.setenv("MEGA_DEPLOY_ENGINE_CODE", "please")
    with pytest.raises(OptionError, match="'please'; it may be 1"):
        md.open_bundle(bundle).session("tensorrt-rtx")


def test_what_is_said_of_engines_is_refused_for_onnxruntime(pristine):
    with pytest.raises(OptionError, match="onnxruntime takes none"):
        md.open_bundle(pristine).session(engine_code=True)


def test_a_stripped_engine_gets_its_weights_from_the_bundles_graph(library, engine):
    path, given = engine.parents[1], []

    class Refitter:
        def __init__(self, loaded, logger):
            assert loaded is library.engine

        def get_missing_weights(self):
            return library.missing

        def refit_cuda_engine(self):
            return True

    class OnnxParserRefitter:
        def __init__(self, refitter, logger):
            pass

        def refit_from_bytes(self, model, place):
            given.append((len(model), place))
            return True

    library.__dict__.update(Refitter=Refitter, OnnxParserRefitter=OnnxParserRefitter, missing=[])
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["engines"][0]["options"]["stripped"] = True
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert md.open_bundle(path).session("tensorrt-rtx").run(np.zeros((1, 8, 6), np.float32)).shape == (1, 16)
    assert given == [((path / "model.onnx").stat().st_size, str(path / "model.onnx"))]
    library.missing = ["blocks.0.weight"]
    with pytest.raises(BundleError, match=r"weights that .* does not name: blocks\.0\.weight"):
        md.open_bundle(path).session("tensorrt-rtx")


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
