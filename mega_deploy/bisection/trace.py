"""A graph in float64, value by value, and what rounding may do to each of them.

The arithmetic is that of onnx's reference evaluator, with the functions of the model inlined, so that the values in
their bodies are seen as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import inliner
from onnx.reference import ReferenceEvaluator

from mega_deploy.arrays import Array
from mega_deploy.parity import UNIT_ROUNDOFF, Error, measure, worst

# As many as parity takes for the noise floor of a model.
RUNS = 4
# A product with 7-bit weights and activations rounded row by row, relative to its largest numbers.
INT8_ROUNDOFF = 2.0**-7


class Trace:
    """A float64 graph that can be run from its inputs, or from values within it.

    Args:
        model: float64 throughout; it is left as it is.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = inliner.inline_local_functions(model)
        self._evaluator = ReferenceEvaluator(self.model)
        self._constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}

    def run(
        self, given: Mapping[str, Array], roundoff: Mapping[str, float] | None = None, seed: int = 0
    ) -> dict[str, Array]:
        """Every value that follows from those given and the constants.

        Args:
            given: inputs or inner values by name; what lies before inner ones and is not needed behind is not computed.
            roundoff: by name; each of these values is changed by a random share of itself of up to that size as it is
                made, as rounding does, but for constants that are the same in every precision: were the exponent 2
                another number, squares would be NaN. None: by nothing.
            seed: of the changes.
        """
        random = np.random.default_rng(seed)

        def rounded(name: str, value: Array) -> Array:
            share = (roundoff or {}).get(name)
            if share is None or value.dtype.kind != "f":
                return value
            return value * (1 + share * random.uniform(-1, 1, value.shape))

        values: dict[str, Any] = {"": None}
        for name, value in self._constants.items():
            values[name] = value if is_exact(value) else rounded(name, value)
        for name, value in given.items():
            values[name] = rounded(name, value.astype(np.float64) if value.dtype.kind == "f" else value)
        for node in self._evaluator.rt_nodes_:
            if all(name in values for name in node.output) or not all(name in values for name in node.input):
                continue
            with np.errstate(
                over="ignore", invalid="ignore"
            ):  # of a sigmoid both branches are computed, then one taken
                results = node.run(*(values[name] for name in node.input))
            for name, value in zip(node.output, results, strict=False):  # optional outputs may go unused
                values.setdefault(name, rounded(name, value))
        del values[""]
        return values

    def floors(
        self, given: Mapping[str, Array], roundoff: Mapping[str, float], exact: Mapping[str, Array]
    ) -> dict[str, Error]:
        """What rounding everywhere costs each value at most, of a few runs."""
        runs = [self.run(given, roundoff, seed) for seed in range(1, RUNS + 1)]
        numbers = [name for name, value in exact.items() if is_number(value)]
        return {name: worst([apart(run[name], exact[name]) for run in runs]) for name in numbers}


def is_number(value: Array) -> bool:
    """Whether a value can be compared: floating-point, masks of infinities and masked scores among them."""
    return value.dtype.kind == "f" and not np.isnan(value).any()


def apart(got: Array, want: Array) -> Error:
    """The error of a value; infinities of masked scores count for nothing where both have them."""
    masked = np.isinf(want) & (got == want)
    return measure(np.where(masked, 0, got), np.where(masked, 0, want))


def is_exact(value: Array) -> bool:
    """Whether every precision holds these very numbers: none has more than bfloat16's eight bits."""
    eight_bits = np.frexp(value)[0] * 2**8
    return bool((eight_bits == np.rint(eight_bits)).all())


def roundoffs(deployed: onnx.ModelProto, names: Collection[str]) -> dict[str, float]:
    """The unit roundoff with which each of the values is made in the deployed graph; of others that of float32.

    Args:
        deployed: with the types of its inner values, see `typed`.
        names: of float64 values in the trace.
    """
    kinds = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16"}
    types = {value.name: value.type.tensor_type.elem_type for value in deployed.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in deployed.graph.initializer}
    found = {name: UNIT_ROUNDOFF[kinds.get(types.get(name, 0), "float32")] for name in names}
    return found | dict.fromkeys(_quantised(deployed) & set(names), INT8_ROUNDOFF)


def _quantised(deployed: onnx.ModelProto) -> set[str]:
    """Values that are made of an integer product, with the steps that scale it back."""
    made: set[str] = set()
    steps = {"Cast", "Mul", "Add"}
    for node in deployed.graph.node:
        if node.op_type == "MatMulInteger" or (node.op_type in steps and made & set(node.input)):
            made |= set(node.output)
    return made


def typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types of all inner values."""
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def excerpt(model: onnx.ModelProto, given: Collection[str], wanted: Collection[str]) -> onnx.ModelProto:
    """The part of a model between values, as a model: `given` become inputs where they are used, `wanted` outputs.

    Outputs are float32 whatever they are inside, by a cast behind them. Functions stay.

    Args:
        model: `typed`.
        given: inputs of the model and inner values.
        wanted: inner values and outputs.
    """
    types = {value.name: value.type for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    needed: set[str] = set()
    open_ends = list(wanted)
    while open_ends:
        name = open_ends.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in made and name not in given:
            open_ends += [source for source in made[name].input if source]
    graph = onnx.GraphProto(name=model.graph.name)
    graph.input.extend(onnx.ValueInfoProto(name=name, type=types[name]) for name in given if name in needed)
    graph.initializer.extend(tensor for name, tensor in constants.items() if name in needed)
    graph.node.extend(node for node in model.graph.node if any(n in needed and n not in given for n in node.output))
    for name in wanted:
        kind = types[name].tensor_type.elem_type
        shown = name
        if kind != onnx.TensorProto.FLOAT:
            shown = shown_as(name)
            graph.node.append(onnx.helper.make_node("Cast", [name], [shown], to=onnx.TensorProto.FLOAT))
        graph.output.append(onnx.helper.make_tensor_value_info(shown, onnx.TensorProto.FLOAT, None))
    cut = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    cut.opset_import.extend(model.opset_import)
    cut.functions.extend(model.functions)
    return cut


def shown_as(name: str) -> str:
    """How an output of `excerpt` is called that is not float32 itself."""
    return f"{name}.shown"
