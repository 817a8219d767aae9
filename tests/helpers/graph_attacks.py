"""ONNX files that hold what no graph of ours does, each with what its refusal says.

Loaded by onnxruntime alone, 1.20.0 and 1.23.2 return the host's file for dots, absolute, constant, function body,
sparse and doubled, die of a fault for memory, recursive and circle, and 1.32.0 too runs for ever at both blow-ups.
"""

from collections.abc import Callable

import onnx
from onnx import TensorProto, helper

OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("mega.deploy", 1)]
SECRET_BYTES = 8


def external(location: str, **entries: str) -> TensorProto:
    """Eight bytes of a file, as a tensor."""
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[SECRET_BYTES], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "length": str(SECRET_BYTES), **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(nodes=(), initializers=(), functions=(), opsets=OPSETS) -> onnx.ModelProto:
    output = helper.make_tensor_value_info("o", TensorProto.UINT8, None)
    graph = helper.make_graph(list(nodes), "g", [], [output], list(initializers))
    return helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=list(functions))


def initializer(tensor: TensorProto) -> onnx.ModelProto:
    return model([helper.make_node("Identity", ["w"], ["o"])], [tensor])


def constant(tensor: TensorProto) -> onnx.ModelProto:
    return model([helper.make_node("Constant", [], ["o"], value=tensor)])


def function(name: str, nodes, domain="mega.deploy", **given) -> onnx.FunctionProto:
    return helper.make_function(domain, name, given.get("inputs", []), ["o"], list(nodes), OPSETS)


def call(name: str, output="o", domain="mega.deploy") -> onnx.NodeProto:
    return helper.make_node(name, [], [output], domain=domain)


def in_a_function(tensor: TensorProto) -> onnx.ModelProto:
    return model([call("F")], functions=[function("F", [helper.make_node("Constant", [], ["o"], value=tensor)])])


def in_a_subgraph(tensor: TensorProto) -> onnx.ModelProto:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.UINT8, None)],
        [tensor],
    )
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    return model([helper.make_node("If", ["c"], ["o"], then_branch=branch, else_branch=branch)], [condition])


def sparse(tensor: TensorProto) -> onnx.ModelProto:
    made = model([helper.make_node("Identity", ["w"], ["o"])])
    indices = helper.make_tensor("i", TensorProto.INT64, [SECRET_BYTES], list(range(SECRET_BYTES)))
    made.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor, indices=indices, dims=[SECRET_BYTES]))
    return made


def recursive() -> onnx.ModelProto:
    return model([call("F")], functions=[function("F", [call("F")])])


def circle() -> onnx.ModelProto:
    return model([call("F")], functions=[function("F", [call("G")]), function("G", [call("F")])])


def blow_up(levels: int = 39) -> onnx.ModelProto:
    """Each function calls the next one twice: 2^39 nodes in a few kilobytes."""
    last = function("F0", [helper.make_node("Constant", [], ["o"], value_int=1)])
    others = [
        function(
            f"F{level}",
            [call(f"F{level - 1}", "a"), call(f"F{level - 1}", "b"), helper.make_node("Add", ["a", "b"], ["o"])],
        )
        for level in range(1, levels + 1)
    ]
    return model([call(f"F{levels}")], functions=[last, *others])


def wide_blow_up() -> onnx.ModelProto:
    """The same within the depth that is allowed: 64^4 nodes."""

    def level(number: int) -> onnx.FunctionProto:
        nodes = [call(f"F{number - 1}", f"a{index}") for index in range(64)]
        return function(f"F{number}", [*nodes, helper.make_node("Sum", [f"a{index}" for index in range(64)], ["o"])])

    last = function("F0", [helper.make_node("Constant", [], ["o"], value_int=1)])
    return model([call("F4")], functions=[last, *(level(number) for number in range(1, 5))])


def engine_context() -> onnx.ModelProto:
    """onnxruntime's TensorRT provider loads the engine that such a node names."""
    node = helper.make_node(
        "EPContext", [], ["o"], domain="com.microsoft", embed_mode=0, ep_cache_context="/tmp/x.engine"
    )
    return model([node], opsets=[*OPSETS, helper.make_opsetid("com.microsoft", 1)])


def training() -> onnx.ModelProto:
    made = initializer(external("model.onnx"))
    made.training_info.add().algorithm.initializer.append(external("/etc/passwd"))
    return made


def doubled() -> bytes:
    """Two graphs, which protobuf merges into one: the second brings the tensor that the first one's node reads."""
    first = model([helper.make_node("Identity", ["w"], ["o"])])
    second = onnx.ModelProto(graph=onnx.GraphProto(initializer=[external("/etc/passwd")]))
    return first.SerializeToString() + second.SerializeToString()


def with_field(number: int, wire: int, payload: bytes) -> bytes:
    tag = number << 3 | wire
    head = bytes([tag & 0x7F | 0x80, tag >> 7]) if tag > 0x7F else bytes([tag])
    return (
        initializer(helper.make_tensor("w", TensorProto.UINT8, [8], list(range(8)))).SerializeToString()
        + head
        + payload
    )


UP = "../" * 12 + "etc/passwd"
ATTACKS: dict[str, tuple[Callable[[], onnx.ModelProto | bytes], str]] = {
    "dots": (lambda: initializer(external(UP)), "no file of the bundle"),
    "absolute": (lambda: initializer(external("/etc/passwd")), "no file of the bundle"),
    "beside": (lambda: initializer(external("manifest.json")), "no file of the bundle"),
    "folder": (lambda: initializer(external("./model.onnx")), "no file of the bundle"),
    "memory": (lambda: initializer(external("*/_ORT_MEM_ADDR_/*", offset="4096")), "no file of the bundle"),
    "nowhere": (lambda: initializer(external("")), "no file of the bundle"),
    "beyond": (lambda: initializer(external("model.onnx", offset="99999999999")), "beyond the end"),
    "negative": (lambda: initializer(external("model.onnx", offset="-8")), "lies at '-8'"),
    "prepacked": (lambda: initializer(external("model.onnx", prepacked_0="x")), "unknown entry"),
    "constant": (lambda: constant(external(UP)), "no place there"),
    "function body": (lambda: in_a_function(external("/etc/passwd")), "no place there"),
    "subgraph": (lambda: in_a_subgraph(external("/etc/passwd")), "field 6 .* of a attribute"),
    "sparse": (lambda: sparse(external("/etc/passwd")), "field 15 .* of a graph"),
    "training": (training, "field 20 .* of a model"),
    "recursive": (recursive, "calls itself"),
    "circle": (circle, "calls itself"),
    "blow-up": (blow_up, "levels deep"),
    "wide blow-up": (wide_blow_up, "over 200000 nodes"),
    "engine context": (engine_context, "domain 'com.microsoft'"),
    "function of ONNX's": (
        lambda: model([helper.make_node("Add", [], ["o"])], functions=[function("Add", [call("F")], domain="")]),
        "in the domain ''",
    ),
    "two of a name": (lambda: model([call("F")], functions=[function("F", [call("G")])] * 2), "two functions"),
    "doubled": (doubled, "graph comes twice"),
    "unknown field": (lambda: with_field(99, 2, b"\1x"), "field 99"),
    "a group": (lambda: with_field(7, 3, b""), "field 7"),
    "cut": (lambda: initializer(external("model.onnx")).SerializeToString()[:-3], "cut short"),
    "long": (lambda: with_field(6, 2, b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), "cut short"),
    "no end": (lambda: with_field(5, 0, b"\xff" * 40), "cut short"),
    "nothing": (lambda: b"", "no graph"),
    "onnxruntime's own format": (lambda: b"\x18\0\0\0ORTM" + bytes(64), "field 3"),
}
