"""The paper's headline on this machine: what attention in chunks, and Mega's at all, saves in time and memory.

`mega-deploy bench --suite lra-text` deploys Mega-chunk, Mega and a Transformer of the paper's sizes for byte-level
text, and lets them take turns in one runtime. Memory is the most that a contender's process ever held (loading
included) over that of a process which holds the same libraries and inputs, and no model. bench/README.md tells what
came out.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mega_deploy.bench.contenders.task import Task
from mega_deploy.bench.measure.host import describe
from mega_deploy.bench.measure.process import ContenderError
from mega_deploy.bench.measure.rounds import Rounds, Timed
from mega_deploy.bench.measure.statistics import ratio
from mega_deploy.bench.report.rows import method, result_row
from mega_deploy.bench.suites import lra
from mega_deploy.bench.suites.options import Options
from mega_deploy.errors import OptionError
from mega_deploy.machine.cores import cores_for
from mega_deploy.runtime import OpenBundle

Row = dict[str, Any]
NAMES = ("lra-text",)
CATALOGUE = "mega_deploy.bench.suites.lra_contenders"
CONTENDERS = (lra.BASELINE, *lra.MEGAS, *lra.TRANSFORMERS)
PAPER = {"mega-chunk": {"speed": 5.5, "memory": 0.13}, "mega": {"speed": 2.9, "memory": 0.31}}
"""Speed and memory as shares of the Transformer's, in training on a GPU at 4096 steps (arXiv 2209.10655, table 2)."""
MEMORY = (
    "the peak of a contender's process, loading included, less that of a process with the same libraries, "
    "runtime, bundle and inputs, and a graph that does nothing"
)


@dataclass(frozen=True)
class Plan:
    """What a suite times: every contender at each length."""

    name: str
    steps: tuple[int, ...]
    batches: tuple[int, ...]


def plan(name: str, steps: Sequence[int], batches: Sequence[int], *, quick: bool) -> Plan:
    """A suite by its name.

    Args:
        name: of NAMES.
        steps: lengths; by default the paper's, or where `quick` shorter ones.
        batches: sequences of a call.
        quick: see `steps`.

    Raises:
        OptionError: there is no such suite, or a length is no whole number of chunks.
    """
    if name not in NAMES:
        raise OptionError(f"there is no suite {name!r}; there is {', '.join(NAMES)}")
    chosen = tuple(steps) or (lra.QUICK_STEPS if quick else lra.STEPS,)
    if odd := [length for length in chosen if length % lra.CHUNK]:
        raise OptionError(f"--seq-len of {name} must be a multiple of {lra.CHUNK}, the chunks of Mega, got {odd[0]}")
    return Plan(name, chosen, tuple(batches))


def run(
    planned: Plan,
    options: Options,
    on_step: Callable[[str], None] = lambda step: None,
    on_failure: Callable[[str], None] = lambda line: None,
) -> Row:
    """Time a suite.

    Args:
        planned: of `plan`.
        options: how; its backends, peers and limit are not a suite's.
        on_step: called with the name of each step as it begins.
        on_failure: called with one line for each contender that could not be timed; the others go on.

    Returns:
        A report like bundles.run's, with "suite": its rows hold speed and memory of each Mega over each Transformer.

    Raises:
        MissingComponentError: an export is needed, and torch is not installed.
    """
    cores = cores_for(options.threads)
    report: Row = {"machine": describe(cores), "method": {**method(options, cores), "memory": MEMORY}}
    report |= {"results": [], "ratios": [], "limit": [], "failures": []}
    report["suite"] = {"name": planned.name, "rows": []}
    for steps in planned.steps:
        for batch in planned.batches:
            where = f"batch {batch}, {steps} steps"
            about: Row = {"form": "window", "batch": batch, "seq_len": steps}
            about["config"] = {"suite": planned.name, "precision": "float32"}
            rounds = Rounds(options, cores, about)
            with tempfile.TemporaryDirectory(prefix="mega-deploy-bench-") as folder:
                rounds.run(_tasks(steps, batch, cores, Path(folder), on_step), where, on_step)
            results, compared = rows_of(rounds.timed, about)
            report["results"] += results
            report["suite"]["rows"] += compared
            report["failures"] += rounds.failures
            for failure in rounds.failures:
                on_failure(f"{failure['contender']} ({where}): {failure['reason']}")
    return report


def _tasks(steps: int, batch: int, cores: Sequence[int], folder: Path, on_step: Callable[[str], None]) -> list[Task]:
    bundles = {name: OpenBundle.open(lra.mega_bundle(name, steps, batch, on_step)) for name in lra.MEGAS}
    lra.write_cases(bundles, steps, batch, folder, on_step)
    paths = {name: os.fspath(bundle.path) for name, bundle in bundles.items()}
    return [
        Task(
            name,
            "onnxruntime",
            paths.get(name, paths["mega"]),
            batch,
            steps,
            tuple(cores),
            os.fspath(folder / name),
            catalogue=CATALOGUE,
        )
        for name in CONTENDERS
    ]


def rows_of(timed: Sequence[Timed], about: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
    """The results, with memory over that of the process without a model; and each Mega over each Transformer."""
    named = {one.task.contender: one for one in timed}
    base = named.pop(lra.BASELINE, None)
    held = {
        name: None if base is None else max(0.0, one.details["peak_rss_mb"] - base.details["peak_rss_mb"])
        for name, one in named.items()
    }
    results = [{**result_row(one, dict(about), None, {}), "memory_mb": held[name]} for name, one in named.items()]
    compared = []
    for mega in filter(named.__contains__, lra.MEGAS):
        for transformer in filter(named.__contains__, lra.TRANSFORMERS):
            ours, theirs = named[mega], named[transformer]
            compared.append(
                {
                    "contender": mega,
                    "baseline": transformer,
                    **about,
                    "speed": ratio(theirs.rounds, ours.rounds).to_json(),
                    "processor_speed": ratio([[x] for x in theirs.processor], [[x] for x in ours.processor]).to_json(),
                    "memory": _share(held[mega], held[transformer]),
                    "held_mb": held[mega],
                    "held_by_baseline_mb": held[transformer],
                    "paper": PAPER[mega],
                }
            )
    return results, compared


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def check(report: Mapping[str, Any]) -> None:
    """Fail where a Mega could not be timed.

    Raises:
        MegaDeployError: of the exit code that the contender's own error has.
    """
    for failure in report["failures"]:
        if failure["contender"] in lra.MEGAS:
            raise ContenderError(f"{failure['contender']}: {failure['reason']}", failure["exit_code"])
