"""Manifests that are no JSON, mean two things, or describe what cannot be: one line, before anything is loaded."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import process, within

import mega_deploy as md
from mega_deploy.bundle import refuse_within_bundle
from mega_deploy.errors import BundleError, InputError
from mega_deploy.runtime.streams.session import StreamSession
from mega_deploy.signature import Range, Signature, StateSpec, TensorSpec


@pytest.fixture(scope="module")
def both(model, tmp_path_factory) -> Path:
    return md.export(model, tmp_path_factory.mktemp("both") / "both.mega", form="both").path


@pytest.fixture
def copy(both, tmp_path) -> Path:
    return Path(shutil.copytree(both, tmp_path / "copy.mega"))


@pytest.mark.parametrize(
    ("old", "new", "tells"),
    [
        ('"bound": ', '"bound": 1e999, "was": ', "1e999"),
        ('"deployed": ', '"more": -1e999, "deployed": ', "1e999"),
        ('"precision": ', '"precision": "int8", "precision": ', "entry precision twice"),
        ('"sha256": ', '"sha256": "x", "sha256": ', "entry sha256 twice"),
        ('"deployed": ', '"deployed": 1' + 400 * "0" + ', "was": ', "64 bits"),
        ('"bound": ', '"deep": ' + 5000 * "[" + 5000 * "]" + ', "bound": ', "nested too deeply"),
        ('"bound": ', '"many": [' + 600_000 * "[]," + '0], "bound": ', "parts"),
    ],
)
def test_what_is_no_json_is_refused(copy, old, new, tells):
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace(old, new, 1))
    done = within("inspect", copy, "--json")
    assert done.returncode == 2 and tells in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


STATE, STEP_INPUT = ("signature", "state"), ("stream", "inputs", 0)


@pytest.mark.parametrize(
    ("place", "value", "tells"),
    [
        ((*STATE, 2, "dims", 1), 1 << 60, "axis of 1152921504606846976"),
        ((*STATE, 2, "dims", 1), 8.0, "axis of 8.0"),
        ((*STATE, 0, "initial"), 1.5, "cannot hold 1.5"),
        ((*STATE, 0, "initial"), -1, "begins at -1"),
        ((*STATE, 0, "initial"), 1e300, "cannot hold 1e"),
        ((*STATE, 1, "initial"), 1e300, "cannot hold 1e"),
        ((*STATE, 0, "limit"), 5.0, "5.0 steps"),
        (("signature", "outputs", 0, "dims", 1), 16.0, "axis of 16.0"),
        (("signature", "inputs", 0, "values"), [5, 2], "none"),
        ((*STEP_INPUT, "dims"), [1, 6], "range for its batch"),
        (("stream", "outputs", 0, "dims"), [{"min": 1, "opt": 1, "max": 64}, {"min": 1, "opt": 1, "max": 64}], "fixed"),
        (("stream", "prefill", "inputs", 0, "name"), "other", "what a step takes"),
        (("stream", "prefill", "inputs", 0, "dims", 1), 4, "axis of steps"),
        (("stream", "prefill", "inputs", 0, "dims", 2), 7, "axis of steps"),
    ],
)
def test_what_cannot_be_is_refused_as_the_bundle_is_opened(copy, place, value, tells):
    manifest = json.loads((copy / "manifest.json").read_text())
    part = manifest
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=tells):
        md.open_bundle(copy)


@pytest.mark.parametrize("name", ["model.onnx", "step.onnx"])
def test_a_form_without_its_graph_is_refused(both, pristine, tmp_path, name):
    bundle = Path(shutil.copytree(both if name == "step.onnx" else pristine, tmp_path / "x.mega"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / name).rename(bundle / "other.onnx")
    manifest["files"]["other.onnx"] = manifest["files"].pop(name)
    if name == "model.onnx":
        manifest["files"]["step.onnx"] = manifest["files"].pop("other.onnx")
        (bundle / "other.onnx").rename(bundle / "step.onnx")
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"describes {name}"):
        md.open_bundle(bundle)


def test_nothing_is_written_into_a_bundle(copy, model, frames, tmp_path):
    before = sorted(path.name for path in copy.iterdir())
    (tmp_path / "link").symlink_to(copy)
    np.save(tmp_path / "x.npy", frames)
    np.save(tmp_path / "s.npy", frames[:, :4])
    inside = [copy / "y.npy", tmp_path / "link" / "y.npy"]
    commands = [("run", copy, tmp_path / "x.npy", "-o", place) for place in inside]
    commands += [
        ("bench", copy, "--quick", "--no-limit", "--json-file", copy / "report.json"),
        ("bench", copy, "--quick", "--no-limit", "--csv", copy / "report.csv"),
        ("debug", "polygraphy", copy, "-o", copy / "polygraphy"),
    ]
    for command in commands:
        done = within(*command)
        assert done.returncode == 2 and "would lie in the bundle" in done.stderr, (command, done.stderr)
    for act in (
        lambda: md.open_bundle(copy).stream().save(copy / "state.npz"),
        lambda: md.save_checkpoint(model, copy / "x.safetensors"),
        lambda: md.export(model, copy / "inner.mega"),
        lambda: refuse_within_bundle(copy / "deep" / "deeper" / "x"),
    ):
        with pytest.raises(InputError, match="would lie in the bundle"):
            act()
    assert sorted(path.name for path in copy.iterdir()) == before
    md.open_bundle(copy)
    refuse_within_bundle(copy)  # the bundle itself may be replaced
    refuse_within_bundle(tmp_path / "y.npy")


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_name_that_no_file_can_have_is_one_line(name, pristine, model, tmp_path):
    stream_free = tmp_path / name
    for act in (
        lambda: md.open_bundle(stream_free),
        lambda: md.load_checkpoint(tmp_path / f"{name}.pt"),
        lambda: md.save_checkpoint(model, tmp_path / f"{name}.pt"),
        lambda: md.export(model, tmp_path / f"{name}.mega"),
        lambda: md.export(model, tmp_path / name / "x.mega", force=True),
        lambda: md.validate(pristine, inputs=tmp_path / f"{name}.npz"),
        lambda: md.validate(stream_free),
    ):
        with pytest.raises(InputError) as caught:
            act()
        assert str(caught.value).isprintable()


def test_a_named_pipe_is_refused_wherever_a_file_is_read(pristine, checkpoint, tmp_path):
    for name in ("pipe.npy", "pipe.json"):
        os.mkfifo(tmp_path / name)
    for command in (
        ("run", pristine, tmp_path / "pipe.npy", "-o", tmp_path / "y.npy"),
        ("validate", pristine, "--inputs", tmp_path / "pipe.npy"),
        ("export", checkpoint, "-o", tmp_path / "x.mega", "--config", tmp_path / "pipe.json"),
        ("export", tmp_path / "pipe.json", "-o", tmp_path / "x.mega"),
        ("bench", pristine, "--against", tmp_path / "pipe.json"),
        ("bench", "--sweep", tmp_path / "pipe.json"),
        ("inspect", tmp_path / "pipe.json"),
    ):
        done = within(*command)
        assert done.returncode == 2 and "not a regular file" in done.stderr, (command, done.stderr)
    assert process("inspect", tmp_path / "pipe.json").returncode == 2


@pytest.mark.parametrize(
    ("text", "tells"),
    [
        ('{"dropout": 0.1, "dropout": 0.2}', "cannot be read as JSON: it has the entry dropout twice"),
        ('{"dropout": 1e999}', "dropout must be"),
        ('{"dropout": -Infinity}', "dropout must be"),
        ('{"num_layers": 1e999}', "num_layers"),
    ],
)
def test_a_config_that_is_no_json_is_refused(text, tells, checkpoint, tmp_path):
    (tmp_path / "config.json").write_text(text)
    done = within("export", checkpoint, "-o", tmp_path / "x.mega", "--config", tmp_path / "config.json")
    assert done.returncode == 2 and tells in done.stderr and done.stderr.count("\n") == 1


def test_a_state_beyond_this_machines_memory_is_refused_before_it_is_made():
    tensor = TensorSpec("huge", "float32", (Range(1, 1, 64), 1 << 20, 1 << 20, 64))
    spec = StateSpec(tensor, "huge.next")
    assert spec.nbytes(2) == 2 * 4 * (1 << 46)
    step = Signature((TensorSpec("frames", "float32", (Range(1, 1, 64), 6)),), (), (spec,))
    with pytest.raises(InputError, match="bytes, more than the"):
        StreamSession(SimpleNamespace(backend="none"), step, 2)
