"""What a session takes, and how it says no."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import mega_deploy as md
from mega_deploy.errors import BundleError, InputError, OptionError
from mega_deploy.signature import Range


@pytest.fixture(scope="module")
def session(pristine):
    return md.open_bundle(pristine).session(threads=1)


def test_a_session_gives_what_the_trained_model_gives(session, model, frames):
    import torch

    want = model(torch.from_numpy(frames)).detach().numpy()
    np.testing.assert_allclose(session.run(frames), want, atol=5e-6)
    assert session.run_named({"frames": frames})["features"].shape == (3, 16)
    assert session.backend == "onnxruntime" and session.providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize(
    "convert", [lambda x: x.astype(np.float64), np.asfortranarray, lambda x: x.astype(">f4"), np.ndarray.tolist]
)
def test_other_forms_of_the_same_numbers_are_converted(session, frames, convert):
    assert np.array_equal(session.run(convert(frames)), session.run(frames))


def test_whole_numbers_are_taken(session):
    assert np.array_equal(session.run(np.ones((1, 8, 6), np.int32)), session.run(np.ones((1, 8, 6), np.float32)))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (np.zeros((1, 8, 5), np.float32), ["embed_dim 5", "6", 'input "frames", axis 2']),
        (np.zeros((1, 9, 6), np.float32), ["seq_len 9", "8", "axis 1"]),
        (np.zeros((65, 8, 6), np.float32), ["batch 65", "1..64", "axis 0", "--batch-range 1:1:65"]),
        (np.zeros((0, 8, 6), np.float32), ["batch 0", "1..64"]),
        (np.zeros((8, 6), np.float32), ["2 axes", "batch 1..64, seq_len 8, embed_dim 6"]),
        (np.zeros((1, 8, 6), np.complex64), ["complex64", "float32"]),
        (np.zeros((1, 8, 6), bool), ["bool"]),
        (np.full((1, 8, 6), "x"), ["<U1"]),
        ({"framez": np.zeros((1, 8, 6))}, ["framez", "frames"]),
        ({}, ["frames", "missing"]),
        ([[1.0], [2.0, 3.0]], ["frames", "no array"]),
    ],
)
def test_an_input_that_does_not_fit_is_refused_in_so_many_words(session, inputs, words):
    with pytest.raises(InputError) as caught:
        session.run(inputs)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused_with_its_place(session, frames, value):
    frames[1, 4, 2] = value
    with pytest.raises(InputError, match=r"1 NaN or infinite values, the first at \[1, 4, 2\]"):
        session.run(frames)


@pytest.mark.filterwarnings("error")
def test_large_numbers_are_not_taken_for_infinite(pristine):
    session = md.open_bundle(pristine).session(threads=1, check_outputs=False)
    large = np.full((1, 8, 6), 3e38, np.float32) * np.sign(np.arange(6) - 2.5).astype(np.float32)
    assert session.run(large).shape == (1, 16)


def test_a_session_serves_many_threads(session):
    batches = np.random.default_rng(1).standard_normal((40, 2, 8, 6), dtype=np.float32)
    want = [session.run(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(got, one) for got, one in zip(pool.map(session.run, batches), want, strict=True))


def test_every_batch_of_the_range_gives_the_same_rows(session):
    windows = np.random.default_rng(2).standard_normal((64, 8, 6), dtype=np.float32)
    whole = session.run(windows)
    for size in (1, 2, 63):
        np.testing.assert_allclose(session.run(windows[:size]), whole[:size], atol=2e-6)


@pytest.mark.parametrize(
    "options",
    [{"threads": 0}, {"threads": 1.5}, {"threads": True}, {"threads": 10**6}, {"spinning": "no"}, {"config": {"a": 1}}],
)
def test_an_impossible_option_is_refused(pristine, options):
    with pytest.raises(OptionError):
        md.open_bundle(pristine).session(**options)


def test_an_unknown_backend_is_refused_with_the_known_ones(pristine):
    with pytest.raises(OptionError, match=r"abacus.*onnxruntime"):
        md.open_bundle(pristine).session("abacus")


def test_configuration_reaches_onnxruntime(pristine, frames):
    opened = md.open_bundle(pristine)
    session = opened.session(spinning=False, memory_arena=False, config={"session.set_denormal_as_zero": "1"})
    assert session.run(frames).shape == (3, 16)
    with pytest.raises(BundleError, match="onnxruntime"):
        opened.session(config={"k" * 5000: "1"})


@pytest.mark.parametrize("text", ["", "1:2", "a:b:c", "2:1:3", "0:1:2", "1:2:99999999"])
def test_an_impossible_range_is_refused(text):
    with pytest.raises(OptionError, match="range"):
        Range.parse(text)


@pytest.mark.parametrize(
    ("change", "frames"),
    [
        ({"dtype": "int64"}, np.zeros((1, 8, 6), np.int64)),
        ({"dtype": "float64"}, np.zeros((1, 8, 6))),
        ({"dims": [1, 9, 6]}, np.zeros((1, 9, 6), np.float32)),
        ({"dims": [4], "axes": []}, np.zeros(4, np.float32)),
    ],
    ids=["dtype", "precision", "length", "rank"],
)
def test_a_signature_that_contradicts_the_model_is_refused(bundle, change, frames):
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["signature"]["inputs"][0] |= change
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    opened = md.open_bundle(bundle)
    with pytest.raises(BundleError, match="frames"):
        opened.session().run(frames)


def test_half_precision_and_strided_inputs_are_converted(session, frames):
    half = frames.astype(np.float16)
    assert np.array_equal(session.run(half), session.run(half.astype(np.float32)))
    assert np.array_equal(session.run(np.repeat(frames, 2, 0)[::2]), session.run(frames))


def test_a_double_beyond_float32_is_refused_as_infinite(session):
    with pytest.raises(InputError, match=r'input "frames" holds 48 NaN or infinite values'):
        session.run(np.full((1, 8, 6), 1e300))


def test_a_run_leaves_its_input_as_it_was(session, frames):
    before = frames.copy()
    session.run(frames)
    assert np.array_equal(frames, before)
