"""A graph as an ONNX file: checked, the same bytes for the same model, weights beside it beyond 2 GB."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxscript import ir

from mega_deploy.bundle import Loadable
from mega_deploy.errors import MegaDeployError
from mega_deploy.files.writing import put_bytes, settle_file

# Control flow and cumulative operators are slow everywhere, wrong in some versions of TensorRT, and missing in others.
FORBIDDEN = frozenset({"Loop", "Scan", "If", "CumSum", "DFT", "STFT"})
# protobuf gives up at 2 GiB; beyond this the weights go to a file of their own.
MAX_INLINE_BYTES = 1_900_000_000


def save(model: ir.Model, path: Path) -> onnx.ModelProto:
    """Write `path`, and `path`.data beside it where the weights exceed MAX_INLINE_BYTES; check what was written.

    Returns:
        The model as written, weights of an external file not loaded.

    Raises:
        MegaDeployError: the graph breaks a rule of ONNX or of ours (a defect of the exporter).
        OSError: the file system refuses.
    """
    weights = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    if weights > MAX_INLINE_BYTES:
        ir.save(model, path, external_data=f"{path.name}.data")
        _settle(path)
    else:
        path.unlink(missing_ok=True)
        put_bytes(path, ir.to_proto(model).SerializeToString(deterministic=True))
    check(path)
    return onnx.load(path, load_external_data=False)


def load_whole(graph: Loadable) -> onnx.ModelProto:
    """A graph with all its weights, those of an external file too.

    Raises:
        BundleError: a file has changed since the bundle was opened.
    """
    with graph.opened() as opened:
        model = onnx.load_model_from_string(opened.data)
        onnx.load_external_data_for_model(model, str(opened.place.parent))
    return model


def _settle(path: Path) -> None:
    """Flush a graph and its weights to the disk; OSError where one is shorter than the graph says.

    The weights are written by C's streams, which may lose the last of them on a full disk without a word.
    """
    settle_file(path)
    ends: dict[str, int] = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            end = int(entries.get("offset", 0)) + int(entries["length"])
            ends[entries["location"]] = max(ends.get(entries["location"], 0), end)
    for name, size in ends.items():
        settle_file(path.with_name(name), size)


def check(path: Path) -> None:
    """Onnx's checker with strict shape inference, and our own rule on operators.

    Raises:
        MegaDeployError: naming what is broken.
    """
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise MegaDeployError(f"{path.name} breaks a rule of ONNX: {error}") from error
    proto = onnx.load(path, load_external_data=False)
    nodes = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    if found := sorted({node.op_type for node in nodes} & FORBIDDEN):
        raise MegaDeployError(f"{path.name} holds {', '.join(found)}, which no graph of ours may")
