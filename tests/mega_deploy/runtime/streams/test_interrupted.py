"""Calls that a signal's exception ends: other streams go on unharmed, the call's own are whole or say that not."""

import fake_engine
import numpy as np
import pytest
from interruption import Late, Trial

import mega_deploy as md
from mega_deploy.errors import InputError
from mega_deploy.runtime.tensorrt.launch import Launch

BATCH, FEATURES = 6, 6
KINDS = {"step", "step of all", "prefill", "reset", "reorder", "load"}


@pytest.fixture(scope="module")
def both(model, tmp_path_factory):
    return md.export(model, tmp_path_factory.mktemp("interrupted") / "both.mega", form="both").path


def trial_of(subject, reference, seed=0):
    frames = np.random.default_rng(3).standard_normal((BATCH, 30, FEATURES), np.float32)
    for stream in (subject, reference):
        stream.prefill(frames)  # loads the graph
    return Trial(subject, reference, frames, seed)


@pytest.fixture
def trial(both):
    subject, reference = (md.open_bundle(both).stream(BATCH, threads=1) for _ in range(2))
    return trial_of(subject, reference)


def test_calls_interrupted_at_random_moments_leave_no_stream_that_is_neither_old_nor_new(trial):
    trial.run(600)
    assert trial.faults == [] and trial.interrupted > 60 and trial.broken > 20


def test_calls_interrupted_from_their_first_instruction_to_their_last_leave_whole_streams_or_say_so(trial):
    places = trial.sweep(1)
    assert trial.faults == [] and places.keys() == KINDS and min(places.values()) > 3


def test_streams_on_an_engine_are_left_as_whole(model, tmp_path, driver, monkeypatch):
    path = md.export(model, tmp_path / "engine.mega", form="stream").path
    md.build(path, target="tensorrt-rtx")
    bundle = md.open_bundle(path)
    fake_engine.install_all(monkeypatch, driver, bundle)
    # A replay is Python's own there, called from C, which an exception does not leave.
    monkeypatch.setattr(Launch, "_capture", lambda self: [])
    trial = trial_of(bundle.stream(BATCH, backend="tensorrt-rtx"), bundle.stream(BATCH, threads=1))
    places = trial.sweep(7)
    assert trial.faults == [] and places.keys() == KINDS


@pytest.fixture
def interrupted(both, monkeypatch):
    """Three streams of which the first and the last were in a step that did not end, and what they were before."""
    bundle = md.open_bundle(both)
    stream, frames = bundle.stream(3), np.ones((3, FEATURES), np.float32)
    stream.step(frames)
    before = stream.state

    def run(self, count, feeds):
        self.changed = True
        raise Late

    with monkeypatch.context() as patch, pytest.raises(Late):
        patch.setattr(type(stream._step), "run", run)
        stream.step(frames[:2], rows=[2, 0])
    return stream, before


def test_a_broken_stream_names_itself_and_the_remedy_until_it_is_reset_or_loaded(interrupted, tmp_path):
    stream, before = interrupted
    frames = np.ones((3, FEATURES), np.float32)
    for call in (
        lambda: stream.step(frames),
        lambda: stream.prefill(frames[:1, None], rows=[0]),
        lambda: stream.state,
        lambda: stream.save(tmp_path / "no.npz"),
    ):
        with pytest.raises(InputError, match=r"stream 0 was in a call that did not end.*reset it \(rows=\[0\]\)"):
            call()
    stream.step(frames[:1], rows=[1])
    stream.reset([0])
    stream.step(frames[:2], rows=[0, 1])
    with pytest.raises(InputError, match="stream 2 was in a call"):
        stream.step(frames[:1], rows=[2])
    stream.load(before)
    assert all((stream.state[name] == array).all() for name, array in before.items())
    stream.step(frames)


def test_what_is_broken_follows_a_reorder(interrupted):
    stream, _ = interrupted
    frames = np.ones((3, FEATURES), np.float32)
    stream.reorder([1, 1, 2])
    stream.step(frames[:2], rows=[0, 1])
    with pytest.raises(InputError, match="stream 2 was in a call"):
        stream.step(frames[:1], rows=[2])
