"""Blocks, run in onnxruntime as they are exported, against the recurrence in float64."""

import json
import re
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import onnx
import onnxruntime
import pytest
from averages import averages, model, recurrence, slow
from hypothesis import given, settings
from onnxscript import ir

from mega_deploy.exporters import save_graph
from mega_deploy.exporters.ema import segments
from mega_deploy.exporters.ema.blocks import lower_to_blocks
from mega_deploy.exporters.ema.kernel import FLOAT32_HALF_ULP, DecaySum, MovingAverage
from mega_deploy.exporters.ema.lowering import best_block
from mega_deploy.exporters.flops import graph_flops
from mega_deploy.signature import Signature, TensorSpec


def run(made: ir.Model, x: np.ndarray) -> np.ndarray:
    """x: [batch, channels, seq_len]; so is the result."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # In a graph of float64 too it takes constants that are equal in float32 for one constant, and leaves out a product
    # with a decay that is 1 in float32.
    session = onnxruntime.InferenceSession(
        ir.to_proto(made).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["ConstantSharing", "NoopElimination"],
    )
    return session.run(None, {"x": np.ascontiguousarray(x.transpose(0, 2, 1))})[0].transpose(0, 2, 1)


@settings(max_examples=100, deadline=None)
@given(averages(longest=200), st.integers(1, 20), st.one_of(st.just(0), st.integers(1, 400)))
def test_uncut_blocks_are_the_recurrence_in_windows_of_one_length_and_of_a_range(case, block, more):
    ema, x = case
    longest = x.shape[-1] + more
    lowered = lower_to_blocks(ema, longest, block, cut=0.0)
    got = run(model(lowered, longest, dynamic=bool(more)), x)
    scale = sum(np.abs(side.weight).sum() for side in ema.sides) * x.shape[-1] * np.abs(x).max()
    assert lowered.bound == 0.0
    assert np.abs(got - recurrence(ema, x)).max() <= 1e-14 * scale


@settings(max_examples=20, deadline=None)
@given(averages(longest=200), st.integers(1, 3), st.integers(1, 100))
def test_a_window_in_segments_is_the_recurrence(case, block, values):
    ema, x = case
    length = x.shape[-1]
    lowered = lower_to_blocks(ema, length, block, cut=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "VALUES", values)
        got = run(model(lowered, length), x)
    scale = sum(np.abs(side.weight).sum() for side in ema.sides) * length * np.abs(x).max()
    assert np.abs(got - recurrence(ema, x)).max() <= 1e-14 * scale


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("both", [False, True], ids=["past", "both"])
def test_segments_hold_where_a_host_fixes_the_batch(both, batch, monkeypatch):
    monkeypatch.setattr(segments, "VALUES", 1)
    length, ema = 1100, slow(4, 2, both=both)
    made = model(lower_to_blocks(ema, length, 16), length, dtype=ir.DataType.FLOAT)
    options = onnxruntime.SessionOptions()
    options.add_free_dimension_override_by_name("batch", batch)  # onnxruntime then folds what puts them in order
    session = onnxruntime.InferenceSession(ir.to_proto(made).SerializeToString(), options)
    x = np.random.default_rng(0).standard_normal((batch, length, 4), np.float32)
    (got,) = session.run(None, {"x": x})
    want = recurrence(ema, x.transpose(0, 2, 1).astype(np.float64)).transpose(0, 2, 1)
    assert np.linalg.norm(got - want) <= 1e-6 * np.linalg.norm(want)


@pytest.mark.parametrize("both", [False, True], ids=["past", "both"])
def test_each_segment_is_done_before_the_next_is_begun(tmp_path, both, monkeypatch):
    monkeypatch.setattr(segments, "VALUES", 1)
    length, block = 1100, 16
    lowered = lower_to_blocks(slow(4, 2, both=both), length, block)
    frames = segments.segment_frames(lowered, length)
    assert frames == segments.GROUP * block
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    proto = ir.to_proto(model(lowered, length, dtype=ir.DataType.FLOAT)).SerializeToString()
    session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.zeros((1, length, 4), np.float32)})
    ran = [event["name"] for event in json.loads(Path(session.end_profiling()).read_text()) if event["cat"] == "Node"]
    order = [re.match(r"from\.(\d+)/Add_node_\d+_kernel_time", name) for name in ran]
    starts = [int(found[1]) for found in order if found]
    assert starts == sorted(starts) and set(starts) == set(range(0, length, frames))
    splits = [name for name in ran if "GatherSliceToSplit" in name]
    assert not splits  # which would cut out all segments first


@settings(max_examples=60, deadline=None)
@given(averages(longest=150), st.integers(1, 20), st.sampled_from([FLOAT32_HALF_ULP, 1e-3]), st.integers(1, 150))
def test_the_bound_holds_for_every_shorter_window_too(case, block, cut, frames):
    ema, x = case
    length = x.shape[-1]
    lowered = lower_to_blocks(ema, length, block, cut)
    norms = sum(np.abs(ema.taps(side, length)).sum(1) for side in ema.sides)
    x = x[..., :frames]
    scale = sum(np.abs(side.weight).sum() for side in ema.sides) * length * np.abs(x).max()
    allowed = lowered.bound * norms * np.abs(x).max() + 1e-14 * scale
    got = run(model(lowered, length, dynamic=True), x)
    assert lowered.bound <= cut
    assert (np.abs(got - recurrence(ema, x)).max((0, 2)) <= allowed).all()


@pytest.mark.parametrize("truncation", [None, 2048, 1000])
@pytest.mark.parametrize("both", [False, True], ids=["past", "both"])
@pytest.mark.parametrize("signal", ["noise", "constant"])
@pytest.mark.parametrize("values", [segments.VALUES, 8 * 2048], ids=["whole", "segments"])
def test_slow_decays_lose_nothing_over_16384_frames(both, truncation, signal, values, monkeypatch):
    monkeypatch.setattr(segments, "VALUES", values)
    ema, length = slow(8, 16, both=both, truncation=truncation), 16384
    x = np.random.default_rng(1).standard_normal((1, 8, length)) if signal == "noise" else np.ones((1, 8, length))
    x = x.astype(np.float32)
    lowered = lower_to_blocks(ema, length, best_block(ema, length))
    got = run(model(lowered, length, dtype=ir.DataType.FLOAT), x)
    want = recurrence(ema, x.astype(np.float64))
    assert np.linalg.norm(got - want) <= 1e-6 * np.linalg.norm(want)


@pytest.mark.parametrize("truncation", [None, 1000, 1024])
@pytest.mark.parametrize("both", [False, True], ids=["past", "both"])
def test_multiply_adds_grow_with_the_length_and_no_faster(tmp_path, both, truncation):
    ema, work = slow(4, 16, both=both, truncation=truncation), []
    for length in (2048, 8192, 16384):
        lowered = lower_to_blocks(ema, length, best_block(ema, length))
        proto = save_graph.save(model(lowered, length, dtype=ir.DataType.FLOAT), tmp_path / "model.onnx")
        shapes = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
        sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in shapes.value_info}
        carried = sum(np.prod(sizes[node.output[0]][1:]) for node in proto.graph.node if node.op_type in ("Mul", "Add"))
        given = TensorSpec("x", "float32", (1, length, 4), ("batch", "seq_len", "channels"))
        work.append((graph_flops(tmp_path / "model.onnx", Signature((given,), ())) + carried) / length)
    assert work[1] <= 1.05 * work[0] and work[2] <= 1.05 * work[1]


def test_nothing_is_carried_farther_than_the_kernels_reach():
    side = DecaySum(np.ones((1, 1)), np.full((1, 1), 0.9))  # 158 taps: five blocks of 32 behind, two of 128

    def spans(length, block, **more):
        lowered = lower_to_blocks(MovingAverage(side, **more), length, block)
        return [part.span for part in lowered.sides], [edge.lag for edge in lowered.edges], lowered.reach

    assert [spans(length, 32) for length in (32, 64, 160, 4096)] == [
        ([], [], 32),
        ([1], [], 64),
        ([4], [], 160),
        ([None], [], 4096),
    ]
    assert spans(4096, 128) == ([2], [], 257)
    assert spans(4096, 32, truncation=2048) == ([None], [], 4096)  # nothing is left there to be cut
    assert spans(4096, 32, truncation=96) == ([3], [3], 4096)
    assert spans(4096, 32, truncation=100, future=side) == ([3, 3], [3, 4, -3, -4], 4096)


def test_no_constant_is_subnormal():
    side = DecaySum(np.ones((2, 3)), np.array([[0.01, 0.5, 0.9], [0.1, 0.3, 0.7]]))
    made = model(lower_to_blocks(MovingAverage(side, side), 4096, 32, cut=0.0), 4096, dtype=ir.DataType.FLOAT)
    for value in made.graph.initializers.values():
        array = np.abs(value.const_value.numpy())
        assert not ((array > 0) & (array < np.finfo(np.float32).tiny)).any(), value.name
