"""The layer as TensorRT sees it: fields, types, formats, shapes, workspace and tactics, and what it refuses."""

import itertools

import pytest

FIELDS = {"kernel": "erf", "causal": 1, "mu": 0.25, "sigma": 0.5, "inputs": 2}
CHANNELS_LAST = 8  # TensorFormat::kHWC
CODES = {"float32": 0, "float16": 1, "bfloat16": 7}
GOOD, BAD = 0, -1


def shapes(batch=2, m=5, n=6, d=7, dv=9, **changed):
    """The shapes of q, k, v, bias and row_scale, some of them changed."""
    made = {"q": (batch, m, d), "k": (batch, n, d), "v": (batch, n, dv), "bias": (batch, m, n), "row_scale": (batch, m)}
    return [(shape,) for shape in (made | changed).values()]


@pytest.mark.parametrize("kernel", [b"l1", b"l1\0", b"erf", b"erf\0"])
def test_the_kernel_is_read_with_or_without_a_closing_zero(gpu, kernel):
    assert gpu("ask", "fields", kernel=kernel)[0]["kernel"] == kernel.strip(b"\0") + b"\0"


def test_a_layer_without_fields_has_the_ops_defaults(gpu):
    found, log = gpu("ask", "fields")
    assert found == {
        "kernel": b"l1\0",
        "causal": 0,
        "mu": pytest.approx(0.5**0.5),
        "sigma": pytest.approx((4 * 3.14159265358979) ** -0.5),
        "inputs": -1,
    }
    assert log == []


def test_what_is_serialised_creates_the_same_layer(gpu):
    first, _ = gpu("ask", "fields", **FIELDS)
    assert first == FIELDS | {"kernel": b"erf\0"}
    assert gpu("ask", "fields", **first) == (first, [])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kernel": "huh"}, 'the attribute kernel is "huh"; it must be "l1" or "erf"'),
        ({"kernel": "L1"}, 'it must be "l1" or "erf"'),
        ({"kernel": b"l1\0\0"}, 'it must be "l1" or "erf"'),
        ({"kernel": b""}, "the attribute kernel must be characters"),
        ({"kernel": 1}, "the attribute kernel must be characters"),
        ({"causal": 2}, "the attribute causal is 2; it must lie in 0..1"),
        ({"causal": -1}, "the attribute causal is -1; it must lie in 0..1"),
        ({"causal": 1.0}, "the attribute causal must be one int32"),
        ({"mu": float("nan")}, "the attribute mu must be finite"),
        ({"mu": 1}, "the attribute mu must be one float32"),
        ({"sigma": 0.0}, "the attribute sigma is 0; it must be above 0"),
        ({"sigma": -0.5}, "the attribute sigma is -0.5; it must be above 0"),
        ({"sigma": float("inf")}, "the attribute sigma must be finite"),
        ({"kernel": "erf", "inputs": 4}, "the attribute inputs is 4; it must lie in -1..3"),
        ({"kernel": "l1", "inputs": 1}, "bias and row_scale belong to the kernel erf"),
    ],
    ids=str,
)
def test_a_bad_field_is_refused_with_its_reason(gpu, fields, reason):
    made, log = gpu("ask", "exists", **fields)
    assert made is None
    assert len(log) == 1 and reason in log[0] and log[0].startswith("LaplaceAttention: ")


def test_a_field_of_more_than_one_value_is_refused(gpu):
    assert gpu("ask_with_length", "causal", 2)[0] is None


def test_an_unknown_field_is_ignored_with_a_warning_and_the_parsers_own_without(gpu):
    assert gpu("ask", "exists", plugin_version="1", plugin_namespace="mega.deploy") == (True, [])
    made, log = gpu("ask", "exists", flavour=3)
    assert made and log == ['LaplaceAttention: the attribute "flavour" is unknown and ignored']


@pytest.mark.parametrize("dtype", CODES)
def test_the_output_has_the_type_of_v(gpu, dtype):
    assert gpu("ask", "output_type", dtype, dtype, dtype)[0] == CODES[dtype]


def test_the_output_has_the_rows_of_q_and_the_columns_of_v(gpu):
    assert gpu("ask", "output_shape", 3, 3, 3)[0] == [0, 1, 22]  # input x 10 + axis


@pytest.mark.parametrize("ranks", [(2, 3, 3), (3, 3, 4)])
def test_q_and_v_of_other_ranks_have_no_output(gpu, ranks):
    shape, log = gpu("ask", "output_shape", *ranks)
    assert shape is None and "they must have three" in log[0]


@pytest.mark.parametrize("dtype", [*CODES, "int32"])
def test_tensors_of_one_floating_type_and_linear_layout_are_supported(gpu, dtype):
    wanted = dtype != "int32"
    tensors = [(shape, dtype) for (shape,) in shapes()]
    for position in range(6):
        given = [*tensors, ((2, 5, 9), dtype)]
        assert gpu("ask", "supports", position, *given, kernel="erf")[0] is (wanted or position > 0)
        given[position] = (given[position][0], "float32" if dtype != "float32" else "float16")
        assert gpu("ask", "supports", position, *given, kernel="erf")[0] is (position == 0)
        given[position] = (given[position][0], dtype, None, None, CHANNELS_LAST)
        assert gpu("ask", "supports", position, *given, kernel="erf")[0] is False


@pytest.mark.parametrize("position", [-1, 4])
def test_a_tensor_that_is_not_there_is_not_supported(gpu, position):
    assert gpu("ask", "supports", position, *shapes()[:3], ((2, 5, 9),))[0] is False


@pytest.mark.parametrize(
    ("number", "fields", "good"),
    [
        *[(number, {"kernel": "erf"}, number in (3, 4, 5)) for number in (1, 2, 3, 4, 5)],
        *[(number, {"kernel": "l1"}, number == 3) for number in (2, 3, 4, 5)],
        *[
            (number, {"kernel": "erf", "inputs": inputs}, number == 3 + (inputs & 1) + (inputs >> 1))
            for number, inputs in itertools.product((3, 4, 5), range(4))
            if (number, inputs) != (4, 2)  # row_scale alone has other axes, see below
        ],
    ],
)
def test_the_number_of_inputs_fits_the_fields(gpu, number, fields, good):
    code, log = gpu("ask", "configure", *shapes()[:number], **fields)
    assert (code, log == []) == (GOOD if good else BAD, good)


def test_row_scale_comes_without_bias_where_the_field_says_so(gpu):
    given = [*shapes()[:3], shapes()[4]]
    assert gpu("ask", "configure", *given, kernel="erf", inputs=2) == (GOOD, [])
    code, log = gpu("ask", "configure", *given, kernel="erf")
    assert code == BAD and "bias is [2, 5]; it must have 3 axes" in log[0]


CONTRADICTIONS = [
    ({"q": (2, 5)}, "q is [2, 5]; it must have 3 axes"),
    ({"k": (3, 6, 7)}, "k is [3, 6, 7]; its axis 0 must be the batch of q, 2"),
    ({"k": (2, 6, 8)}, "k is [2, 6, 8]; its axis 2 must be the channels of q, 7"),
    ({"v": (2, 5, 9)}, "v is [2, 5, 9]; its axis 1 must be the rows of k, 6"),
    ({"v": (1, 6, 9)}, "v is [1, 6, 9]; its axis 0 must be the batch of q, 2"),
    ({"bias": (3, 5, 6)}, "bias is [3, 5, 6]; its axis 0 must be the batch or 1, 2"),
    ({"bias": (2, 6, 6)}, "its axis 1 must be the rows of q, 5"),
    ({"bias": (1, 5, 5)}, "its axis 2 must be the rows of k, 6"),
    ({"row_scale": (2, 6)}, "row_scale is [2, 6]; its axis 1 must be the rows of q, 5"),
    ({"row_scale": (4, 5)}, "its axis 0 must be the batch or 1, 2"),
    ({"row_scale": (2, 5, 1)}, "row_scale is [2, 5, 1]; it must have 2 axes"),
]


@pytest.mark.parametrize("question", ["configure", "on_shape_change"])
@pytest.mark.parametrize(("changed", "reason"), CONTRADICTIONS, ids=str)
def test_shapes_that_contradict_each_other_are_refused(gpu, changed, reason, question):
    code, log = gpu("ask", question, *shapes(**changed), kernel="erf")
    assert code == BAD and len(log) == 1 and reason in log[0]


@pytest.mark.parametrize(
    "changed", [{}, {"bias": (1, 5, 6)}, {"row_scale": (1, 5)}, {"bias": (1, 5, 6), "q": (2, 5, 7)}]
)
def test_shapes_that_agree_are_taken_without_a_gpu(gpu, changed):
    for question in ("configure", "on_shape_change"):
        assert gpu("ask", question, *shapes(**changed), kernel="erf") == (GOOD, [])


def test_sizes_that_are_not_known_yet_contradict_nothing(gpu):
    unknown = {"q": (-1, -1, 7), "k": (-1, -1, -1), "v": (-1, 6, 9), "bias": (-1, 5, -1), "row_scale": (-1, -1)}
    assert gpu("ask", "configure", *shapes(**unknown), kernel="erf") == (GOOD, [])
    code, log = gpu("ask", "configure", *shapes(**unknown | {"bias": (2, 5, 4)}), kernel="erf")
    assert code == BAD and "rows of k, 6" in log[0]


def test_an_integer_type_is_refused_at_the_latest_when_the_shapes_are_known(gpu):
    code, log = gpu("ask", "on_shape_change", *((shape, "int32") for (shape,) in shapes()[:3]))
    assert code == BAD and "float32, float16 or bfloat16" in log[0]


def test_the_tactics_are_two(gpu):
    assert gpu("ask", "tactics")[0] == [1, 2]
    assert [gpu("ask", "set_tactic", tactic)[0] for tactic in (0, 1, 2)] == [GOOD] * 3
    code, log = gpu("ask", "set_tactic", 3)
    assert code == BAD and "tactic 3 is none of 1" in log[0]


def test_timings_are_shared_by_layers_that_do_the_same_work_alone(gpu):
    named = lambda **fields: gpu("ask", "timing_cache_id", **fields)[0]  # noqa: E731
    assert named(kernel="erf", mu=0.5) == named(kernel="erf", sigma=2.0)
    different = [{}, {"kernel": "erf"}, {"causal": 1}, {"kernel": "erf", "causal": 1}, {"kernel": "erf", "inputs": 1}]
    assert len({named(**fields) for fields in different}) == len(different)


def up(size, multiple):
    return -(-size // multiple) * multiple


@pytest.mark.parametrize("dtype", CODES)
def test_the_workspace_of_l1_holds_packed_inputs_and_weights(gpu, dtype):
    """Bytes of the largest blocks, 64 x 64: qt, kt, the padded v, and w."""
    element = 4 if dtype == "float32" else 2
    given = [(shape, dtype) for shape in ((3, 70, 20), (3, 90, 20), (3, 90, 33))]
    buffers = [3 * 20 * 128 * 4, 3 * 20 * 128 * 4, 3 * 90 * 48 * element, 3 * 90 * 128 * element]
    assert gpu("ask", "workspace", *given)[0] == sum(up(size, 256) for size in buffers)


def test_fused_erf_of_whole_rows_needs_no_workspace(gpu):
    given = [(shape, "float16") for shape in ((3, 70, 32), (3, 90, 32), (3, 90, 64))]
    assert gpu("ask", "workspace", *given, kernel="erf")[0] == 0


@pytest.mark.parametrize("kernel", ["l1", "erf"])
@pytest.mark.parametrize("dtype", CODES)
def test_the_workspace_of_a_range_holds_every_shape_in_it(gpu, dtype, kernel):
    ranged = []
    for least, most in (((1, 1, 1), (3, 70, 32)), ((1, 1, 1), (3, 80, 32)), ((1, 1, 1), (3, 80, 48))):
        ranged.append(((-1, -1, -1), dtype, least, most))
    whole = gpu("ask", "workspace", *ranged, kernel=kernel)[0]
    for batch, m, n, d, dv in itertools.product((1, 3), (1, 16, 65, 70), (1, 64, 79, 80), (1, 31, 32), (1, 47, 48)):
        given = [(shape, dtype) for shape in ((batch, m, d), (batch, n, d), (batch, n, dv))]
        assert gpu("ask", "workspace", *given, kernel=kernel)[0] <= whole


def test_bounds_that_differ_where_sizes_must_agree_are_no_contradiction(gpu):
    """A profile may let the batch of q range further than that of k."""
    ranged = [((-1, -1, 8), "float32", (1, 1, 8), (most, 64, 8)) for most in (4, 2, 3)]
    assert gpu("ask", "configure", *ranged) == (GOOD, [])
    size, log = gpu("ask", "workspace", *ranged)
    assert log == [] and size >= gpu("ask", "workspace", *[((2, 64, 8),)] * 3)[0] > 0


HUGE = 2**31


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (shapes(batch=1, m=HUGE, n=1)[:3], "a size"),
        (shapes(batch=70000, m=20000, n=20000)[:3], "the number of blocks"),
        (shapes(batch=1, m=1, n=2**26, d=64)[:3], "a matrix of queries or keys"),
        (shapes(batch=2**16, m=1, n=2**16, d=1, dv=1)[:3], "the rows of all batches"),
    ],
    ids=["size", "grid", "matrix", "rows"],
)
def test_sizes_beyond_the_kernels_counting_are_refused(gpu, given, what):
    for question in ("configure", "enqueue_sizes"):
        code, log = gpu("ask", question, *given)
        assert code == BAD and len(log) == 1 and f"{what} is beyond 2^31 - 1" in log[0]
