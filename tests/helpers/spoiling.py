"""Copies of bundles whose graph is another one, with hashes that fit, so that nothing but the numbers tells."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx

Edit = Callable[[onnx.ModelProto], None]


def spoil(bundle: Path, target: Path, edit: Edit) -> Path:
    """A copy of a bundle whose model is edited."""
    path = Path(shutil.copytree(bundle, target))
    model = onnx.load(path / "model.onnx")
    edit(model)
    raw = model.SerializeToString()
    (path / "model.onnx").write_bytes(raw)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def added(name: str, change: float) -> Edit:
    """Adds to one number of a constant."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        array = onnx.numpy_helper.to_array(tensor).copy()
        array.flat[3] += array.dtype.type(change)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))

    return edit


def other_op(scope: str, op: str, other: str) -> Edit:
    """Lets the first node of an op in a scope be one of another op."""

    def edit(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == op and node.name.startswith(scope))
        node.op_type, node.domain = other, ""
        del node.attribute[:]

    return edit


def other_axis(scope: str, op: str, axis: int) -> Edit:
    """Lets the first node of an op in a scope go along another axis."""

    def edit(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == op and node.name.startswith(scope))
        next(attribute for attribute in node.attribute if attribute.name == "axis").i = axis

    return edit


def other_body(op: str, other: str) -> Edit:
    """Lets every node of an op within the model's functions be one of another op."""

    def edit(model: onnx.ModelProto) -> None:
        nodes = [node for function in model.functions for node in function.node if node.op_type == op]
        assert nodes
        for node in nodes:
            node.op_type = other

    return edit
