"""Bundles that change after they were opened: nothing is loaded but what was verified."""

import json
import os
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mega_deploy as md
from mega_deploy.bundle import MANIFEST, GraphFile, describe_files, opening
from mega_deploy.errors import BundleError
from mega_deploy.models.edifice import Mega
from mega_deploy.runtime.onnxruntime.session import Session
from mega_deploy.signature import Signature, TensorSpec

CHANGED = "has changed since it was opened.*open the bundle again"


@pytest.fixture(scope="module")
def two(model, tmp_path_factory):
    """Bundles of two models of one architecture."""
    folder = tmp_path_factory.mktemp("two")
    return [md.export(one, folder / f"{name}.mega", form="both").path
            for name, one in (("old", model), ("new", Mega(model.config).eval()))]  # fmt: skip


@pytest.fixture
def live(two, tmp_path):
    return shutil.copytree(two[0], tmp_path / "live.mega")


def replace(live, other):
    shutil.rmtree(live)
    shutil.copytree(other, live)


def test_a_stream_never_takes_many_steps_on_another_model_than_one(two, live):
    stream = md.open_bundle(live).stream()
    frames = np.ones((1, 5, 6), np.float32)
    want = md.open_bundle(two[0]).stream().step(frames[:, 0])
    replace(live, two[1])
    with pytest.raises(BundleError, match=CHANGED):
        stream.prefill(frames)
    np.testing.assert_array_equal(stream.step(frames[:, 0]), want)  # and goes on with the old one


@pytest.mark.parametrize(
    "use",
    [
        lambda bundle: bundle.session(),
        lambda bundle: bundle.stream(),
        lambda bundle: bundle.reference(),
        lambda bundle: bundle.reference("stream"),
        lambda bundle: bundle.parity_session(),
        md.validate,
        lambda bundle: md.validate(bundle, samples=1),
        lambda bundle: bundle.read("trained.safetensors"),
    ],
)
def test_what_is_opened_later_is_what_was_verified_or_refused(two, live, use):
    bundle = md.open_bundle(live)
    replace(live, two[1])
    with pytest.raises(BundleError, match=CHANGED):
        use(bundle)


def test_an_engine_is_read_once_and_held_against_the_manifest(built, tmp_path):
    live = shutil.copytree(built, tmp_path / "engine.mega")
    bundle = md.open_bundle(live)
    name = bundle.manifest.engines[0]["file"]
    assert bundle.read(name) == (live / name).read_bytes()
    with (live / name).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(BundleError, match=CHANGED):
        bundle.read(name)


@pytest.mark.parametrize("change", ["byte", "longer", "gone", "link", "pipe"])
def test_read_gives_the_bytes_that_the_manifest_names_or_none(live, tmp_path, change):
    bundle, path = md.open_bundle(live), live / "step.onnx"
    raw = path.read_bytes()
    assert bundle.read("step.onnx") == raw
    path.rename(tmp_path / "elsewhere")
    if change == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif change == "pipe":
        os.mkfifo(path)
    elif change != "gone":
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]) if change == "byte" else raw + b"x")
    with pytest.raises(BundleError, match=CHANGED):
        bundle.read("step.onnx")
    with pytest.raises(BundleError, match="holds no absent"):
        bundle.read("absent")


def test_a_loaded_graph_is_not_kept_in_memory_a_second_time(live):
    session = md.open_bundle(live).session()
    assert not session._session._model_bytes


@pytest.fixture
def outside(tmp_path):
    """A graph whose weights lie beside it, as those of models beyond 2 GB do."""
    folder = tmp_path / "outside"
    folder.mkdir()
    weights = numpy_helper.from_array(np.arange(1024, dtype=np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1024]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    return GraphFile(folder, "model.onnx", describe_files(folder))


def test_weights_outside_of_a_graph_are_held_against_the_manifest_too(outside):
    x = np.zeros(1024, np.float32)
    signature = Signature((TensorSpec("x", "float32", (1024,)),), (TensorSpec("y", "float32", (1024,)),))
    session = Session(outside, signature)
    np.testing.assert_array_equal(session.run(x), np.arange(1024))
    path = outside.folder / "model.onnx.data"
    path.write_bytes(bytes(len(path.read_bytes())))
    np.testing.assert_array_equal(session.run(x), np.arange(1024))
    with pytest.raises(BundleError, match=f"model.onnx.data {CHANGED}"):
        Session(outside, signature)


def test_the_manifest_itself_is_read_once(two, live):
    bundle = md.open_bundle(live)
    other = json.loads((two[1] / MANIFEST).read_text())
    replace(live, two[1])
    assert bundle.manifest.files["step.onnx"] != other["files"]["step.onnx"]
    md.open_bundle(live).session()


def test_a_bundle_that_is_replaced_while_it_is_opened_is_opened_anew(two, live, tmp_path, monkeypatch):
    aside, verify = shutil.copytree(two[1], tmp_path / "other.mega"), opening._verify

    def replaced(*arguments):
        monkeypatch.setattr(opening, "_verify", verify)  # once
        live.rename(tmp_path / "before.mega")
        aside.rename(live)
        verify(*arguments)

    monkeypatch.setattr(opening, "_verify", replaced)
    assert md.open_bundle(live).manifest == md.open_bundle(two[1]).manifest
