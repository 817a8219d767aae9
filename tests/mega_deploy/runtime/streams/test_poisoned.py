"""Inputs that overflow: an error that names output, rows and remedy, and a stream that is not stepped on in silence."""

import subprocess
import sys

import numpy as np
import pytest

import mega_deploy as md
from mega_deploy.errors import InputError, NonFiniteError
from mega_deploy.runtime.finite import all_finite, bad_rows

FEATURES, HUGE = 6, np.float32(3e38)


@pytest.fixture(scope="module")
def both(model, tmp_path_factory):
    return md.export(model, tmp_path_factory.mktemp("poisoned") / "both.mega", form="both").path


def test_a_stream_that_overflows_says_so_and_rests_until_it_is_reset(both):
    bundle = md.open_bundle(both)
    stream, alone = bundle.stream(3), bundle.stream(3)
    frames = np.random.default_rng(0).standard_normal((3, FEATURES), np.float32)
    spoilt = frames.copy()
    spoilt[1] = HUGE
    with pytest.raises(NonFiniteError, match=r'output "features" is NaN or infinite in stream 1: reset') as caught:
        stream.step(spoilt)
    want = alone.step(frames)
    assert caught.value.rows == (1,) and caught.value.exit_code == 3
    np.testing.assert_allclose(caught.value.outputs["features"][[0, 2]], want[[0, 2]], atol=1e-6)
    for call in (lambda: stream.step(frames), lambda: stream.prefill(frames[:1, None], [1]), lambda: stream.state):
        with pytest.raises(InputError, match="stream 1 gave outputs that are NaN or infinite; reset it"):
            call()
    np.testing.assert_allclose(
        stream.step(frames[[0, 2]], rows=[0, 2]), alone.step(frames[[0, 2]], rows=[0, 2]), atol=1e-6
    )
    stream.reset([1])
    alone.reset([1])
    np.testing.assert_allclose(stream.step(frames), alone.step(frames), atol=1e-6)


def test_streams_are_named_as_the_caller_counts_them_and_prefill_tells_too(both):
    stream = md.open_bundle(both).stream(4)
    frames = np.zeros((2, 5, FEATURES), np.float32)
    frames[0, 2] = HUGE
    with pytest.raises(NonFiniteError, match="in stream 3: reset"):
        stream.prefill(frames, rows=[3, 1])
    stream.step(frames[1:, 0], rows=[1])
    with pytest.raises(InputError, match="stream 3 gave"):
        stream.step(frames[:1, 0], rows=[3])


def test_who_wants_such_outputs_takes_them(both):
    bundle, frame = md.open_bundle(both), np.full((1, FEATURES), HUGE)
    stream = bundle.stream(check_outputs=False)
    assert np.isnan(stream.step(frame)).any() and np.isnan(stream.prefill(frame[:, None])).any()
    window = np.full((2, 8, FEATURES), HUGE)
    window[0] = 0
    with pytest.raises(NonFiniteError, match=r'"features" is NaN or infinite in row 1: scale.*check_outputs=False'):
        bundle.session().run(window)
    assert np.isnan(bundle.session(check_outputs=False).run(window)[1]).any()


@pytest.mark.parametrize(("form", "shape"), [("window", (1, 8, FEATURES)), ("stream", (1, 3, FEATURES))])
def test_run_ends_with_3_and_writes_nothing(both, form, shape, tmp_path):
    np.save(tmp_path / "in.npy", np.full(shape, HUGE))
    command = [sys.executable, "-m", "mega_deploy", "run", str(both), "in.npy", "-o", "out.npy", "--form", form]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 3 and "NaN or infinite" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out.npy").exists()
    subprocess.run([*command, "--no-check-outputs"], cwd=tmp_path, check=True, capture_output=True)
    assert np.isnan(np.load(tmp_path / "out.npy")).any()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("size", [1, 7, 64, 20_000])
@pytest.mark.filterwarnings("error")
def test_no_number_escapes_the_check_and_large_ones_pass_it(dtype, size):
    array = np.full((1, size), np.finfo(dtype).max, dtype)
    array[0, ::2] *= -1
    assert all_finite(array) and all_finite(np.zeros((0, 3), dtype)) and all_finite(array[:, ::-1])
    for bad in (np.nan, np.inf, -np.inf):
        for place in {0, size // 2, size - 1}:
            spoilt = array.copy()
            spoilt[0, place] = bad
            assert not all_finite(spoilt) and bad_rows(spoilt).tolist() == [0]
    assert all_finite(np.arange(3)) and all_finite(np.array([True]))
