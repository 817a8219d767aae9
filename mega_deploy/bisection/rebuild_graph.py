"""A bundle's graph anew from the trained weights in it: exact, in float64, and as the bundle ought to hold it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnxscript import ir

from mega_deploy.bundle import Bundle
from mega_deploy.checkpoints.bundled import load_trained
from mega_deploy.exporters.families import family_of
from mega_deploy.exporters.precision.lowering import lower
from mega_deploy.signature import Signature

# Shares of a constant's largest number, by its type; those of no other type are rounded.
LAST_PLACES: dict[int, float] = {
    onnx.TensorProto.FLOAT: 2.0**-22,
    onnx.TensorProto.FLOAT16: 2.0**-10,
    onnx.TensorProto.BFLOAT16: 2.0**-7,
    onnx.TensorProto.INT8: 1 / 63,
    onnx.TensorProto.UINT8: 1 / 63,
}


@dataclass(frozen=True)
class Rebuilt:
    """Two graphs whose values have the same names."""

    exact: onnx.ModelProto
    """In float64."""
    lowered: onnx.ModelProto
    """In the bundle's precision."""
    blocks: tuple[str, ...]
    """Names of the residual stream behind each block."""

    def spoilt(self, model: onnx.ModelProto) -> set[str]:
        """Constants of a model that are not what the trained weights give."""
        ours = {tensor.name: tensor for tensor in self.lowered.graph.initializer}
        return {
            tensor.name
            for tensor in model.graph.initializer
            if tensor.name in ours and not _same(tensor, ours[tensor.name])
        }


def rebuild_graph(bundle: Bundle, keep_float32: tuple[str, ...]) -> Rebuilt:
    """Fold the trained weights of a bundle again.

    Args:
        bundle: opened.
        keep_float32: names of layers that its export was asked to keep in float32.
    """
    manifest = bundle.manifest
    family, half_io = family_of(load_trained(bundle)), _is_half(manifest.signature)
    signature = manifest.signature.in_float32() if half_io else manifest.signature
    exact, single = (
        family.graph(signature, manifest.ema["lowering"], dtype) for dtype in (ir.DataType.DOUBLE, ir.DataType.FLOAT)
    )
    lowered = lower(single.model, manifest.precision, keep_float32=keep_float32, half_io=half_io)
    return Rebuilt(ir.to_proto(exact.model), ir.to_proto(lowered.model), exact.block_outputs)


def _is_half(signature: Signature) -> bool:
    return any(spec.dtype == "float16" for spec in signature.inputs)


def _same(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    """Whether two constants differ by no more than a last place, which another processor's float64 may round off."""
    if one.data_type != other.data_type or list(one.dims) != list(other.dims):
        return False
    a, b = (np.asarray(onnx.numpy_helper.to_array(tensor)).astype(np.float64) for tensor in (one, other))
    if not np.isfinite(b).all():  # a mask
        return bool(np.array_equal(a, b))
    return bool(np.abs(a - b).max(initial=0) <= LAST_PLACES.get(one.data_type, 0) * np.abs(b).max(initial=0))
