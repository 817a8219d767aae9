"""Batches in parts: which are split, and that it changes nothing but the time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import mega_deploy as md
from mega_deploy.runtime.onnxruntime import splitting
from mega_deploy.runtime.onnxruntime.splitting import LEAST_WORK, Split


class Model:
    """Stands for onnxruntime's session: writes down the parts that it is given."""

    def __init__(self):
        self.parts, self.threads = [], set()

    def run(self, outputs, feeds):
        self.parts.append(len(feeds["x"]))
        self.threads.add(threading.get_ident())
        return [feeds["x"] * 2, feeds["x"] + feeds["y"]]


def batch(size):
    x = np.arange(size * 3.0).reshape(size, 3)
    return {"x": x, "y": x[:, :1]}


@pytest.mark.parametrize(
    ("threads", "size", "parts"),
    [
        (2, 8, [4, 4]),
        (2, 9, [4, 5]),
        (3, 8, [2, 3, 3]),
        (2, 3, None),  # one thread would wait for the other half of the time
        (8, 9, None),
        (4, 3, None),
        (2, 1, None),
    ],
)
def test_a_batch_is_split_into_one_even_part_for_each_thread(threads, size, parts):
    model = Model()
    feeds = batch(size)
    got = Split(lambda: model, threads, LEAST_WORK).run(["double", "sum"], feeds)
    if parts is None:
        assert got is None and model.parts == []
    else:
        assert sorted(model.parts) == parts
        np.testing.assert_array_equal(got[0], feeds["x"] * 2)
        np.testing.assert_array_equal(got[1], feeds["x"] + feeds["y"])


def test_a_batch_of_little_work_stays_whole():
    model = Model()
    split = Split(lambda: model, 2, LEAST_WORK // 4)
    assert split.run(["double", "sum"], batch(6)) is None
    assert split.run(["double", "sum"], batch(8)) is not None and model.parts == [4, 4]


def test_the_model_is_loaded_once_when_it_is_needed_and_calls_may_come_from_many_threads():
    model, loads = Model(), []
    split = Split(lambda: loads.append(1) or model, 2, LEAST_WORK)
    assert split.run(["double", "sum"], batch(1)) is None and loads == []
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda size: split.run(["double", "sum"], batch(size)), [2, 4, 8, 16] * 5))
    assert loads == [1]
    for size, got in zip([2, 4, 8, 16] * 5, results, strict=True):
        np.testing.assert_array_equal(got[0], batch(size)["x"] * 2)


def test_what_goes_wrong_in_a_part_goes_wrong_in_the_call():
    def run(outputs, feeds):
        if feeds["x"][0, 0] > 0:  # the second part
            raise ValueError("out of memory")
        return [feeds["x"]]

    model = Model()
    model.run = run
    with pytest.raises(ValueError, match="out of memory"):
        Split(lambda: model, 2, LEAST_WORK).run(["double"], batch(2))


@pytest.fixture
def eager(monkeypatch):
    """Splits even small models; the list of batches that were split."""
    monkeypatch.setattr(splitting, "LEAST_WORK", 1)
    seen, run = [], Split.run

    def recorded(self, outputs, feeds):
        results = run(self, outputs, feeds)
        if results is not None:
            seen.append(len(next(iter(feeds.values()))))
        return results

    monkeypatch.setattr(Split, "run", recorded)
    return seen


def test_a_session_gives_the_same_rows_split_or_whole(pristine, eager):
    bundle = md.open_bundle(pristine)
    frames = np.random.default_rng(0).standard_normal((9, 8, 6), np.float32)
    whole = bundle.session(threads=2, split_batches=False).run(frames)
    assert eager == []
    np.testing.assert_allclose(bundle.session(threads=2).run(frames), whole, atol=1e-6)
    assert eager == [9]
    bundle.session(threads=1).run(frames)
    assert eager == [9]


def test_a_session_never_mixes_in_a_model_that_took_its_files_place(bundle, eager):
    session = md.open_bundle(bundle).session(threads=2)
    frames = np.zeros((8, 8, 6), np.float32)
    want = session._session.run(None, {"frames": frames})[0]
    other = bundle / "other.onnx"
    raw = bytearray((bundle / "model.onnx").read_bytes())
    raw[len(raw) // 2] ^= 1  # a weight
    other.write_bytes(raw)
    other.replace(bundle / "model.onnx")
    np.testing.assert_array_equal(session.run(frames), want)
    assert eager == []


@pytest.mark.parametrize("threads", [2, 5, 8, 16])
def test_no_part_of_a_batch_is_empty(threads):
    model = Model()
    split = Split(lambda: model, threads, LEAST_WORK)
    found = [split.run(["a", "b"], batch(size)) for size in range(1, 3 * threads)]
    assert found[threads - 1] is not None and min(model.parts) >= 1
