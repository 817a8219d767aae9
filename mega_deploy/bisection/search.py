"""Where a backend's numbers go wrong: the first bad block of a bundle, and in it the first bad node.

Blocks are compared with the trained form in float64 as they come, for the case that is nearest to its limit or farthest
beyond it. The first bad one is then run by itself, on the trained form's own numbers before it, with every value in it
shown: errors of what comes before are not carried into it, and the first value far beyond its limit is the culprit's.
The limit of a value is what rounding costs there at most, measured by rounding everywhere at random, times 4 as in
parity.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mega_deploy.bundle import MODEL
from mega_deploy.bundle.engines import TARGETS
from mega_deploy.config.common import Precision
from mega_deploy.errors import BundleError, require
from mega_deploy.parity import LIMIT_FACTOR, UNIT_ROUNDOFF, Error, Reference
from mega_deploy.runtime import OpenBundle, Session, SessionOptions, open_bundle
from mega_deploy.runtime.compare import compare
from mega_deploy.runtime.onnxruntime.emulation import emulated
from mega_deploy.runtime.onnxruntime.providers import PROVIDERS, ProviderSession
from mega_deploy.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto


from mega_deploy.arrays import Array

Runner = Callable[["ModelProto", Mapping[str, Array]], Mapping[str, Array]]
"""Runs a model on arrays by name; its outputs are all float32."""


@dataclass(frozen=True)
class Value:
    """A value of the graph, held against float64."""

    name: str
    node: str
    """That makes it."""
    op: str
    error: Error
    floor: Error

    @property
    def limit(self) -> Error:
        return Error(
            LIMIT_FACTOR * max(self.floor.relative_l2, UNIT_ROUNDOFF["float32"]),
            LIMIT_FACTOR * max(self.floor.max_over_rms, UNIT_ROUNDOFF["float32"]),
            float("inf"),
        )

    @property
    def passed(self) -> bool:
        return self.error.within(self.limit)

    @property
    def share(self) -> float:
        """The error as a share of its limit, by the worse of the two measures."""
        error, limit = self.error, self.limit
        return max(error.relative_l2 / limit.relative_l2, error.max_over_rms / limit.max_over_rms)

    def to_json(self) -> dict[str, Any]:
        """For a report; null stands for the error of what is not finite."""
        error = self.error.relative_l2
        return {
            "name": self.name,
            "node": self.node,
            "op": self.op,
            "passed": self.passed,
            "relative_l2": error if np.isfinite(error) else None,
            "limit": self.limit.relative_l2,
        }


@dataclass(frozen=True)
class Bisection:
    """What was found; all is well where `block` is None."""

    backend: str
    precision: Precision
    native_ops: tuple[str, ...]
    parity: bool
    """Whether the outputs passed in every case, as `validate` judges them."""
    case: str
    """Looked at: the one that is nearest to its limit, or farthest beyond."""
    blocks: tuple[Value, ...]
    """The residual stream behind each block, then the model's outputs, as they came."""
    block: str | None = None
    """The first bad one, as `--float32` takes it, or "output" for what follows the last block."""
    values: tuple[Value, ...] = ()
    """All of the bad block, from exact numbers before it, in the graph's order."""
    spoilt: tuple[str, ...] = ()
    """Constants of the whole graph that are not what the trained weights give."""

    @property
    def passed(self) -> bool:
        return self.parity and self.block is None and not self.spoilt

    @property
    def node(self) -> Value | None:
        """The first bad node of the bad block; None where each is fine by itself and errors only add up.

        Rounding may pass a limit by a little, so a node is no culprit whose excess is nothing beside the worst one's.
        """
        bad = [value for value in self.values if not value.passed]
        beyond = max((value.share for value in bad), default=0.0) ** 0.5
        return next((value for value in bad if value.share >= beyond), None)

    @property
    def advice(self) -> str:
        """What to do, in one line."""
        if self.spoilt:
            return (
                f"{', '.join(self.spoilt)} in {MODEL} is not what the trained weights of this bundle give: export the "
                "model anew"
            )
        if self.passed:
            return "nothing to do"
        if self.precision in ("float16", "bfloat16", "int8"):
            suspect = max(self.blocks[:-1], key=lambda value: value.error.relative_l2, default=self.blocks[-1])
            block = self.block or suspect.name.removesuffix(".output")
            layer = block if self.node is None else _label(self.node.node)
            return f"keep it in float32: mega-deploy export ... --precision {self.precision} --float32 {layer}"
        if self.native_ops and (self.node is None or self.node.op in self.native_ops):
            return "try it with --no-native-ops; if that mends it, build the kernel anew: mega-deploy plugins build"
        if self.block is None or self.node is None:
            return "no node is bad by itself; the errors add up: report it with this table"
        return f"{self.backend} computes {self.node.op} wrongly here: try another release of it, and report it"

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "passed": self.passed,
            "parity": self.parity,
            "backend": self.backend,
            "precision": self.precision,
            "native_ops": list(self.native_ops),
            "case": self.case,
            "first_bad_block": self.block,
            "first_bad_node": None if self.node is None else self.node.to_json(),
            "spoilt_constants": list(self.spoilt),
            "advice": self.advice,
            "blocks": [value.to_json() for value in self.blocks],
            "values": [value.to_json() for value in self.values],
        }


def _label(node: str) -> str:
    """A node's name as exports keep it: its scope, for its number is the writer's own."""
    scope, _, _ = node.rpartition("/")
    return scope.replace("/", ".") or node


def bisect(
    bundle: OpenBundle | str | os.PathLike[str],
    *,
    backend: str = "onnxruntime",
    native_ops: bool = True,
    on_step: Callable[[str], None] = lambda step: None,
) -> Bisection:
    """Find the first bad block and the first bad node of a bundle on a backend of this machine.

    Args:
        bundle: opened, or its path.
        backend: see OpenBundle.session. For an engine its graph is built anew with its values as outputs, on and for
            this machine's GPU.
        native_ops: whether native kernels serve our operators on onnxruntime's CPU provider.
        on_step: called with the name of each step as it begins.

    Raises:
        BundleError: the graph is of another version of mega-deploy, whose values have other names.
        MissingComponentError: the backend, its GPU, or torch and onnx are not here.
    """
    for module in ("torch", "onnx", "onnxscript"):
        require(module, "export", "finding the first bad block")
    import onnx

    from mega_deploy.bisection.rebuild_graph import retell
    from mega_deploy.bisection.trace import Trace, apart, excerpt, roundoffs, typed

    opened = bundle if isinstance(bundle, OpenBundle) else open_bundle(bundle)
    on_step("compare the outputs")
    session = opened.judged_session(backend, native_ops=native_ops)
    reference = opened.reference()
    judged = compare(session, reference, opened.manifest.precision)
    feeds = _feeds(reference, judged.worst.name)
    on_step("run the trained model in float64")
    retold = retell(opened, reference.kept)
    deployed = typed(onnx.load(opened.file(MODEL)))
    outputs = [spec.name for spec in opened.manifest.signature.outputs]
    ends = [*retold.blocks, *outputs]
    trace = Trace(retold.exact)
    made = {name: node for node in deployed.graph.node for name in node.output}
    if absent := [name for name in ends if name not in made]:
        raise BundleError(
            f"{opened.path} was written by another mega-deploy ({dict(opened.manifest.tools).get('mega-deploy')}): its "
            f"graph has no {absent[0]}; export it anew"
        )
    exact = trace.run(feeds)
    run = _runner(opened, backend, native_ops)
    rounding = roundoffs(deployed, exact)

    def hold(given: dict[str, Array], names: Sequence[str], truth: Mapping[str, Array]) -> tuple[Value, ...]:
        got = run(excerpt(deployed, [*given], names), given)
        floors = trace.floors(given, rounding, truth)
        return tuple(
            Value(name, made[name].name, made[name].op_type, apart(_shown(got, name), truth[name]), floors[name])
            for name in names
        )

    on_step("compare the blocks")
    blocks = hold(feeds, ends, exact)
    found = Bisection(
        session.backend,
        opened.manifest.precision,
        tuple(session.native_ops),
        judged.passed,
        judged.worst.name,
        blocks,
        spoilt=tuple(sorted(retold.spoilt(deployed))),
    )
    bad = next((index for index, value in enumerate(blocks) if not value.passed), None)
    if bad is None:
        return found
    on_step(f"look into {ends[bad]}")
    before = retold.blocks[:bad]  # a decoder's layer reads the encoder's last as well as the one before it
    given = {**feeds, **{name: exact[name].astype(np.float32) for name in before}}
    truth = trace.run(given)
    names = _inside(deployed, list(given), ends[bad], truth)
    block = ends[bad].removesuffix(".output") if bad < len(retold.blocks) else "output"
    return dataclasses.replace(found, block=block, values=hold(given, names, truth))


def _feeds(reference: Reference, name: str) -> dict[str, Array]:
    """The first batch of a case."""
    return next(reference.feeds(next(case for case in reference.cases if case.name == name)))


def _inside(model: ModelProto, starts: Sequence[str], end: str, truth: Mapping[str, Array]) -> list[str]:
    """Values between some and one that both graphs have, in the graph's order, numbers alone."""
    from mega_deploy.bisection.trace import is_number

    after: set[str] = set(starts)
    for node in model.graph.node:
        if after & set(node.input):
            after |= set(node.output)
    made = {name: node for node in model.graph.node for name in node.output}
    before, open_ends = set(), [end]
    while open_ends:
        name = open_ends.pop()
        if name not in before and name not in starts and name in made:
            before.add(name)
            open_ends += made[name].input
    between = [name for node in model.graph.node for name in node.output if name in before and name in after]
    return [name for name in between if name in truth and is_number(truth[name])]


def _shown(outputs: Mapping[str, Array], name: str) -> Array:
    from mega_deploy.bisection.trace import shown_as

    return outputs[name] if name in outputs else outputs[shown_as(name)]


def _runner(bundle: OpenBundle, backend: str, native_ops: bool) -> Runner:
    """What runs parts of a bundle's graph on a backend."""
    if backend in TARGETS:
        from mega_deploy.bisection.engine_parts import part_runner

        return part_runner(backend, bundle)
    folder = {"session.model_external_initializers_file_folder_path": str(bundle.path)}
    options = SessionOptions(native_ops=native_ops, config=folder)

    def run(model: ModelProto, given: Mapping[str, Array]) -> Mapping[str, Array]:
        if backend == "onnxruntime" and bundle.manifest.precision == "bfloat16":
            model = emulated(model)
        signature = part_signature(model, given)
        feeds = {spec.name: given[spec.name] for spec in signature.inputs}
        whole = model.SerializeToString()
        if backend in PROVIDERS:
            return ProviderSession(backend, whole, signature, options).run_named(feeds)
        return Session(whole, signature, options, bundle.plugins).run_named(feeds)

    return run


def part_signature(model: ModelProto, given: Mapping[str, Array]) -> Signature:
    """Of a part of a graph, for arrays of these very sizes."""
    inputs = [
        TensorSpec(value.name, given[value.name].dtype.name, given[value.name].shape) for value in model.graph.input
    ]
    return Signature(tuple(inputs), tuple(TensorSpec(value.name, "float32", ()) for value in model.graph.output))
