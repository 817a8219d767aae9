"""Holding a bundle's backend on this machine against the trained model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from mega_deploy.arrays import Array
from mega_deploy.bundle import MODEL
from mega_deploy.errors import OptionError, require
from mega_deploy.files.npy import load_arrays
from mega_deploy.parity import Reference, Report
from mega_deploy.runtime import OpenBundle, find_backend, open_bundle
from mega_deploy.runtime.compare import compare, compare_blocks, compare_stream
from mega_deploy.runtime.streams.prefill import whole_sequences
from mega_deploy.signature import Range

PathLike = str | os.PathLike[str]
MAX_SEED = 2**32 - 1


def validate(
    bundle: OpenBundle | PathLike,
    *,
    backend: str = "onnxruntime",
    native_ops: bool = True,
    inputs: PathLike | Array | Mapping[str, Array] | None = None,
    samples: int | None = None,
    seed: int | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Report:
    """Hold a backend on this machine against the trained model; of a bundle that is a stream too, both forms.

    Without `inputs`, `samples` and `seed` the cases recorded at export are run, for which no torch is needed; with any
    of them the trained model, whose weights the bundle holds, is run anew.

    Args:
        bundle: opened, or its path.
        backend: what is compared with the trained model: see OpenBundle.session.
        native_ops: whether native kernels serve our operators on onnxruntime's CPU provider.
        inputs: of one's own: an array, arrays by name, or the path of an .npz or .npy that holds them.
        samples: number of random windows (default 8).
        seed: of the random windows (default 0).
        on_step: called with the name of each step as it begins.

    Returns:
        The report; its `passed` is the verdict.

    Raises:
        InputError: an option or input does not fit.
        MissingComponentError: the backend, or torch where the trained model must be run, is not installed.
    """
    if not isinstance(bundle, OpenBundle):
        bundle = open_bundle(bundle)
    fresh = inputs is not None or samples is not None or seed is not None
    if fresh:
        require("torch", "export", "validating on fresh inputs")
        _check_choice(inputs, samples, seed)
    reports = []
    for form in bundle.forms_on(backend):
        if fresh:
            on_step("run the trained model in float64")
            reference = (_fresh_reference if form == "window" else _fresh_stream)(bundle, inputs, samples, seed)
        else:
            reference = bundle.reference(form)
        precision = bundle.manifest.precision

        def on_case(case: str) -> None:
            on_step(f"compare: {case}")

        if form == "stream":
            reports.append(compare_stream(bundle.parity_stream(backend), reference, precision, on_case))
            continue
        session = bundle.parity_session(backend, native_ops=native_ops)
        report = compare(session, reference, precision, on_case)
        if find_backend(backend).shows_blocks:  # of the others, and of streams, bisection finds what is wrong
            blocks = compare_blocks(bundle.graph(MODEL), bundle.manifest.signature, reference)
            report = dataclasses.replace(report, blocks=blocks)
        reports.append(report)
    return reports[0] if len(reports) == 1 else _together(*reports)


def _together(window: Report, stream: Report) -> Report:
    """One verdict on both forms of a bundle, which says of the stream's parts that they are."""
    named = (dataclasses.replace(case, name=f"stream: {case.name}") for case in stream.cases)
    return dataclasses.replace(
        window,
        cases=(*window.cases, *named),
        left_out=(*window.left_out, *(f"stream: {name}" for name in stream.left_out)),
        sampled=(*window.sampled, *(f"stream: {phrase}" for phrase in stream.sampled)),
    )


def _check_choice(inputs: object, samples: int | None, seed: int | None) -> None:
    for name, value, least in (("samples", samples, 1), ("seed", seed, 0)):
        if value is not None and (type(value) is not int or not least <= value <= MAX_SEED):
            raise OptionError(f"{name} must be a whole number from {least} to {MAX_SEED}, got {value!r}")
    if inputs is not None and (samples is not None or seed is not None):
        raise OptionError("samples and seed are for random inputs; give them or inputs, not both")


def _fresh_stream(
    bundle: OpenBundle, inputs: PathLike | Array | Mapping[str, Array] | None, samples: int | None, seed: int | None
) -> Reference:
    from mega_deploy.checkpoints.bundled import load_trained
    from mega_deploy.exporters.families import family_of
    from mega_deploy.exporters.reference.streams import STREAM_SAMPLES, record_stream, record_stream_for

    form, precision = bundle.stream_form, bundle.manifest.precision
    family, length = family_of(load_trained(bundle)), form.length
    if inputs is None:
        batch = form.step.inputs[0].dims[0]
        assert isinstance(batch, Range)
        most, samples = batch.max, samples or STREAM_SAMPLES
        return record_stream(family, length, most, samples=samples, seed=seed or 0, precision=precision)
    if isinstance(inputs, str | os.PathLike):
        inputs = load_arrays(Path(inputs), check=whole_sequences(form).look)
    return record_stream_for(family, length, whole_sequences(form).feeds(inputs), precision=precision)


def _fresh_reference(
    bundle: OpenBundle, inputs: PathLike | Array | Mapping[str, Array] | None, samples: int | None, seed: int | None
) -> Reference:
    from mega_deploy.checkpoints.bundled import load_trained
    from mega_deploy.exporters.families import family_of
    from mega_deploy.exporters.reference.recorder import SAMPLES, record, record_for

    signature = bundle.manifest.signature
    family = family_of(load_trained(bundle))
    recorded = bundle.reference()
    names = [block.name for block in recorded.blocks]
    if inputs is None:
        return record(
            family,
            signature,
            names,
            samples=samples or SAMPLES,
            seed=seed or 0,
            precision=recorded.precision,
            keep_float32=recorded.kept,
        )
    if isinstance(inputs, str | os.PathLike):
        inputs = load_arrays(Path(inputs), check=signature.look)
    return record_for(
        family, signature, names, signature.feeds(inputs), precision=recorded.precision, keep_float32=recorded.kept
    )
