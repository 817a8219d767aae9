"""Parity cases as Polygraphy keeps them: inputs and reference outputs in its own JSON, tolerances as its options.

Polygraphy compares one iteration after the other, an iteration being one call of the model. A case of a window is an
iteration for each batch. A case of a stream is one for each of some steps: the frame and the state before it go in, as
onnxruntime carried it there, and the step's outputs are compared; the new state is not, for the trained form has none.

The tolerances are absolute, from the case's limits and its reference as a whole. So a backend that passes `validate`
passes here. One iteration of several may have all the error that the case may have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.config.common import Form, Precision
from mega_deploy.errors import require
from mega_deploy.files.writing import write_text
from mega_deploy.parity import Case, Error, Pool, Reference, batches, limit_for
from mega_deploy.runtime import StreamSession

# Of a stream's sequence: each step's state is as large as the stream's.
MAX_STEPS = 8
INPUTS, OUTPUTS, KEEP_STEPS = "inputs.json", "outputs.json", "keep_steps.py"
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Tolerance:
    """How far one output may be from its reference in one iteration."""

    l2: float
    """The L2 norm of the difference."""
    max_abs: float
    """The largest absolute difference; infinite where there is no limit to it."""


@dataclass(frozen=True)
class WrittenCase:
    """A parity case that was written for Polygraphy."""

    name: str
    """As the reference has it."""
    form: Form
    folder: str
    """Relative to the folder that holds all, with forward slashes."""
    batch: int
    iterations: int
    steps: tuple[int, ...]
    """The steps of a stream that the iterations are, in each batch; none for a window's."""
    tolerances: Mapping[str, Tolerance]
    """By the output's name."""
    snr: float
    """The least ratio of signal to noise that the limit allows, in decibels."""
    kept_steps: bool
    """Whether the reference has some steps of an output alone, which a script beside it picks."""

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        return {
            "name": self.name,
            "form": self.form,
            "folder": self.folder,
            "batch": self.batch,
            "iterations": self.iterations,
            "steps": list(self.steps),
            "tolerances": {
                name: {"l2": one.l2, "max_abs": one.max_abs if np.isfinite(one.max_abs) else None}
                for name, one in self.tolerances.items()
            },
        }


def write_window_case(
    root: Path, folder: str, reference: Reference, case: Case, *, precision: Precision
) -> WrittenCase:
    """Write a case of a window's reference, an iteration for each batch.

    Args:
        root: the folder that holds all.
        folder: the case's own, relative to it.
        reference: that the case is of.
        case: one of its cases.
        precision: of the bundle.
    """
    pool = reference.pools[case.pool]
    wanted = [pool.want(rows) for rows in batches(case.rows, case.batch)]
    feeds = list(reference.feeds(case))
    _save(root / folder, feeds, wanted)
    if pool.steps:
        _save_steps(root / folder, pool.steps)
    limit = limit_for(case.floor, precision)
    tolerances = _tolerances(limit, pool.want(case.rows))
    return WrittenCase(
        case.name, "window", folder, case.batch, len(feeds), (), tolerances, _decibels(limit), bool(pool.steps)
    )


def write_stream_case(
    root: Path, folder: str, reference: Reference, case: Case, *, precision: Precision, stream: StreamSession
) -> WrittenCase:
    """Write a case of a stream's reference, an iteration for each of at most MAX_STEPS steps of each batch.

    Args:
        root: the folder that holds all.
        folder: the case's own, relative to it.
        reference: that the case is of.
        case: one of its cases.
        precision: of the bundle.
        stream: whose model carries the state; its own streams stay as they are.
    """
    pool = reference.pools[case.pool]
    steps = _chosen_steps(pool, case.prefilled)
    feeds: list[Arrays] = []
    wanted: list[Arrays] = []
    for rows in batches(case.rows, case.batch):
        arrays = {name: array[rows] for name, array in pool.inputs.items()}
        feeds += _step_feeds(stream.another(len(rows)), arrays, case.prefilled, steps)
        wanted += [
            {name: array[rows, pool.kept_index(name, step)] for name, array in pool.outputs.items()} for step in steps
        ]
    _save(root / folder, feeds, wanted)
    limit = limit_for(case.floor, precision)
    tolerances = _tolerances(limit, pool.want(case.rows, max(0, case.prefilled - 1)))
    return WrittenCase(
        case.name, "stream", folder, case.batch, len(feeds), tuple(steps), tolerances, _decibels(limit), False
    )


def _step_feeds(stream: StreamSession, arrays: Arrays, prefilled: int, steps: Sequence[int]) -> Iterator[Arrays]:
    """What the step graph takes at each of some steps of whole sequences: the frame, and the state before it."""
    if stream.source is not None:
        stream.encode({spec.name: arrays.pop(spec.name) for spec in stream.source.inputs if spec.name in arrays})
    if prefilled:
        stream.prefill_named({name: array[:, :prefilled] for name, array in arrays.items()})
    for step in range(prefilled, max(steps) + 1):
        frame = {name: array[:, step] for name, array in arrays.items()}
        if step in steps:
            yield {**frame, **stream.state}
        stream.step_named(frame)


def _chosen_steps(pool: Pool, first: int) -> list[int]:
    """Some of a sequence's steps from `first` on that every output is kept at, the first and the last among them."""
    kept = set(range(first, pool.length))
    for steps in pool.steps.values():
        kept &= set(steps.tolist())
    known = sorted(kept)
    chosen = np.linspace(0, len(known) - 1, min(MAX_STEPS, len(known))).round().astype(int)
    return [known[index] for index in chosen]


def _tolerances(limit: Error, want: Mapping[str, Array]) -> dict[str, Tolerance]:
    """The limit as absolute tolerances: `parity.measure` divides by the norm of the reference, by 1 where it is 0."""
    found = {}
    for name, array in want.items():
        norm = float(np.linalg.norm(array)) or 1.0
        found[name] = Tolerance(limit.relative_l2 * norm, limit.max_over_rms * norm / array.size**0.5)
    return found


def _decibels(limit: Error) -> float:
    """A relative L2 error as a ratio of signal to noise."""
    return -20 * float(np.log10(limit.relative_l2))


def _save(folder: Path, feeds: list[Arrays], wanted: list[Arrays]) -> None:
    require("polygraphy", "debug", "writing Polygraphy's files")
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json
    from polygraphy.logger import G_LOGGER

    folder.mkdir(parents=True)
    with G_LOGGER.verbosity(G_LOGGER.ERROR):  # it logs to stdout
        save_json(feeds, str(folder / INPUTS))
        results = RunResults()
        results.add(wanted, runner_name="the trained model in float64")
        results.save(str(folder / OUTPUTS))


def _save_steps(folder: Path, steps: Mapping[str, Array]) -> None:
    """Write the script that picks the steps which the reference has, for Polygraphy's --postprocess-func-script."""
    kept = {str(name): [int(step) for step in array] for name, array in steps.items()}
    write_text(
        folder / KEEP_STEPS,
        '"""Large outputs at the steps that the reference has."""\n\nimport numpy as np\n\n'
        f"STEPS = {kept!r}\n\n\n"
        "def postprocess_outputs(iteration):\n"
        "    for name, steps in STEPS.items():\n"
        "        if iteration[name].shape[1] != len(steps):  # the reference has no others\n"
        "            iteration[name] = np.ascontiguousarray(iteration[name][:, steps])\n"
        "    return iteration\n",
    )
