"""Holding a backend against the trained model: run the reference's cases, compare, and look into the blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mega_deploy.config import Precision
from mega_deploy.parity import CaseResult, Error, Reference, Report, batches, measure
from mega_deploy.runtime.emulation import emulated
from mega_deploy.runtime.engine import EngineSession
from mega_deploy.runtime.session import Array, Session, SessionOptions
from mega_deploy.runtime.stepping import SteppedSession
from mega_deploy.signature import Signature, TensorSpec


def compare(
    session: Session | EngineSession | SteppedSession,
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
        error = reference.error(case, [session.run_named(feeds) for feeds in reference.feeds(case)])
        results.append(CaseResult(case.name, case.batch, error, case.floor, precision))
    return Report(session.backend, precision, tuple(results), left_out=reference.left_out, sampled=reference.sampled)


STEPPED = 16
"""The most steps of a sequence that are taken one by one where the others are taken at once."""


def compare_stream(
    session: SteppedSession,
    reference: Reference,
    precision: Precision,
    on_case: Callable[[str], None] = lambda name: None,
) -> Report:
    """The verdict on a stream: step by step, and with most steps of each sequence taken at once.

    What many at once do not give, the outputs of all but the last of them, counts as exact in the second. Where
    the session cannot take many at once, on engines that earlier releases built, it is judged step by step alone.
    """
    results = []
    for case in reference.cases:
        prefilled = case.prefilled if session.prefills else 0
        on_case(case.name)
        outputs = [session.run_named(feeds, prefilled) for feeds in reference.feeds(case)]
        error = reference.error(case, outputs, max(0, prefilled - 1))
        results.append(CaseResult(case.name, case.batch, error, case.floor, precision))
    for case in reference.cases if session.prefills else ():
        title, pool = f"{case.name}, prefilled", reference.pools[case.pool]
        steps = next(iter(pool.outputs.values())).shape[1]
        if steps == 1:
            continue
        on_case(title)
        prefilled = min(steps - 1, max(steps // 2, steps - STEPPED))
        outputs = []
        for rows, feeds in zip(batches(case.rows, case.batch), reference.feeds(case), strict=True):
            last = session.run_named(feeds, prefilled)
            want = {name: array[rows][:, : prefilled - 1] for name, array in pool.outputs.items()}
            outputs.append({name: np.concatenate([want[name], last[name]], axis=1) for name in want})
        results.append(CaseResult(title, case.batch, reference.error(case, outputs), case.floor, precision))
    return Report(session.backend, precision, tuple(results), left_out=reference.left_out, sampled=reference.sampled)


def compare_blocks(model: Path, signature: Signature, reference: Reference) -> tuple[CaseResult, ...]:
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
    options = SessionOptions(config={"session.model_external_initializers_file_folder_path": str(model.parent)})
    proto = onnx.load(model, load_external_data=False)
    if reference.precision == "bfloat16":
        proto = emulated(proto)
    for name in names:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = Session(proto.SerializeToString(), inner, options)
    outputs = session.run_named(next(reference.feeds(reference.cases[0])))
    results = []
    for block in reference.blocks:
        want = reference.block_outputs[block.name]
        error = block_error(outputs[block.name], want)
        results.append(CaseResult(block.name, want.shape[0], error, block.floor, reference.precision))
    return tuple(results)


def block_error(got: Array, want: Array) -> Error:
    """The error of a residual stream [batch * frames, features] against its last frames, want [batch, n, features]."""
    batch, frames, features = want.shape
    return measure(np.reshape(got, (batch, -1, features))[:, -frames:], want)
