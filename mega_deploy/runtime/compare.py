"""Holding a backend against the trained model: run the reference's cases, compare, and look into the blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.bundle import Loadable
from mega_deploy.config.common import Precision
from mega_deploy.errors import BundleError
from mega_deploy.parity import Case, CaseResult, Error, Reference, Report, handover, measure
from mega_deploy.runtime.model import Model
from mega_deploy.runtime.onnxruntime.emulation import ChangedGraph, emulated
from mega_deploy.runtime.onnxruntime.native import loadable
from mega_deploy.runtime.onnxruntime.session import Session
from mega_deploy.runtime.options import SessionOptions
from mega_deploy.runtime.streams.replay import ReplaySession
from mega_deploy.signature import Signature, TensorSpec


def compare(
    session: Model | ReplaySession,
    reference: Reference,
    precision: Precision,
    on_case: Callable[[str], None] = lambda name: None,
) -> Report:
    """The verdict on a session, without a look into its blocks.

    Args:
        session: what is judged.
        reference: the trained form's outputs in float64, and the noise floors.
        precision: of the bundle.
        on_case: called with the name of each case before it is run.
    """
    results = []
    for case in reference.cases:
        on_case(case.name)
        error = reference.error(case, (session.run_named(feeds) for feeds in reference.feeds(case)))
        results.append(CaseResult(case.name, case.batch, error, case.floor, precision))
    return Report(session.backend, precision, tuple(results), left_out=reference.left_out, sampled=reference.sampled)


def compare_stream(
    session: ReplaySession,
    reference: Reference,
    precision: Precision,
    on_case: Callable[[str], None] = lambda name: None,
) -> Report:
    """The verdict on a stream: step by step, and with most steps of each sequence taken at once.

    Many at once give no output but the last one's, from which on the second is judged. Where the session cannot take
    many at once, on engines that earlier releases built, it is judged step by step alone.
    """
    results = []

    def judge(title: str, case: Case, prefilled: int) -> None:
        on_case(title)
        outputs = (session.run_named(feeds, prefilled) for feeds in reference.feeds(case))
        error = reference.error(case, outputs, max(0, prefilled - 1))
        results.append(CaseResult(title, case.batch, error, case.floor, precision))

    for case in reference.cases:
        judge(case.name, case, case.prefilled if session.prefills else 0)
    for case in reference.cases if session.prefills else ():
        steps = reference.pools[case.pool].length
        if steps > 1:
            judge(f"{case.name}, prefilled", case, handover(steps))
    return Report(session.backend, precision, tuple(results), left_out=reference.left_out, sampled=reference.sampled)


def compare_blocks(model: Path | Loadable, signature: Signature, reference: Reference) -> tuple[CaseResult, ...]:
    """The error of the residual stream behind each block, for the first batch of the reference's first case.

    The graph is run with its inner values as outputs, for which the `onnx` package must be there; without it, or where
    the reference holds no blocks, the result is empty.
    """
    try:
        import onnx
    except ImportError:
        return ()
    if not reference.block_outputs:
        return ()
    names = [block.name for block in reference.blocks]
    inner = Signature(signature.inputs, tuple(TensorSpec(name, "float32", ()) for name in names))

    def with_blocks(proto: Any) -> Any:
        if reference.precision == "bfloat16":
            proto = emulated(proto)
        for name in names:
            proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        return proto

    session = Session(ChangedGraph(loadable(model), with_blocks), inner, SessionOptions(check_outputs=False))
    outputs = session.run_named(next(reference.feeds(reference.cases[0])))
    results = []
    for block in reference.blocks:
        want = reference.block_outputs[block.name]
        error = block_error(outputs[block.name], want)
        results.append(CaseResult(block.name, want.shape[0], error, block.floor, reference.precision))
    return tuple(results)


def block_error(got: Array, want: Array) -> Error:
    """The error of a residual stream [batch * frames, features] against its last frames, want [batch, n, features].

    Raises:
        BundleError: it has other features, or fewer frames.
    """
    batch, frames, features = want.shape
    rest = batch * features
    if got.shape[-1:] != (features,) or got.size % rest or got.size // rest < frames:
        raise BundleError(
            f"the model gives a block as {list(got.shape)}, where its parity reference has {list(want.shape)}; export "
            "it anew"
        )
    return measure(np.reshape(got, (batch, -1, features))[:, -frames:], want)
