"""The inputs of a configuration, and what the trained model in float64 gives for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.bench.contenders.replay import parted
from mega_deploy.bench.contenders.trained import run_trained
from mega_deploy.bench.measure.contender import Outputs
from mega_deploy.bundle import MODEL
from mega_deploy.config.common import Form
from mega_deploy.errors import InputError
from mega_deploy.files.npy import load_arrays, save_arrays
from mega_deploy.parity import Case, Pool, Reference
from mega_deploy.runtime import OpenBundle
from mega_deploy.signature import SEQUENCE_AXES, Range, TensorSpec, usual

CASE = "case.npz"


def save_case(bundle: OpenBundle, batch: int, seq_len: int, folder: Path, form: Form = "window") -> None:
    """Write inputs of a configuration, and what the trained model in float64 gives for them, to CASE.

    They are random windows of the bundle's parity reference, over again where the batch is larger; where the reference
    has none of this length, the trained model is run. For a stream, see `recorded`.

    Raises:
        MissingComponentError: the trained model must be run, and torch is not installed.
    """
    if form == "stream":
        arrays = recorded(bundle.reference(form), bundle, batch)
    else:
        found = _recorded(bundle.reference(), bundle.manifest.signature.inputs, batch, seq_len)
        arrays = run_trained(bundle, batch, seq_len) if found is None else found
    save_arrays(folder / CASE, arrays)


def _recorded(reference: Reference, inputs: Sequence[TensorSpec], batch: int, seq_len: int) -> dict[str, Array] | None:
    for case in reference.cases:
        pool = reference.pools[case.pool]
        if all(_length(spec, pool.inputs[spec.name].shape) in (seq_len, None) for spec in inputs):
            rows = [case.rows[index % len(case.rows)] for index in range(batch)]
            arrays = {f"input/{name}": array[rows] for name, array in pool.inputs.items()}
            arrays |= {f"output/{name}": array[rows] for name, array in pool.outputs.items()}
            return arrays | {f"steps/{name}": steps for name, steps in pool.steps.items()}
    return None


def _length(spec: TensorSpec, shape: Sequence[int]) -> int | None:
    return next((size for axis, size in zip(spec.axes, shape, strict=True) if axis in SEQUENCE_AXES), None)


def load_case(folder: Path) -> Pool:
    """The inputs of a configuration, and the outputs that the trained model gives in float64."""
    arrays = load_arrays(folder / CASE)
    assert isinstance(arrays, dict)  # of an .npz
    named: dict[str, dict[str, Array]] = {"input": {}, "output": {}, "steps": {}}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        named[kind][rest] = array
    return Pool(named["input"], named["output"], named["steps"])


def lengths(bundle: OpenBundle) -> Range | int | None:
    """The lengths that a bundle takes; None where its inputs have no axis of that name."""
    for spec in bundle.manifest.signature.inputs:
        for axis, dim in zip(spec.axes, spec.dims, strict=True):
            if axis in SEQUENCE_AXES:
                return dim
    return None


def check_fits(bundle: OpenBundle, batch: int, seq_len: int, form: Form = "window") -> None:
    """Refuse a batch or a length that a bundle does not take.

    Raises:
        InputError: the message names the bundle, its range and the option of `export` that widens it.
    """
    if form == "stream" and seq_len != (own := frames_of(bundle)):
        raise InputError(
            f"streams of {bundle.path} are timed over their own {own} frames, not {seq_len}; a stream is exported "
            "for so many, with --seq-len"
        )
    for spec in bundle.stream_form.step.inputs if form == "stream" else bundle.manifest.signature.inputs:
        for axis, wanted in (("batch", batch), *((axis, seq_len) for axis in SEQUENCE_AXES)):
            dim = spec.dims[spec.axes.index(axis)] if axis in spec.axes else wanted
            low, high = (dim.min, dim.max) if isinstance(dim, Range) else (dim, dim)
            if not low <= wanted <= high:
                option = "--batch-range" if axis == "batch" else "--seq-range"
                raise InputError(
                    f"{axis} {wanted} is outside what {bundle.path} takes, {low}..{high}; export it with {option}"
                )


def relative_error(outputs: Outputs, case: Pool) -> float:
    """The worst relative l2 error over the outputs of a case; infinite where a shape is another."""
    got = outputs if isinstance(outputs, Mapping) else dict(zip(case.outputs, outputs, strict=True))
    try:
        kept = case.at_kept_steps({name: np.asarray(got[name], np.float64) for name in case.outputs})
    except IndexError:  # it has fewer steps
        return float("inf")
    errors = []
    for name, value in case.outputs.items():
        if kept[name].shape != value.shape:
            return float("inf")
        error = np.linalg.norm(kept[name] - value) / (np.linalg.norm(value) or 1.0)
        errors.append(float("inf") if np.isnan(error) else float(error))
    return max(errors)


def frames_of(bundle: OpenBundle) -> int:
    """Frames of the sequence that streams are timed on: those of the bundle's window, where it has one beside them."""
    window = lengths(bundle) if "window" in bundle.forms else None
    return bundle.stream_form.length if window is None else usual(window)


def recorded(reference: Reference, bundle: OpenBundle, batch: int) -> dict[str, Array]:
    """Arrays for CASE: sequences [batch, frames, ...], with their source, and the outputs at the last frame.

    They are the random ones of the bundle's reference, over again where the batch is larger: `frames_of` the bundle, or
    as many as were recorded where that is less. Of a large vocabulary they end with a step whose outputs are kept.

    Args:
        reference: of the stream.
        bundle: that it belongs to.
        batch: streams.
    """
    steps, most = bundle.stream_form.step.inputs, frames_of(bundle)

    def frames(case: Case) -> int:
        pool = reference.pools[case.pool]
        for kept in pool.steps.values():
            return int(kept[kept < most][-1]) + 1
        return min(most, int(pool.inputs[steps[0].name].shape[1]))

    case = max(
        (case for case in reference.cases if case.name.startswith("random")),
        key=lambda case: (frames(case), len(case.rows)),
    )
    rows, length = [case.rows[index % len(case.rows)] for index in range(batch)], frames(case)
    pool, own = reference.pools[case.pool], {spec.name for spec in steps}
    inputs = {
        f"input/{name}": array[rows, :length] if name in own else array[rows] for name, array in pool.inputs.items()
    }
    return inputs | {f"output/{name}": array[:, 0] for name, array in pool.want(rows, length - 1).items()}


def takes_whole(bundle: OpenBundle, sequences: Mapping[str, Array]) -> bool:
    """Whether the bundle has a window that takes what was recorded of its stream, and computes the same.

    A window truncates its moving average where the trained model does, and a stream does not.
    """
    if "window" not in bundle.forms:
        return False
    config = bundle.manifest.config
    cut = config.get("decoder", config.get("encoder", config)).get("truncation")  # bare layers: their own
    if cut is not None and cut < next(iter(parted(bundle.stream_form.step, sequences)[0].values())).shape[1]:
        return False
    try:
        bundle.signature(MODEL).feeds(sequences)
    except InputError:
        return False
    return True
