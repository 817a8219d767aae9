"""The ONNX graph as a TensorRT parser takes it.

1. Without a plugin, every function of the model is inlined: the parsers look a function up by its name alone and would
   take one overload's body for another's.
2. With a plugin for an operator, its functions are removed, for the parser prefers a function to a plugin, and its
   nodes carry the version and the namespace by which the parser finds the plugin.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx
from onnx import inliner

from mega_deploy.plugins.laplace import VERSION


def read(path: Path, plugins: Collection[tuple[str, str]] = ()) -> tuple[onnx.ModelProto, tuple[tuple[str, str], ...]]:
    """The graph of a file, ready for the parser; weights of an external file are not loaded.

    Args:
        path: an ONNX file.
        plugins: domain and name of each operator that a plugin serves.

    Returns:
        The model, and domain and name of the operators in it that plugins serve.
    """
    model = onnx.load(path, load_external_data=False)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    served = {(node.domain, node.op_type) for node in nodes} & set(plugins)
    model = inliner.inline_selected_functions(model, sorted(served), exclude=True)
    for node in model.graph.node:
        if (node.domain, node.op_type) in served:
            node.overload = ""
            attributes = {"plugin_version": str(VERSION), "plugin_namespace": node.domain}
            node.attribute.extend(onnx.helper.make_attribute(*entry) for entry in attributes.items())
    kept = [function for function in model.functions if (function.domain, function.name) not in served]
    del model.functions[:]
    model.functions.extend(kept)
    return model, tuple(sorted(served))
