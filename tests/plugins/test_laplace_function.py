"""The ONNX function of LaplaceAttention against the plain reference."""

import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from laplace_models import arrays, op_model
from onnx.reference import ReferenceEvaluator
from onnxscript import ir

from mega_deploy.plugins.laplace import function as laplace_function
from mega_deploy.plugins.laplace.reference import laplace_attention as reference

FLOAT32_RATIO, FLOAT64_RATIO = 2e-6, 1e-13


@settings(max_examples=60, deadline=None)
@given(
    *(st.integers(1, 9) for _ in range(3)),
    st.integers(1, 20),
    st.integers(1, 6),
    st.sampled_from([1, 40, 1 << 21]),
    st.booleans(),
    st.booleans(),
)
def test_the_l1_function_is_the_reference_for_any_sizes_and_pieces(batch, m, n, d, dv, elements, causal, double):
    dtype = ir.DataType.DOUBLE if double else ir.DataType.FLOAT
    feeds = arrays(batch, m, n, d, dv, dtype=dtype.numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laplace_function, "PIECE_ELEMENTS", elements)
        patch.setattr(laplace_function, "PIECE_CHANNELS", 1 + d % 3)
        model = op_model(m, n, d, dv, dtype=dtype, causal=causal)
    got = ReferenceEvaluator(model).run(None, feeds)[0]
    want = reference(*(x.astype(np.float64) for x in feeds.values()), causal=causal)
    limit = FLOAT64_RATIO if double else FLOAT32_RATIO
    assert np.abs(got - want).max() <= limit * np.abs(feeds["v"]).max()


@settings(max_examples=60, deadline=None)
@given(
    *(st.integers(1, 9) for _ in range(5)),
    *(st.booleans() for _ in range(4)),
    st.floats(-1, 1),
    st.floats(0.1, 2),
)
def test_the_erf_function_is_the_reference_for_any_sizes_and_inputs(
    batch, m, n, d, dv, causal, bias, row_scale, shared, mu, sigma
):
    feeds = arrays(batch, m, n, d, dv, bias=bias, row_scale=row_scale, shared=shared)
    attributes = {"kernel": "erf", "causal": causal, "mu": mu, "sigma": sigma}
    model = op_model(m, n, d, dv, bias=bias, row_scale=row_scale, **attributes)
    want = reference(**{name: x.astype(np.float64) for name, x in feeds.items()}, **attributes)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for got in (ReferenceEvaluator(model).run(None, feeds)[0], session.run(None, feeds)[0]):
        assert got.dtype == np.float32
        assert np.abs(got - want).max() <= FLOAT32_RATIO * (1 + d / sigma) * n * np.abs(feeds["v"]).max()


def test_a_causal_row_sees_the_keys_up_to_itself():
    feeds = arrays(1, 5, 5, 4, 3)
    whole = reference(**feeds, causal=True)
    cut = reference(feeds["q"][:, :2], feeds["k"][:, :2], feeds["v"][:, :2])
    np.testing.assert_allclose(whole[:, 1], cut[:, 1], rtol=1e-6)


CHILD = """
import sys, numpy as np, onnxruntime
def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1024
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
feeds = {name: np.ones((1, 1024, 64), np.float32) for name in "qkv"}
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
session.run(None, feeds)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc to measure memory")
def test_1024_frames_of_64_channels_take_less_than_120_mb(tmp_path):
    """All differences at once would take 268 MB."""
    onnx.save(op_model(1024, 1024, 64, 64), tmp_path / "op.onnx")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "op.onnx"], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 120
