"""Processes that are forked while sessions live: they go on with models of their own, and end."""

import os
import signal
import sys
import threading
import traceback

import fake_engine
import numpy as np
import pytest

import mega_deploy as md
from mega_deploy.errors import MegaDeployError
from mega_deploy.runtime.onnxruntime import splitting

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
FEATURES = 6


def in_child(work, leave=os._exit) -> int:
    """How a forked process ends that does some work: 0, 5 with a traceback, or a signal's number."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(5)
        leave(0)
    return os.waitpid(child, 0)[1]


@pytest.fixture(scope="module")
def both(model, tmp_path_factory):
    return md.export(model, tmp_path_factory.mktemp("forked") / "both.mega", form="both").path


@pytest.fixture
def windows():
    return np.random.default_rng(0).standard_normal((8, 8, FEATURES), np.float32)


def test_a_session_that_has_split_batches_answers_in_the_child_and_its_child(both, windows, monkeypatch):
    monkeypatch.setattr(splitting, "LEAST_WORK", 1)
    session = md.open_bundle(both).session(threads=2)
    want = session.run(windows)
    assert session._split._loaded

    def work():
        np.testing.assert_allclose(session.run(windows), want, atol=1e-6)
        assert session._split._loaded and in_child(lambda: session.run(windows)) == 0

    assert in_child(work) == 0
    np.testing.assert_allclose(session.run(windows), want, atol=1e-6)


@pytest.mark.parametrize("used", [True, False])
def test_a_child_ends_whether_or_not_it_has_used_what_it_inherits(both, windows, used):
    code = f"""
import os, signal, sys, numpy as np, mega_deploy as md
session = md.open_bundle({str(both)!r}).session(threads=2)
stream = md.open_bundle({str(both)!r}).stream(threads=2)
windows = np.ones((8, 8, 6), np.float32)
session.run(windows), stream.step(windows[:1, 0])
child = os.fork()
if child == 0:
    signal.alarm(60)
    if {used}:
        session.run(windows), stream.step(windows[:1, 0])
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


def test_streams_go_on_in_the_child_and_in_the_parent(both, windows):
    bundle = md.open_bundle(both)
    stream, reference = bundle.stream(8, threads=2), bundle.stream(8, threads=2)
    for one in (stream, reference):
        for step in range(3):
            one.step(windows[:, step])
        one.step(windows[[5, 2], 3], rows=[5, 2])
        one.prefill(windows[:, :2])
    want = reference.step(windows[[1, 7], 4], rows=[1, 7]), reference.prefill(windows)

    def work():
        np.testing.assert_allclose(stream.step(windows[[1, 7], 4], rows=[1, 7]), want[0], atol=1e-6)
        np.testing.assert_allclose(stream.prefill(windows), want[1], atol=1e-6)

    assert in_child(work) == 0
    work()


def test_a_lock_that_another_thread_holds_does_not_stay_locked_and_its_call_is_unfinished(both, windows):
    stream = md.open_bundle(both).stream(8, threads=1)
    for step in range(3):
        stream.step(windows[:, step])
    inside, go_on = threading.Event(), threading.Event()
    run = stream._step.run

    def slow(count, feeds):
        stream._step.changed = True
        inside.set()
        go_on.wait()
        return run(count, feeds)

    stream._step.run = slow
    worker = threading.Thread(target=lambda: stream.step(windows[[3], 3], rows=[3]))
    worker.start()
    inside.wait()

    def work():
        stream._step.run = run
        others = [row for row in range(8) if row != 3]
        stream.step(windows[others, 3], rows=others)
        with pytest.raises(md.InputError, match="stream 3 was in a call that did not end"):
            stream.step(windows[[3], 3], rows=[3])

    try:
        assert in_child(work) == 0
    finally:
        go_on.set()
        worker.join()


def test_an_engine_says_that_nothing_on_a_gpu_survives_a_fork(model, tmp_path, driver, monkeypatch, windows):
    path = md.export(model, tmp_path / "engine.mega", form="both").path
    md.build(path, target="tensorrt-rtx")
    bundle = md.open_bundle(path)
    fake_engine.install_all(monkeypatch, driver, bundle)
    session, stream = bundle.session("tensorrt-rtx"), bundle.stream(8, backend="tensorrt-rtx")
    session.run(windows), stream.step(windows[:, 0])

    def work():
        for call in (lambda: session.run(windows), lambda: stream.step(windows[:, 0]), lambda: stream.state):
            with pytest.raises(MegaDeployError, match="opened before the process was forked") as caught:
                call()
            assert "\n" not in str(caught.value)

    assert in_child(work) == 0
    session.run(windows), stream.step(windows[:, 0])
