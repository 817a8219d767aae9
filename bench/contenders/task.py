"""What is timed side by side: a bundle's sessions, the ways in which one would run the trained model instead (`peers`),
and what bounds them all (`floor`). All get the same cores, threads and inputs, and are checked before they are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mega_deploy.bench.measure.latency import sample
from mega_deploy.bundle.engines import TARGETS
from mega_deploy.config.common import Form
from mega_deploy.errors import InputError, OptionError
from mega_deploy.files.npy import load_arrays, save_arrays
from mega_deploy.parity import Pool
from mega_deploy.runtime import OpenBundle
from mega_deploy.signature import SEQUENCE_AXES, Range, TensorSpec

if TYPE_CHECKING:
    from mega_deploy.parity import Reference

from mega_deploy.arrays import Array

Outputs = Mapping[str, Array] | Sequence[Array]
OURS = "mega-deploy"
CASE = "case.npz"
# float32 contenders differ from the trained model in float64 by 1e-6 or less; another model differs by 1 or so.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Task:
    """One contender on one configuration."""

    contender: str
    backend: str
    bundle: str
    batch: int
    seq_len: int
    cores: tuple[int, ...]
    folder: str
    """Holds what is prepared for this configuration: CASE, exports, profiles."""
    tolerance: float = TOLERANCE
    """The largest relative error (l2) that its outputs may have."""
    cuda_graph: bool = False
    """Of engines: whether the launches are recorded once and replayed."""
    form: Form = "window"
    """Of the bundle; of a stream `seq_len` is what streams.frames_of gives, and the batch the number of streams."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Task:
        return cls(**{**value, "cores": tuple(value["cores"])})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def threads(self) -> int:
        """That share the work of a call, each with a core."""
        return len(self.cores)

    @property
    def place(self) -> Path:
        """`folder` as a path."""
        return Path(self.folder)


@dataclass(frozen=True)
class Contender:
    """A contender that is ready."""

    call: Callable[[], Outputs]
    """One batch; its outputs in the signature's order, or by name."""
    settings: str
    """How it is set up, in words."""
    measure: Callable[[int], tuple[list[float], dict[str, Any]]] | None = None
    """So many calls: seconds of each, and what else was measured; None: `call` is timed by the clock on the wall."""
    facts: Mapping[str, Any] | None = None
    """What else is to be known of it, such as the GPU."""
    check: Callable[[], Outputs] | None = None
    """Gives what is held against the trained model's outputs; None: `call` does."""

    def sample(self, count: int) -> tuple[list[float], dict[str, Any]]:
        """Seconds of each of `count` calls, and what else was measured."""
        return self.measure(count) if self.measure else (sample(self.call, count), {})


def build(task: Task, feeds: Mapping[str, Array]) -> Contender:
    """Load what `prepare` made, up to the point where a call can be timed.

    Raises:
        OptionError: there is no such contender.
    """
    from mega_deploy.bench.contenders import floor, peers, streams
    from mega_deploy.bench.suites import lra_text as suite

    windows = {OURS: open_ours, **peers.BUILD, **suite.BUILD}
    known = {**(streams.BUILD if task.form == "stream" else windows), **floor.BUILD}
    if task.contender not in known:
        raise OptionError(f"there is no contender {task.contender!r}; there are {', '.join(known)}")
    return known[task.contender](task, feeds)


def open_ours(task: Task, feeds: Mapping[str, Array]) -> Contender:
    """A bundle's own session, or engine."""
    bundle = OpenBundle.open(task.bundle)
    if task.backend in TARGETS:
        from mega_deploy.bench.contenders.gpu import engine_contender

        return engine_contender(bundle, task, feeds)
    session = bundle.session(task.backend, threads=task.threads)
    native = f", native {', '.join(session.native_ops)}" if session.native_ops else ""
    inputs = dict(feeds)
    return Contender(lambda: session.run_named(inputs), f"{', '.join(session.providers)}{native}")


def save_case(bundle: OpenBundle, batch: int, seq_len: int, folder: Path, form: Form = "window") -> None:
    """Write inputs of a configuration, and what the trained model in float64 gives for them, to CASE.

    They are random windows of the bundle's parity reference, over again where the batch is larger; where the reference
    has none of this length, the trained model is run. For a stream, see streams.recorded.

    Raises:
        MissingComponentError: the trained model must be run, and torch is not installed.
    """
    if form == "stream":
        from mega_deploy.bench.contenders.streams import recorded

        save_arrays(folder / CASE, recorded(bundle.reference(form), bundle, batch))
        return
    reference = bundle.reference()
    arrays = _recorded(reference, bundle.manifest.signature.inputs, batch, seq_len)
    if arrays is None:
        from mega_deploy.bench.contenders.torch_peers import run_trained

        arrays = run_trained(bundle, batch, seq_len)
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
    if form == "stream":
        from mega_deploy.bench.contenders.streams import frames_of

        if seq_len != (own := frames_of(bundle)):
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
