"""bfloat16 where no engine has it: every operator in float32 on onnxruntime's CPU provider, each result rounded.

That is the arithmetic of a GPU's matrix units, which sum products in float32 and round once. It is for judging numbers:
it is slower than float32, and no way to serve a model.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mega_deploy.bundle import Loadable, OpenGraph
from mega_deploy.errors import require
from mega_deploy.runtime.onnxruntime.native import loadable
from mega_deploy.runtime.onnxruntime.session import Session
from mega_deploy.runtime.options import SessionOptions
from mega_deploy.signature import Signature

BACKEND = "onnxruntime, bfloat16 emulated in float32"


class EmulatedSession(Session):
    """A session on a bfloat16 model.

    Args:
        model: a bundle's graph, or the path of an ONNX file.
        signature: what it takes and gives.

    Raises:
        MissingComponentError: onnx or onnxruntime is not installed.
        BundleError: onnxruntime cannot load the model.
    """

    backend = BACKEND

    def __init__(self, model: str | os.PathLike[str] | Loadable, signature: Signature) -> None:
        require("onnx", "export", "emulating bfloat16")
        super().__init__(ChangedGraph(loadable(model), emulated), signature, SessionOptions(check_outputs=False))


@dataclasses.dataclass(frozen=True)
class ChangedGraph:
    """A graph that is changed whenever it is loaded."""

    graph: Loadable
    change: Callable[[Any], Any]
    """Gives another onnx.ModelProto for one without the weights of external files."""

    @contextmanager
    def opened(self) -> Iterator[OpenGraph]:
        """The changed graph, with the weights of the one that it is made from beside it."""
        import onnx

        with self.graph.opened() as opened:
            model = self.change(onnx.load_model_from_string(opened.data))
            yield dataclasses.replace(opened, data=model.SerializeToString())

    def __str__(self) -> str:
        return str(self.graph)


def emulated(model: Any) -> Any:
    """The model in float32, with a rounding to bfloat16 wherever a value of that type was.

    Names of values stay. Nodes of functions are not touched: LaplaceAttention is a float32 island.

    Args:
        model: an onnx.ModelProto; it is left as it is.
    """
    import onnx

    bfloat16, float32 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info
    }
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.node[:], graph.value_info[:]
    constants = {tensor.name for tensor in graph.initializer if tensor.data_type == bfloat16}
    for name in sorted(constants):
        graph.node.append(onnx.helper.make_node("Cast", [name], [f"{name}.float32"], to=float32))
    for node in model.graph.node:
        copy = graph.node.add()
        copy.CopyFrom(node)
        copy.input[:] = [f"{name}.float32" if name in constants else name for name in node.input]
        rounded = [index for index, name in enumerate(node.output) if types.get(name) == bfloat16]
        if node.op_type == "Cast" and rounded:
            copy.attribute[0].i = float32
        for index in rounded:
            name = node.output[index]
            copy.output[index] = f"{name}.exact"
            graph.node.append(onnx.helper.make_node("Cast", [f"{name}.exact"], [f"{name}.bfloat16"], to=bfloat16))
            graph.node.append(onnx.helper.make_node("Cast", [f"{name}.bfloat16"], [name], to=float32))
    return result
