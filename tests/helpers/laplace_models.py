"""Models of the LaplaceAttention op alone, and arrays for them."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxscript import GraphBuilder, ir

from mega_deploy.plugins.laplace import MU, SIGMA
from mega_deploy.plugins.laplace.function import erf_function, l1_function

# What options go together, and whether the optional inputs are there.
FORMS = (
    {"kernel": "l1"},
    {"kernel": "l1", "causal": True},
    {"kernel": "erf"},
    {"kernel": "erf", "causal": True, "bias": True},
    {"kernel": "erf", "row_scale": True, "mu": 0.1, "sigma": 1.5},
    {"kernel": "erf", "causal": True, "bias": True, "row_scale": True},
)
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: ",".join(map(str, form)) + f" {form['kernel']}")

OPSET = 20


def op_model(
    m,
    n,
    d,
    dv,
    *,
    dtype=ir.DataType.FLOAT,
    kernel="l1",
    causal=False,
    bias=False,
    row_scale=False,
    mu=MU,
    sigma=SIGMA,
    overload="",
):
    """A checked model of one node, with its function: M, N, D and Dv static, the batch dynamic."""
    graph = ir.Graph([], [], nodes=[], name="op", opset_imports={"": OPSET, "mega.deploy": 1})
    builder = GraphBuilder(graph)
    shapes = {"q": ["batch", m, d], "k": ["batch", n, d], "v": ["batch", n, dv]}
    shapes |= {"bias": [None, m, n]} if bias else {}
    shapes |= {"row_scale": [None, m]} if row_scale else {}
    inputs = {name: builder.input(name, dtype=dtype, shape=shape) for name, shape in shapes.items()}
    common = {"dtype": dtype, "opset": OPSET, "causal": causal, "overload": overload}
    attributes = {"kernel": kernel, "causal": int(causal)}
    if kernel == "l1":
        function = l1_function(m, n, d, **common)
    else:
        function = erf_function(bias=bias, row_scale=row_scale, mu=mu, sigma=sigma, **common)
        attributes |= {"mu": mu, "sigma": sigma}
    given = [inputs.get(name) for name in ("q", "k", "v", "bias", "row_scale")][: len(function.inputs)]
    out = builder.call(function, *given, **attributes)
    out.dtype, out.shape = dtype, ir.Shape(["batch", m, dv])
    builder.add_output(out, "o")
    model = ir.to_proto(ir.Model(graph, ir_version=10, functions=[function]))
    onnx.checker.check_model(model, full_check=True)
    return model


def arrays(batch, m, n, d, dv, *, bias=False, row_scale=False, shared=False, dtype=np.float32):
    """Inputs by name; `shared`: bias and row_scale are the same for the whole batch."""
    random = np.random.default_rng(m * 31 + n * 7 + d)
    shapes = {"q": (batch, m, d), "k": (batch, n, d), "v": (batch, n, dv)}
    rows = 1 if shared else batch
    shapes |= {"bias": (rows, m, n)} if bias else {}
    shapes |= {"row_scale": (rows, m)} if row_scale else {}
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def for_tensorrt(model, folder):
    """The model as plugins/README.md tells to change it for TensorRT's parser, in folder/for_tensorrt.onnx."""
    readme = (Path(__file__).parents[2] / "plugins/README.md").read_text("utf-8")
    (block,) = re.findall(r"<!-- tested[^>]*-->\n```python\n(.*?)```", readme, re.DOTALL)
    onnx.save(model, folder / "model.onnx")
    subprocess.run([sys.executable, "-c", block], cwd=folder, check=True)
    return onnx.load(folder / "for_tensorrt.onnx")
