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
from typing import TYPE_CHECKING

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.bisection.report import Bisection, Value
from mega_deploy.bundle import MODEL
from mega_deploy.errors import BundleError, require
from mega_deploy.parity import Reference
from mega_deploy.runtime import OpenBundle, SessionOptions, find_backend, open_bundle
from mega_deploy.runtime.compare import compare
from mega_deploy.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto

Runner = Callable[["ModelProto", Mapping[str, Array]], Mapping[str, Array]]
"""Runs a model on arrays by name; its outputs are all float32."""


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
    from mega_deploy.bisection.rebuild_graph import rebuild_graph
    from mega_deploy.bisection.trace import Trace, apart, excerpt, roundoffs, typed
    from mega_deploy.exporters.save_graph import load_whole

    if not isinstance(bundle, OpenBundle):
        bundle = open_bundle(bundle)
    on_step("compare the outputs")
    session = bundle.parity_session(backend, native_ops=native_ops)
    reference, precision = bundle.reference(), bundle.manifest.precision
    parity = compare(session, reference, precision)
    feeds = _feeds(reference, parity.worst.name)
    on_step("run the trained model in float64")
    rebuilt = rebuild_graph(bundle, reference.kept)
    deployed = typed(load_whole(bundle.graph(MODEL)))
    compared = [*rebuilt.blocks, *(spec.name for spec in bundle.manifest.signature.outputs)]
    trace = Trace(rebuilt.exact)
    made = {name: node for node in deployed.graph.node for name in node.output}
    _check_names(bundle, compared, made)
    exact = trace.run(feeds)
    run = _runner(bundle, backend, native_ops)
    rounding = roundoffs(deployed, exact)

    def compare_values(given: dict[str, Array], names: Sequence[str], truth: Mapping[str, Array]) -> tuple[Value, ...]:
        got = run(excerpt(deployed, [*given], names), given)
        floors = trace.floors(given, rounding, truth)
        return tuple(
            Value(name, made[name].name, made[name].op_type, apart(_shown(got, name), truth[name]), floors[name])
            for name in names
        )

    on_step("compare the blocks")
    blocks = compare_values(feeds, compared, exact)
    found = Bisection(
        session.backend,
        precision,
        tuple(session.native_ops),
        parity.passed,
        parity.worst.name,
        blocks,
        spoilt=tuple(sorted(rebuilt.spoilt(deployed))),
    )
    bad = next((index for index, value in enumerate(blocks) if not value.passed), None)
    if bad is None:
        return found
    on_step(f"look into {compared[bad]}")
    before = rebuilt.blocks[:bad]  # a decoder's layer reads the encoder's last as well as the one before it
    given = {**feeds, **{name: exact[name].astype(np.float32) for name in before}}
    truth = trace.run(given)
    names = _inside(deployed, list(given), compared[bad], truth)
    block = compared[bad].removesuffix(".output") if bad < len(rebuilt.blocks) else "output"
    return dataclasses.replace(found, block=block, values=compare_values(given, names, truth))


def _check_names(bundle: OpenBundle, wanted: Sequence[str], made: Mapping[str, object]) -> None:
    """Refuse a graph that lacks values which this version's exports have."""
    if absent := [name for name in wanted if name not in made]:
        raise BundleError(
            f"{bundle.path} was written by another mega-deploy ({dict(bundle.manifest.tools).get('mega-deploy')}): its "
            f"graph has no {absent[0]}; export it anew"
        )


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
    load = find_backend(backend).load_part
    if load is None:
        from mega_deploy.bisection.engine_parts import part_runner

        return part_runner(backend, bundle)
    options = SessionOptions(native_ops=native_ops, check_outputs=False)  # what is wrong is to be seen

    def run(model: ModelProto, given: Mapping[str, Array]) -> Mapping[str, Array]:
        signature = part_signature(model, given)
        feeds = {spec.name: given[spec.name] for spec in signature.inputs}
        return load(bundle, model, signature, options).run_named(feeds)

    return run


def part_signature(model: ModelProto, given: Mapping[str, Array]) -> Signature:
    """What a part of a graph takes, arrays of these very sizes, and gives."""
    inputs = [
        TensorSpec(value.name, given[value.name].dtype.name, given[value.name].shape) for value in model.graph.input
    ]
    return Signature(tuple(inputs), tuple(TensorSpec(value.name, "float32", ()) for value in model.graph.output))
