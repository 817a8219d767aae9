"""The ONNX graph as a TensorRT parser takes it.

1. Without a plugin, every function of the model is inlined: the parsers look a function up by its name alone and would
   take one overload's body for another's.
2. With a plugin for LaplaceAttention, its functions are removed, for the parser prefers a function to a plugin; its
   nodes carry the version and the namespace by which the parser finds the plugin, and name the inputs that are there,
   for a plugin has no optional ones.
"""

from __future__ import annotations

import onnx
from onnx import inliner

from mega_deploy.plugins.laplace import DOMAIN, NAME, VERSION

REQUIRED_INPUTS = 3
BIAS, ROW_SCALE = 1, 2
"""Bits of the plugin's field `inputs`."""


def read(data: bytes, *, plugin: bool = False) -> tuple[onnx.ModelProto, bool]:
    """The graph of an ONNX file, ready for the parser; weights of an external file are not loaded.

    Args:
        data: the file's bytes.
        plugin: whether there is a plugin for LaplaceAttention.

    Returns:
        The model, and whether the plugin serves in it.
    """
    ours = (DOMAIN, NAME)
    model = onnx.load_model_from_string(data)
    model = inliner.inline_selected_functions(model, [ours] if plugin else [], exclude=True)
    nodes = [node for node in model.graph.node if (node.domain, node.op_type) == ours]
    for node in nodes:
        _call_plugin(node)
    kept = [function for function in model.functions if (function.domain, function.name) != ours]
    del model.functions[:]
    model.functions.extend(kept)
    return model, bool(nodes)


def _call_plugin(node: onnx.NodeProto) -> None:
    bias, row_scale = [*node.input[REQUIRED_INPUTS:], "", ""][:2]  # "" where it is omitted
    del node.input[REQUIRED_INPUTS:]
    node.input.extend(name for name in (bias, row_scale) if name)
    node.overload = ""
    fields = {
        "plugin_version": str(VERSION),
        "plugin_namespace": DOMAIN,
        "inputs": BIAS * bool(bias) + ROW_SCALE * bool(row_scale),
    }
    node.attribute.extend(onnx.helper.make_attribute(*field) for field in fields.items())
