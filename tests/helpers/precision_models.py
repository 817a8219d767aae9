"""Small models for the tests of lower precisions, and looks into their graphs."""

import onnxruntime
import torch
from onnxscript import ir

from mega_deploy.exporters.precision.float32_nodes import label
from mega_deploy.models.edifice import Mega

FLOAT, FLOAT16, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
HALVES = {"float16": FLOAT16, "bfloat16": BFLOAT16}
SHAPE = (9, 6)


def build(laplace=False, **options):
    torch.manual_seed(0)
    options = {"embed_dim": 6, "hidden_size": 16, "ema_dim": 3, "num_layers": 3, "window_size": 9, **options}
    return Mega.build(**options, laplace_attention=laplace).eval()


def run(model, frames):
    """The features that onnxruntime gives for frames, the graph as it stands."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run(None, {"frames": frames})[0]


def types(model):
    """(label, operator, dtypes of the floating-point inputs, dtype of the result) of every node but the casts."""
    for node in model.graph:
        if node.op_type != "Cast":
            # The builder leaves the type of a function's result open: lowering states it, int8 has no need to.
            read = {value.dtype or FLOAT for value in node.inputs if value is not None}
            numbers = {dtype for dtype in read if dtype.is_floating_point()}
            yield label(node), node.op_type, numbers, node.outputs[0].dtype or FLOAT
