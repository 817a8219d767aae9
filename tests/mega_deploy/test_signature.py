"""Several inputs: what may be left out, what belongs together, and which values there are."""

import json

import numpy as np
import pytest

from mega_deploy.errors import InputError
from mega_deploy.signature import Range, Signature, TensorSpec

BATCH, STEPS = Range(1, 2, 8), Range(1, 4, 16)
TOKENS = TensorSpec("input_ids", "int64", (BATCH, STEPS), ("batch", "seq_len"), values=(0, 9))
MASK = TensorSpec("attention_mask", "int64", (BATCH, STEPS), ("batch", "seq_len"), default=1)
LENGTHS = TensorSpec("src_lengths", "int64", (BATCH,), ("batch",), values=(1, 16))
SIGNATURE = Signature((TOKENS, MASK), (TensorSpec("logits", "float32", (BATCH, 3), ("batch", "labels")),))
IDS = np.arange(6).reshape(2, 3)


def test_what_is_left_out_is_filled_in_its_shape_and_type():
    for given in (IDS, {"input_ids": IDS.astype(np.int32)}):
        feeds = SIGNATURE.feeds(given)
        assert list(feeds) == ["input_ids", "attention_mask"]
        assert np.array_equal(feeds["attention_mask"], np.ones((2, 3))) and feeds["attention_mask"].dtype == np.int64
        assert np.array_equal(feeds["input_ids"], IDS) and feeds["input_ids"].dtype == np.int64
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    assert np.array_equal(SIGNATURE.feeds({"input_ids": IDS, "attention_mask": mask})["attention_mask"], mask)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int32", "uint64"])
def test_whole_numbers_of_every_type_are_taken_alike(dtype):
    ids = SIGNATURE.feeds(IDS.astype(dtype))["input_ids"]
    assert ids.dtype == np.int64 and np.array_equal(ids, IDS)


def test_a_whole_number_beyond_the_type_is_refused_before_it_wraps():
    beyond = np.full((2, 3), 2**63, np.uint64)
    with pytest.raises(InputError, match=r'"attention_mask" holds 9223372036854775808 at \[0, 0\]'):
        SIGNATURE.feeds({"input_ids": IDS, "attention_mask": beyond})
    small = TensorSpec("count", "uint8", (BATCH,), ("batch",))
    with pytest.raises(InputError, match=r'"count" holds -1 at \[1\]; its values go from 0 to 255'):
        small.check(np.array([3, -1]))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"attention_mask": np.ones((2, 3), int)}, ["input_ids", "missing"]),
        ({"input_ids": IDS + 5}, ['"input_ids" holds 10 at [1, 2]', "0 to 9"]),
        ({"input_ids": IDS - 1}, ['"input_ids" holds -1 at [0, 0]']),
        ({"input_ids": IDS / 2}, ["int64", "float64", "astype"]),
        ({"input_ids": IDS, "attention_mask": np.ones((1, 3), int)}, ["batch is 2", "1 in", "attention_mask"]),
        ({"input_ids": IDS, "attention_mask": np.ones((2, 4), int)}, ["seq_len is 3", "4 in"]),
        ({"input_ids": np.zeros((2, 17), int)}, ["seq_len 17", "1..16", "--seq-range 1:4:17"]),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_so_many_words(inputs, words):
    with pytest.raises(InputError) as caught:
        SIGNATURE.feeds(inputs)
    assert [word for word in words if word not in str(caught.value)] == []


def test_one_array_does_for_one_input_that_must_be_there_and_for_no_more():
    with pytest.raises(InputError, match=r"2 inputs .*pass a dict"):
        Signature((TOKENS, LENGTHS), SIGNATURE.outputs).feeds(IDS)


def test_a_signature_survives_the_manifest():
    assert Signature.from_json(json.loads(json.dumps(SIGNATURE.to_json()))) == SIGNATURE
    assert SIGNATURE.dim("src_len", "seq_len") == STEPS


@pytest.mark.parametrize("axes", [[], ["batch", "elsewhere"]])
def test_a_default_that_nothing_gives_a_size_is_refused(axes):
    value = SIGNATURE.to_json()
    value["inputs"][1]["axes"] = axes
    with pytest.raises(InputError, match="attention_mask"):
        Signature.from_json(value)


def test_half_precision_changes_real_numbers_alone():
    lowered = SIGNATURE.in_float16()
    assert [spec.dtype for spec in (*lowered.inputs, *lowered.outputs)] == ["int64", "int64", "float16"]
