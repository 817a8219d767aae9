"""Streams of tokens on engines: prompts, sources and counts, with stand-ins as in test_engine_stream."""

import json
import re
import shutil
from pathlib import Path

import fake_engine
import numpy as np
import pytest
from paper_goldens import close, models

import mega_deploy as md
from mega_deploy.bundle import MANIFEST
from mega_deploy.errors import BundleError, MegaDeployError
from mega_deploy.runtime.tensorrt.cuda import Device
from mega_deploy.runtime.tensorrt.launch import Launch

CASE = models("fairseq", "model_nmt_")["model_nmt_laplace_rotary_chunk"]
SOURCES = {"src_tokens": CASE.inputs["src_tokens_left"], "src_lengths": CASE.inputs["src_lengths"]}
TARGETS = CASE.inputs["prev_output_tokens"]
CAPACITY, END = 16, 2


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("engine-source") / "words.mega"
    md.export(CASE.checkpoint, path, form="stream", seq_len=CAPACITY, batch_range="1:1:4")
    md.build(path, target="tensorrt-rtx")
    return path


@pytest.fixture
def library(monkeypatch, driver, made):
    return fake_engine.install_all(monkeypatch, driver, md.open_bundle(made))


@pytest.fixture
def pair(library, made):
    """Streams on engines, and on onnxruntime, which they must equal."""
    bundle = md.open_bundle(made)
    return bundle.stream(3, backend="tensorrt-rtx"), bundle.stream(3)


@pytest.fixture
def downloads(monkeypatch):
    """The bytes of each copy from the GPU."""
    found, original = [], Device.download

    def download(device, address, array):
        found.append(array.nbytes)
        original(device, address, array)

    monkeypatch.setattr(Device, "download", download)
    return found


def test_a_bundle_holds_an_engine_of_each_of_its_graphs(made):
    bundle = md.open_bundle(made)
    engines = {entry["graph"]: entry for entry in bundle.manifest.engines}
    assert list(engines) == ["step.onnx", "prefill.onnx", "encode.onnx"]
    assert [entry["file"].removeprefix("engines/tensorrt-rtx") for entry in engines.values()] == [
        ".engine",
        ".prefill.engine",
        ".encode.engine",
    ]
    for graph, entry in engines.items():
        assert entry["source"]["model"] == bundle.manifest.files[graph]["sha256"]
    prefill = engines["prefill.onnx"]["profiles"][0]
    assert prefill["prev_output_tokens"]["max"] == [4, 5] and prefill["source_seen"]["max"] == [4, CAPACITY]


def test_sources_and_prompts_go_through_engines(pair, library):
    for one in pair:
        one.encode(SOURCES)
    for steps in (slice(0, 1), slice(1, 3)):  # fewer than a call takes, from any position on
        got, want = (one.prefill(TARGETS[:, steps]) for one in pair)
        np.testing.assert_allclose(got, want, atol=1e-5)
    close(got, CASE.outputs["incr_logits_left"][:, 2])
    np.testing.assert_allclose(pair[0].step(TARGETS[:, 3]), pair[1].step(TARGETS[:, 3]), atol=1e-5)
    ran = {graph: sum(len(one.streams) for one in engine.contexts) for graph, engine in library.by_graph.items()}
    assert ran == {"step.onnx": 1, "prefill.onnx": 2, "encode.onnx": 1}


def test_streams_join_rest_and_go_on_from_each_other(pair):
    random = np.random.default_rng(0)
    for one in pair:
        one.encode(SOURCES)
    for turn in range(12):
        rows = random.permutation(3)[: random.integers(1, 4)]
        tokens = random.integers(4, 20, (len(rows), 1 if turn % 3 else 4))
        if turn % 5 == 4:
            joined = {name: array[[turn % 3]] for name, array in SOURCES.items()}
            for one in pair:
                one.encode(joined, rows=[int(rows[0])])
        if turn == 7:
            for one in pair:
                one.reorder([1, 1, 2])
        if (pair[1].room(rows) < tokens.shape[1]).any():
            break
        got, want = (one.step(tokens[:, 0], rows) if turn % 3 else one.prefill(tokens, rows) for one in pair)
        np.testing.assert_allclose(got, want, atol=1e-5)
        np.testing.assert_array_equal(pair[0].room(), CAPACITY - pair[0].state["steps_seen"])
    assert turn >= 7
    for name, array in pair[1].state.items():
        np.testing.assert_allclose(pair[0].state[name], array, atol=1e-5)


def test_what_is_generated_and_validated_on_engines_is_the_same(library, made):
    bundle = md.open_bundle(made)
    texts = []
    for backend in ("tensorrt-rtx", "onnxruntime"):
        stream = bundle.stream(3, backend=backend)
        stream.encode(SOURCES)
        texts.append([one.tokens.tolist() for one in md.generate(stream, [[END], [END, 7, 9], [END, 5]], 8)])
    assert texts[0] == texts[1]
    assert md.validate(made, backend="tensorrt-rtx").passed
    inputs = {**SOURCES, "prev_output_tokens": TARGETS}
    close(bundle.runner(None, "tensorrt-rtx").run_named(inputs)["logits"], CASE.outputs["incr_logits_left"])


def test_a_step_waits_for_no_copy_but_its_outputs(pair, downloads):
    stream, _ = pair
    stream.encode(SOURCES)
    downloads.clear()
    logits = stream.step(TARGETS[:, 0])
    assert downloads == [logits.nbytes]
    stream.step(TARGETS[[0, 1], 1], [0, 1])
    stream.prefill(TARGETS[[0, 1], 2:4], [0, 1])
    assert downloads == [logits.nbytes, *2 * [logits.nbytes * 2 // 3]]
    stream.reset([1])
    assert stream.room().tolist() == [CAPACITY - 4, CAPACITY, CAPACITY - 1] and len(downloads) == 3
    with pytest.raises(md.InputError, match="stream 1 has no source yet"):
        stream.step(TARGETS[:, 4])


def test_what_streams_have_had_follows_their_state(pair, tmp_path):
    stream, _ = pair
    stream.encode({name: array[:2] for name, array in SOURCES.items()}, rows=[0, 1])
    stream.prefill(TARGETS[:1, :5], [1])
    stream.reorder([1, 0, 2])
    assert stream.room().tolist() == [CAPACITY - 5, CAPACITY, CAPACITY]
    stream.save(tmp_path / "now.npz")
    other = stream.another()
    with pytest.raises(md.InputError, match="stream 0 has no source yet"):
        other.step(TARGETS[:, 0])
    other.load(tmp_path / "now.npz")
    assert other.room().tolist() == stream.room().tolist()
    with pytest.raises(md.InputError, match="stream 2 has no source yet"):
        other.step(TARGETS[:, 0])
    with pytest.raises(md.InputError, match="stream 0 has had 5 steps, and 12 more are beyond the 16"):
        other.prefill(np.full((2, 12), 5), [1, 0])


def test_a_prefill_that_fails_half_way_has_taken_and_counted_what_came_before(pair, monkeypatch):
    stream, reference = pair
    rows, fine = [2, 0], iter([True, False])  # a call takes 5 tokens
    for one in pair:
        one.encode(SOURCES)
    launch = Launch.run

    def run(self, on):
        if not next(fine):
            raise MegaDeployError("the engine failed")
        launch(self, on)

    with monkeypatch.context() as patch:
        patch.setattr(Launch, "run", run)
        with pytest.raises(MegaDeployError, match="the engine failed"):
            stream.prefill(TARGETS[rows, :8], rows)
    reference.prefill(TARGETS[rows, :5], rows)
    assert stream.room().tolist() == reference.room().tolist() == [CAPACITY - 5, CAPACITY, CAPACITY - 5]
    got, want = (one.prefill(TARGETS[rows, 5:8], rows) for one in pair)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.fixture
def of_steps_alone(made, tmp_path):
    """The bundle as earlier releases built it."""
    path = shutil.copytree(made, tmp_path / "old.mega")
    manifest = json.loads((path / MANIFEST).read_text())
    kept, *others = manifest["engines"]
    del kept["graph"]
    for entry in others:
        del manifest["files"][entry["file"]]
        (path / entry["file"]).unlink()
    (path / MANIFEST).write_text(json.dumps({**manifest, "engines": [kept]}))
    return path


def test_without_an_engine_for_sources_a_stream_that_reads_one_is_refused(library, of_steps_alone):
    with pytest.raises(BundleError, match=re.escape("no engine of encode.onnx for tensorrt-rtx; add one: mega-deploy")):
        md.open_bundle(of_steps_alone).stream(backend="tensorrt-rtx")
