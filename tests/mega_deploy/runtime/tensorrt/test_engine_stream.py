"""Streams on an engine: the state on the GPU, read from one place and written to another, replayed as CUDA graphs.

The GPU is host memory, and the engine onnxruntime: see fake_engine, which refuses outputs where inputs lie.
"""

import ctypes
import gc
import json
import shutil
from pathlib import Path

import fake_engine
import numpy as np
import pytest

import mega_deploy as md
from mega_deploy.bundle import MANIFEST
from mega_deploy.errors import BundleError, MegaDeployError, OptionError

FEATURES, STATES = 6, 5  # frames_seen, and two of each of two blocks


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory) -> Path:
    path = md.export(model, tmp_path_factory.mktemp("engine-stream") / "alone.mega", form="stream").path
    md.build(path, target="tensorrt-rtx")
    return path


@pytest.fixture
def library(monkeypatch, driver, alone):
    """The library, whose contexts for the step are kept in `contexts`."""
    module = fake_engine.install_all(monkeypatch, driver, md.open_bundle(alone))
    module.contexts = module.by_graph["step.onnx"].contexts
    return module


@pytest.fixture
def sequences():
    return np.random.default_rng(5).standard_normal((3, 30, FEATURES), dtype=np.float32)


@pytest.fixture
def pair(library, alone):
    """A stream on the engine, and one on onnxruntime that it must equal."""
    bundle = md.open_bundle(alone)
    return bundle.stream(3, backend="tensorrt-rtx"), bundle.stream(3)


def test_a_stream_on_an_engine_gives_what_onnxruntime_gives_and_is_replayed(pair, library, sequences):
    stream, reference = pair
    for step in range(30):
        np.testing.assert_allclose(stream.step(sequences[:, step]), reference.step(sequences[:, step]), atol=1e-6)
    assert stream.backend == "tensorrt-rtx" and stream.providers[0].startswith("TensorRT-RTX")
    of_windows, *directions = library.contexts
    assert [context.calls for context in directions] == [2, 2]  # launched, captured, and then replayed 13 times
    assert [len(context.streams) for context in directions] == [15, 15] and of_windows.calls == 0


def test_a_step_reads_what_the_last_one_wrote_where_it_lies(pair, library, sequences):
    stream, _ = pair
    stream.step(sequences[:, 0])
    stream.step(sequences[:, 1])
    there, back = (context.addresses for context in library.contexts[1:])
    names = [spec.name for spec in stream.signature.state]
    assert [there[f"{name}.next"] for name in names] == [back[name] for name in names]
    assert [back[f"{name}.next"] for name in names] == [there[name] for name in names]
    assert len({there[name] for name in names} | {back[name] for name in names}) == 2 * STATES


def test_rows_rest_join_begin_anew_and_are_saved_as_everywhere(pair, sequences, tmp_path):
    stream, reference = pair
    seed = np.random.default_rng(1)
    for step in range(24):
        rows = seed.permutation(3)[: seed.integers(1, 4)]
        if step % 7 == 6:
            for one in pair:
                one.reset([int(rows[0])])
        if step == 12:
            for one in pair:
                one.reorder([2, 0, 0])
        frames = sequences[rows, step]
        np.testing.assert_allclose(stream.step(frames, rows), reference.step(frames, rows), atol=1e-6)
    for name, array in reference.state.items():
        np.testing.assert_allclose(stream.state[name], array, atol=1e-6)
    stream.save(tmp_path / "now.npz")
    reference.load(tmp_path / "now.npz")
    np.testing.assert_allclose(stream.step(sequences[:, 29]), reference.step(sequences[:, 29]), atol=1e-6)


def test_a_step_that_fails_leaves_the_state_as_it_was(pair, library, sequences, monkeypatch):
    stream, reference = pair
    for step in range(3):
        stream.step(sequences[:, step]), reference.step(sequences[:, step])
    with monkeypatch.context() as patch:
        for context in library.contexts:
            patch.setattr(context, "execute_async_v3", lambda stream: False)
        with pytest.raises(MegaDeployError, match="the engine failed"):
            stream.step(sequences[:, 3])
    np.testing.assert_allclose(stream.step(sequences[:, 3]), reference.step(sequences[:, 3]), atol=1e-6)


def test_memory_goes_with_the_streams_and_others_share_the_engine(library, alone, driver):
    blocks = ctypes.CDLL(str(driver)).fake_blocks
    gc.collect()
    before = blocks()
    stream = md.open_bundle(alone).stream(2, backend="tensorrt-rtx")
    assert blocks() == before + 2 + 2 * STATES  # frames and features, and each state twice
    other = stream.another(1)
    assert blocks() == before + 2 + 4 * STATES
    frames = np.ones((2, FEATURES), np.float32)
    first = stream.step(frames)
    np.testing.assert_array_equal(other.step(frames[:1]), first[:1])
    del stream, other
    gc.collect()
    assert blocks() == before


def test_validate_and_run_take_an_engine_of_a_stream(library, alone, sequences):
    assert md.validate(alone, backend="tensorrt-rtx").passed
    bundle = md.open_bundle(alone)
    got, want = (bundle.runner("stream", name).run_named(sequences) for name in ("tensorrt-rtx", "onnxruntime"))
    np.testing.assert_allclose(got["features"], want["features"], atol=1e-6)


def test_what_no_stream_on_an_engine_can_do_is_refused(library, alone, tmp_path):
    bundle = md.open_bundle(alone)
    with pytest.raises(OptionError, match="takes none"):
        bundle.stream(backend="tensorrt-rtx", threads=1)
    with pytest.raises(OptionError, match="no backend 'abacus'"):
        bundle.stream(backend="abacus")
    without = shutil.copytree(alone, tmp_path / "other.mega")
    shutil.rmtree(without / "engines")
    with pytest.raises(BundleError):
        md.open_bundle(without).stream(backend="tensorrt-rtx")


def test_a_bundle_of_both_forms_has_engines_of_both(model, tmp_path, monkeypatch, driver, sequences):
    path = md.export(model, tmp_path / "both.mega", form="both").path
    assert md.build(path, target="tensorrt-rtx").graph == "model.onnx"
    bundle = md.open_bundle(path)
    fake_engine.install_all(monkeypatch, driver, bundle)
    assert [entry["graph"] for entry in bundle.manifest.engines] == ["model.onnx", "step.onnx", "prefill.onnx"]
    window = sequences[:, :8]
    want = bundle.session("tensorrt-rtx").run(window)
    np.testing.assert_allclose(bundle.stream(3, backend="tensorrt-rtx").prefill(window), want, atol=1e-5)
    cases = [case.name for case in md.validate(path, backend="tensorrt-rtx").cases]
    assert any(name.startswith("stream: ") for name in cases) and len(cases) > len(bundle.reference("stream").cases)


def test_a_bundle_with_an_engine_of_its_step_alone_steps_through_many_frames(library, alone, tmp_path, sequences):
    """As earlier releases built them: without a name for the graph."""
    path = shutil.copytree(alone, tmp_path / "old.mega")
    manifest = json.loads((path / MANIFEST).read_text())
    of_step, of_prefill = manifest["engines"]
    del of_step["graph"], manifest["files"][of_prefill["file"]]
    (path / of_prefill["file"]).unlink()
    (path / MANIFEST).write_text(json.dumps({**manifest, "engines": [of_step]}))
    stream = md.open_bundle(path).stream(3, backend="tensorrt-rtx")
    assert not stream.prefills and stream.step(sequences[:, 0]).shape == (3, 16)
    with pytest.raises(md.InputError, match="step through them"):
        stream.prefill(sequences)
    assert md.validate(path, backend="tensorrt-rtx").passed
