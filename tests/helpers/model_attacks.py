"""Graphs that take frames [batch, 8, 6] and should give features [batch, 16], but fail or give something else."""

from collections.abc import Callable

import onnx
from onnx import TensorProto, helper

Nodes = list[onnx.NodeProto]
FEATURES = ("features", TensorProto.FLOAT, ["batch", 16])


def ints(name: str, *values: int) -> TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def graph(nodes: Nodes, constants=(), output=FEATURES) -> onnx.ModelProto:
    frames = helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["batch", 8, 6])
    made = helper.make_graph(nodes, "g", [frames], [helper.make_tensor_value_info(*output)], list(constants))
    return helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def mean(output: str) -> Nodes:
    """[batch, 6] padded to [batch, 16]."""
    return [
        helper.make_node("ReduceMean", ["frames", "one"], ["mean"], keepdims=0),
        helper.make_node("Pad", ["mean", "pads"], [output]),
    ]


MEAN = (ints("one", 1), ints("pads", 0, 0, 0, 10))


def other_type(to: int) -> onnx.ModelProto:
    nodes = [*mean("m"), helper.make_node("Cast", ["m"], ["features"], to=to)]
    return graph(nodes, MEAN, ("features", to, ["batch", 16]))


def wide() -> onnx.ModelProto:
    """A width that is known once the model runs."""
    nodes = [
        *mean("m"),
        helper.make_node("NonZero", ["c"], ["places"]),
        helper.make_node("Shape", ["places"], ["sizes"]),
        helper.make_node("Slice", ["sizes", "one", "two"], ["count"]),
        helper.make_node("Concat", ["batch", "count"], ["shape"], axis=0),
        helper.make_node("Expand", ["zero", "shape"], ["features"]),
    ]
    nodes[2:2] = [
        helper.make_node("Shape", ["frames"], ["all"]),
        helper.make_node("Slice", ["all", "nul", "one"], ["batch"]),
    ]
    nodes[0:0] = [helper.make_node("ReduceMax", ["frames"], ["c"], keepdims=1)]
    nodes = [node for node in nodes if node.op_type not in ("ReduceMean", "Pad")]
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1, 1], [0.0])
    return graph(nodes, (*MEAN, ints("two", 2), ints("nul", 0), zero), ("features", TensorProto.FLOAT, ["batch", "w"]))


def doubled_batch() -> onnx.ModelProto:
    nodes = [*mean("m"), helper.make_node("Concat", ["m", "m"], ["features"], axis=0)]
    return graph(nodes, MEAN, ("features", TensorProto.FLOAT, ["rows", 16]))


def gather() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["frames"], ["places"], to=TensorProto.INT64),
        helper.make_node("Add", ["places", "far"], ["beyond"]),
        helper.make_node("Gather", ["table", "beyond"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "axes"], ["features"], keepdims=0),
    ]
    table = helper.make_tensor("table", TensorProto.FLOAT, [2, 16], [0.0] * 32)
    return graph(nodes, (ints("axes", 1, 2), ints("far", 99), table))


def reshape() -> onnx.ModelProto:
    nodes = [*mean("m"), helper.make_node("Reshape", ["m", "shape"], ["r"])]
    nodes += [
        helper.make_node("ReduceMax", ["r"], ["s"], keepdims=0),
        helper.make_node("Add", ["m", "s"], ["features"]),
    ]
    return graph(nodes, (*MEAN, ints("shape", 7, 16)))


def cast() -> onnx.ModelProto:
    """Text that is no number."""
    nodes = [
        *mean("m"),
        helper.make_node("Constant", [], ["text"], value_string="abc"),
        helper.make_node("Cast", ["text"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["m", "number"], ["features"]),
    ]
    return graph(nodes, MEAN)


def huge() -> onnx.ModelProto:
    """An inner value of an exabyte."""
    nodes = [
        *mean("m"),
        helper.make_node("Expand", ["frames", "shape"], ["all"]),
        helper.make_node("Exp", ["all"], ["powers"]),
        helper.make_node("ReduceMax", ["powers"], ["most"], keepdims=0),
        helper.make_node("Add", ["m", "most"], ["features"]),
    ]
    return graph(nodes, (*MEAN, ints("shape", 1 << 30, 1 << 20, 1, 8, 6)))


ATTACKS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "double": (lambda: other_type(TensorProto.DOUBLE), "gives .features. as tensor.double."),
    "text": (lambda: other_type(TensorProto.STRING), "gives .features. as tensor.string."),
    "width": (wide, r"gave .features. as float32 .3, 1."),
    "batch": (doubled_batch, r"gave .features. as float32 .6, 16."),
    "gather": (gather, "fails on inputs that fit .*frames .3, 8, 6."),
    "reshape": (reshape, "fails on inputs that fit"),
    "cast": (cast, "fails on inputs that fit|cannot load"),
    "memory": (huge, "not enough memory for a call on frames .3, 8, 6.*give fewer rows"),
}
