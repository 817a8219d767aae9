"""The ONNX function of LaplaceAttention against the plain reference."""

import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from onnx.reference import ReferenceEvaluator
from onnxscript import GraphBuilder, ir

from mega_deploy.models.edifice import laplace_attention
from mega_deploy.plugins.laplace import function as laplace_function
from mega_deploy.plugins.laplace.reference import laplace_attention as reference

FLOAT32_RATIO, FLOAT64_RATIO = 2e-6, 1e-13


def op_model(m, n, d, dv, dtype, overload=""):
    """A graph of the op alone, and its function."""
    graph = ir.Graph([], [], nodes=[], name="op", opset_imports={"": 20, "mega.deploy": 1})
    builder = GraphBuilder(graph)
    q, k, v = (
        builder.input(name, dtype=dtype, shape=["batch", rows, columns])
        for name, rows, columns in (("q", m, d), ("k", n, d), ("v", n, dv))
    )
    function = laplace_function.l1_function(m, n, d, dtype=dtype, opset=20, overload=overload)
    out = builder.call(function, q, k, v, kernel="l1", causal=0)
    out.dtype, out.shape = dtype, ir.Shape(["batch", m, dv])
    builder.add_output(out, "o")
    model = ir.to_proto(ir.Model(graph, ir_version=10, functions=[function]))
    onnx.checker.check_model(model, full_check=True)
    return model


@settings(max_examples=60, deadline=None)
@given(
    *(st.integers(1, 9) for _ in range(3)),
    st.integers(1, 20),
    st.integers(1, 6),
    st.sampled_from([1, 40, 1 << 21]),
    st.booleans(),
)
def test_the_function_is_the_reference_for_any_sizes_and_pieces(batch, m, n, d, dv, elements, double):
    dtype = ir.DataType.DOUBLE if double else ir.DataType.FLOAT
    random = np.random.default_rng(m * 31 + n * 7 + d)
    q, k, v = (random.standard_normal((batch, *s)).astype(dtype.numpy()) for s in ((m, d), (n, d), (n, dv)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laplace_function, "PIECE_ELEMENTS", elements)
        patch.setattr(laplace_function, "PIECE_CHANNELS", 1 + d % 3)
        model = op_model(m, n, d, dv, dtype)
    got = ReferenceEvaluator(model).run(None, {"q": q, "k": k, "v": v})[0]
    want = reference(*(x.astype(np.float64) for x in (q, k, v)))
    limit = FLOAT64_RATIO if double else FLOAT32_RATIO
    assert np.abs(got - want).max() <= limit * np.abs(v).max()


def test_the_reference_is_the_trained_forms_attention():
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((2, 7, 5)) for _ in range(3))
    want = laplace_attention(*(torch.from_numpy(x) for x in (q, k, v))).numpy()
    np.testing.assert_allclose(reference(q, k, v), want, rtol=1e-13, atol=1e-15)


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
    onnx.save(op_model(1024, 1024, 64, 64, ir.DataType.FLOAT), tmp_path / "op.onnx")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "op.onnx"], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 120
