"""Streams of a bundle: sessions, their state in memory and in files, and what the manifest and the commands say."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from commands import within

import mega_deploy as md
from mega_deploy.bundle import MANIFEST, STEP, STREAM_REFERENCE, describe_files
from mega_deploy.errors import BundleError, InputError, OptionError
from mega_deploy.files.npy import load_arrays, save_arrays
from mega_deploy.models.edifice import Mega
from mega_deploy.runtime.streams import state_file

WINDOW, FEATURES, HIDDEN = 8, 6, 16


@pytest.fixture(scope="module")
def both(model, tmp_path_factory) -> Path:
    return md.export(model, tmp_path_factory.mktemp("streams") / "both.mega", form="both").path


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory) -> Path:
    return md.export(model, tmp_path_factory.mktemp("streams") / "alone.mega", form="stream").path


@pytest.fixture(scope="module")
def sequences() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((3, 30, FEATURES), dtype=np.float32)


def through(stream, sequences):
    return np.stack([stream.step(sequences[:, step]) for step in range(sequences.shape[1])], axis=1)


def test_the_last_step_of_a_window_is_the_windows_output(both, sequences):
    bundle = md.open_bundle(both)
    want = bundle.session().run(sequences[:, :WINDOW])
    np.testing.assert_allclose(through(bundle.stream(3), sequences[:, :WINDOW])[:, -1], want, atol=2e-6)


def test_the_manifest_names_every_state_with_its_initial_value(both):
    manifest = json.loads((both / MANIFEST).read_text())
    state = {spec["name"]: spec for spec in manifest["signature"]["state"]}
    assert list(state) == ["frames_seen", *(f"blocks.{i}.{kind}" for i in (0, 1) for kind in ("average", "frames"))]
    assert state["blocks.1.frames"]["dims"][1:] == [WINDOW, HIDDEN] and state["frames_seen"]["dtype"] == "int64"
    assert all(spec["initial"] == 0 and spec["output"] == f"{name}.next" for name, spec in state.items())
    assert manifest["stream"]["window"] == WINDOW and "first frame" in manifest["stream"]["moving_average"]
    assert manifest["stream"]["parity"]["passed"]


def test_a_step_writes_one_slot_of_a_ring_and_copies_nothing_else(both, sequences):
    stream = md.open_bundle(both).stream(2)
    addresses = {name: buffer.address for name, buffer in stream._step.state.items()}
    before = stream.state
    for step in range(2 * WINDOW + 3):
        stream.step(sequences[:2, step])
        after = stream.state
        changed = np.argwhere((after["blocks.0.frames"] != before["blocks.0.frames"]).any(axis=2))
        assert changed.tolist() == [[row, (step + 1) % WINDOW] for row in range(2)]
        before = after
    assert {name: buffer.address for name, buffer in stream._step.state.items()} == addresses
    bound = stream._step._bindings[2, 0]._binding.get_outputs()[1:]
    assert [value.data_ptr() for value in bound] == list(addresses.values())


def test_rows_that_rest_are_left_alone_and_an_idle_batch_costs_no_state(both, sequences):
    bundle = md.open_bundle(both)
    want, stream = through(bundle.stream(3), sequences), bundle.stream(3)
    for step in range(10):
        got = stream.step(sequences[[2, 0], step], rows=[2, 0])
        np.testing.assert_allclose(got, want[[2, 0], step], atol=2e-6)
    untouched = {spec.name: spec.initial for spec in stream.signature.state}
    assert all((stream.state[name][1] == initial).all() for name, initial in untouched.items())
    np.testing.assert_allclose(stream.step(sequences[1:2, 0], rows=[1]), want[1:2, 0], atol=2e-6)
    np.testing.assert_allclose(stream.step(sequences[[0, 2], 10], rows=[0, 2]), want[[0, 2], 10], atol=2e-6)


def test_reset_begins_anew_for_the_rows_that_are_named(both, sequences):
    bundle = md.open_bundle(both)
    want, stream = through(bundle.stream(3), sequences), bundle.stream(3)
    through(stream, sequences[:, :12])
    stream.reset([1])
    mixed = np.stack([sequences[0, 12], sequences[1, 0], sequences[2, 12]])
    expected = np.stack([want[0, 12], want[1, 0], want[2, 12]])
    np.testing.assert_allclose(stream.step(mixed), expected, atol=2e-6)
    stream.reset()
    np.testing.assert_allclose(stream.step(sequences[:, 0]), want[:, 0], atol=2e-6)


@pytest.mark.parametrize("frames", [1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 2])
def test_prefill_leaves_what_stepping_leaves(both, sequences, frames):
    bundle = md.open_bundle(both)
    stepped, filled = bundle.stream(3), bundle.stream(3)
    want = through(stepped, sequences[:, :frames])[:, -1]
    np.testing.assert_allclose(filled.prefill(sequences[:, :frames]), want, atol=3e-6)
    for name, array in stepped.state.items():
        np.testing.assert_allclose(filled.state[name], array, atol=3e-6)
    np.testing.assert_allclose(filled.step(sequences[:, 29]), stepped.step(sequences[:, 29]), atol=3e-6)


def test_reorder_lets_streams_go_on_from_others(both, sequences):
    stream = md.open_bundle(both).stream(3)
    through(stream, sequences[:, :10])
    before = stream.state
    stream.reorder([2, 2, 0])
    assert all((stream.state[name] == array[[2, 2, 0]]).all() for name, array in before.items())


def test_a_saved_state_goes_on_elsewhere(both, sequences, tmp_path):
    bundle = md.open_bundle(both)
    stream = bundle.stream(3)
    through(stream, sequences[:, :10])
    stream.step(sequences[[2], 10], rows=[2])  # moves rows about: a state is in the order of the streams all the same
    stream.save(tmp_path / "state.npz")
    want = stream.step(sequences[:, 11])
    again = bundle.stream(3)
    again.load(tmp_path / "state.npz")
    np.testing.assert_array_equal(again.step(sequences[:, 11]), want)


def test_a_state_that_is_not_whole_or_not_of_this_model_is_refused_and_changes_nothing(both, sequences, tmp_path):
    stream = md.open_bundle(both).stream(2)
    stream.step(sequences[:2, 0])
    path, kept = tmp_path / "state.npz", stream.state
    stream.save(path)
    arrays = load_arrays(path)
    spoilt = {**arrays, "blocks.0.average": arrays["blocks.0.average"] + 1}
    foreign = {**arrays, "about": np.array(str(arrays["about"]).replace('"model": "', '"model": "00'))}
    for change, message in (
        (spoilt, "is not what was saved"),
        (foreign, "another model"),
        ({name: array for name, array in arrays.items() if name != "about"}, "is not the state of a stream"),
        ({name: array for name, array in arrays.items() if name != "frames_seen"}, "is not what was saved"),
        ({**arrays, "bomb": np.zeros(1 << 19)}, "unpacks to"),
    ):
        save_arrays(path, change)
        with pytest.raises(InputError, match=message):
            stream.load(path)
    with pytest.raises(InputError, match="this session has 2"):
        stream.load(md.open_bundle(both).stream(3).state)
    with pytest.raises(InputError, match=r"must end in \.npz"):
        stream.save(tmp_path / "state.bin")
    assert all((stream.state[name] == array).all() for name, array in kept.items())


@pytest.mark.parametrize("value", [-1, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("by_file", [False, True], ids=["memory", "file"])
def test_a_count_that_no_stream_can_have_is_refused_and_changes_nothing(both, sequences, tmp_path, value, by_file):
    stream = md.open_bundle(both).stream(batch=3)
    through(stream, sequences[:, :4])
    before, state = stream.state, stream.state
    state["frames_seen"][1] = value
    if by_file:
        state_file.write(tmp_path / "x.npz", state, md.open_bundle(both).manifest.files[STEP]["sha256"])
    with pytest.raises(InputError, match=f'"frames_seen" holds {value} at .1.'):
        stream.load(tmp_path / "x.npz" if by_file else state)
    assert all(np.array_equal(before[name], array) for name, array in stream.state.items())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_no_number_is_refused(both, sequences, value):
    stream = md.open_bundle(both).stream(batch=3)
    state = stream.state
    state["blocks.0.frames"][2, 3, 4] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        stream.load(state)
    through(stream, sequences[:, :2])


def test_a_masked_array_is_refused_wherever_a_stream_takes_one(both, sequences):
    stream = md.open_bundle(both).stream(batch=3)
    frames = sequences[:, 0]
    stream.step(frames)  # which the next one looks like
    masked = np.ma.array(frames, mask=frames > 0)
    for call in (
        lambda: stream.step(masked),
        lambda: stream.step({"frames": list(masked)}),
        lambda: stream.step(frames, rows=np.ma.array([0, 1, 2], mask=[0, 0, 1])),
        lambda: stream.prefill(np.ma.array(sequences, mask=False)),
        lambda: stream.load({**stream.state, "frames_seen": np.ma.array(stream.state["frames_seen"])}),
        lambda: md.open_bundle(both).runner("stream").run_named(np.ma.array(sequences, mask=False)),
        lambda: md.open_bundle(both).session().run(np.ma.array(sequences[:, :WINDOW], mask=False)),
    ):
        with pytest.raises(InputError, match="masked"):
            call()


def test_a_file_is_looked_at_before_its_numbers_are_read(both, tmp_path):
    """Of gigabytes that the signature has no place for, the head alone is read."""
    for shape in ((1, WINDOW, 1 << 33), (1 << 33, WINDOW, FEATURES), (3, (1 << 20) + 1, FEATURES)):
        path = tmp_path / "x.npy"
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            file.truncate(file.tell() + 4 * math.prod(shape))
        for form in ("window", "stream"):
            done = within("run", both, path, "-o", tmp_path / "y.npy", "--form", form)
            assert done.returncode == 2 and done.stderr.count("\n") == 1 and '"frames"' in done.stderr, done.stderr


def test_threads_with_streams_of_their_own_share_a_model(both, sequences):
    first = md.open_bundle(both).stream(1, threads=1)
    want, got = through(first, sequences[:1]), {}
    others = {name: first.another() for name in range(4)}

    def work(name):
        got[name] = through(others[name], sequences[:1])

    workers = [threading.Thread(target=work, args=(name,)) for name in others]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all((got[name] == want).all() for name in others)


@pytest.mark.parametrize("rows", [None, [0, 1, 2], [2, 0, 1], [1, 0]])
def test_a_frame_that_looks_like_the_last_one_is_checked_and_seated_all_the_same(both, sequences, rows):
    stream, reference = (md.open_bundle(both).stream(3) for _ in range(2))
    chosen = [0, 1, 2] if rows is None else rows
    for step in range(6):
        backwards = sequences[chosen, step][:, ::-1]  # not contiguous
        want = reference.step({"frames": backwards.copy()}, rows=chosen)
        np.testing.assert_array_equal(stream.step(backwards, rows), want)
        kept = stream.state
        with pytest.raises(InputError, match="NaN or infinite"):
            stream.step(np.where(np.arange(FEATURES) == 3, np.inf, backwards).astype(np.float32), rows)
        assert all((stream.state[name] == array).all() for name, array in kept.items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.step(np.zeros((3, FEATURES))), "is for 3 streams, but 2 are stepped"),
        (lambda s: s.step(np.zeros((1, FEATURES)), rows=[2]), "from 0 to 1, got 2"),
        (lambda s: s.step(np.zeros((2, FEATURES)), rows=[1, 1]), "must differ"),
        (lambda s: s.step(np.zeros((2, FEATURES)), rows=[0.5, 1]), "list of the streams' numbers"),
        (lambda s: s.step(np.zeros((2, FEATURES)), rows=[[0], [1, 2]]), "list of the streams' numbers"),
        (lambda s: s.reset([[0], [1, 2]]), "list of the streams' numbers"),
        (lambda s: s.step(np.full((2, FEATURES), np.nan)), "NaN"),
        (lambda s: s.prefill(np.zeros((2, 0, FEATURES))), "frames 0 is outside"),
        (lambda s: s.reorder([0]), "a row for each of the 2 streams"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(both, call, message, sequences):
    stream = md.open_bundle(both).stream(2)
    stream.step(sequences[:2, 0])
    kept = stream.state
    with pytest.raises(InputError, match=message):
        call(stream)
    assert all((stream.state[name] == array).all() for name, array in kept.items())


def test_memory_stays_level_over_many_steps(both):
    """Of a process of its own: resets, other rows and prefills among the steps, and nothing of any is left behind."""
    code = """
import re, sys, numpy as np, mega_deploy as md
stream = md.open_bundle(sys.argv[1]).stream(3, threads=1)
frames = np.random.default_rng(0).standard_normal((3, 9, 6), np.float32)
def resident():
    return int(re.search(r"VmRSS:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
def work(rounds):
    for number in range(rounds):
        for step in range(9):
            stream.step(frames[:, step])
        stream.step(frames[:2, 0], rows=[number % 3, (number + 1) % 3])
        stream.reset([number % 3])
        if number % 50 == 0:
            stream.prefill(frames)
work(1500)
before = resident()
work(1500)
print(resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(both)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 256  # kB; 24 bytes of each of 15,000 steps would be 360


def test_a_bundle_says_which_forms_it_has(both, alone, pristine):
    with pytest.raises(BundleError, match="holds only a stream"):
        md.open_bundle(alone).session()
    with pytest.raises(BundleError, match="--form stream or both"):
        md.open_bundle(pristine).stream()
    with pytest.raises(OptionError, match="--batch-range 1:1:65"):
        md.open_bundle(both).stream(65)
    assert md.open_bundle(both).forms == ("window", "stream") and md.open_bundle(alone).forms == ("stream",)


def test_windows_of_a_range_stand_beside_a_stream_of_the_longest(model, tmp_path, sequences):
    bundle = md.export(model, tmp_path / "range.mega", form="both", seq_range="1:8:12")
    assert bundle.stream_form.window == 12 and md.validate(bundle, samples=2, seed=1).passed
    steps = through(bundle.stream(3), sequences[:, :20])
    for start, end in ((0, 1), (0, 5), (0, 12)):
        want = bundle.session().run(sequences[:, start:end])
        np.testing.assert_allclose(steps[:, end - 1], want, atol=2e-6)


def test_options_that_no_stream_has_are_refused(model, tmp_path):
    laplace = Mega.build(embed_dim=4, hidden_size=8, num_layers=1, window_size=5, laplace_attention=True).eval()
    for given, options, message in (
        (laplace, {}, "causal"),
        (model, {"seq_range": "1:8:16"}, "--seq-len"),
        (model, {"ema": "kernel"}, "--ema"),
        (model, {"precision": "float16", "half_io": True}, "--half-io"),
    ):
        with pytest.raises(OptionError, match=message):
            md.export(given, tmp_path / "no.mega", form="stream", **options)
    assert not list(tmp_path.iterdir())


def test_one_report_on_both_forms_tells_what_the_stream_left_out_and_sampled(both, monkeypatch):
    bundle = md.open_bundle(both)
    stream = dataclasses.replace(bundle.reference("stream"), left_out=("huge",), sampled=("a single run",))
    references = {"window": bundle.reference(), "stream": stream}
    monkeypatch.setattr(type(bundle), "reference", lambda _bundle, form="window": references[form])
    report = md.validate(bundle)
    assert (report.left_out, report.sampled) == (("stream: huge",), ("stream: a single run",))


def test_validate_judges_both_forms_and_finds_a_spoilt_stream(both, alone, model, tmp_path):
    report = md.validate(both)
    streams = [case.name for case in report.cases if case.name.startswith("stream: ")]
    assert report.passed and any("1000 frames beyond the window" in name for name in streams)
    assert md.validate(alone, samples=2, seed=3).passed
    assert md.validate(alone, inputs=np.ones((2, 20, FEATURES), np.float32)).passed
    other = md.export(Mega(model.config).eval(), tmp_path / "other.mega", form="stream").path
    shutil.copy(both / STREAM_REFERENCE, other)
    manifest = json.loads((other / MANIFEST).read_text())
    manifest["files"] = describe_files(other)
    (other / MANIFEST).write_text(json.dumps(manifest))
    assert not md.validate(other).passed


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
def test_lower_precisions_stay_within_their_limit_over_a_thousand_steps(precision, tmp_path):
    torch.manual_seed(0)
    wide = Mega.build(embed_dim=6, hidden_size=128, ema_dim=3, num_layers=2, window_size=8).eval()
    bundle = md.export(wide, tmp_path / "low.mega", form="stream", precision=precision)
    report = md.validate(bundle)
    assert report.passed and {spec.dtype for spec in bundle.stream_form.step.state} == {"float32", "int64"}
    if precision == "int8":
        kinds = [node.op_type for node in onnx.load(bundle.path / STEP).graph.node]
        assert kinds.count("DequantizeLinear") == 18 and kinds.count("Gemm") == 1  # the layer that reads the frames


def test_run_feeds_a_whole_sequence_step_by_step(both, sequences, tmp_path):
    np.save(tmp_path / "in.npy", sequences)
    command = [sys.executable, "-m", "mega_deploy", "run", str(both), "in.npy", "-o", "out.npy", "--form", "stream"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    want = through(md.open_bundle(both).stream(3), sequences)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want)
    np.save(tmp_path / "in.npy", sequences[0])
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 2 and "axis of steps" in done.stderr and "Traceback" not in done.stderr


def test_an_engine_of_a_step_takes_and_gives_the_state(alone, tmp_path):
    path = Path(shutil.copytree(alone, tmp_path / "alone.mega"))
    engine = md.build(path, target="tensorrt-rtx")
    state = md.open_bundle(path).stream_form.step.state
    assert [spec.name for spec in engine.inputs[1:]] == [spec.name for spec in state]
    assert [spec.name for spec in engine.outputs[1:]] == [spec.output for spec in state]
