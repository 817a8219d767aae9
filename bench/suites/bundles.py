"""The benchmark: bundles on every backend that is asked for, beside their peers and the machine's limit."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mega_deploy.bench.contenders import peers
from mega_deploy.bench.contenders.case import check_fits, frames_of, lengths, load_case, save_case, takes_whole
from mega_deploy.bench.contenders.limits import floor
from mega_deploy.bench.contenders.task import (
    CACHED,
    ENCODE,
    GEMM_FLOOR,
    LIMITS,
    NO_STEPS,
    OURS,
    PREFILL,
    TOLERANCE,
    WINDOW,
    Task,
)
from mega_deploy.bench.measure.host import describe
from mega_deploy.bench.measure.process import ContenderError
from mega_deploy.bench.measure.rounds import Rounds
from mega_deploy.bench.report.rows import limit_row, method, ratio_rows, result_row
from mega_deploy.bench.suites.options import Options
from mega_deploy.bundle import MODEL, STEP
from mega_deploy.config.common import Form
from mega_deploy.errors import BundleError
from mega_deploy.machine.cores import cores_for
from mega_deploy.runtime import OpenBundle, find_backend
from mega_deploy.runtime.options import SessionOptions
from mega_deploy.signature import Range

Report = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One configuration at one batch and length."""

    bundle: OpenBundle
    batch: int
    seq_len: int
    form: Form = "window"

    @property
    def where(self) -> str:
        """The batch and the length in words, for who waits."""
        return f"batch {self.batch}, {self.seq_len} frames{', stream' if self.form == 'stream' else ''}"

    @property
    def parity_limit(self) -> float:
        """The largest error that parity allows the bundle's forms."""
        manifest = self.bundle.manifest
        parities = [manifest.parity, *([manifest.stream.parity] if manifest.stream else [])]
        return max(TOLERANCE, *(float(parity.get("limit", 0)) for parity in parities))


def cases(
    bundles: Sequence[Path], batches: Sequence[int], seq_lens: Sequence[int] = (), forms: Sequence[Form] = ()
) -> list[Case]:
    """Every bundle at every batch and length; where no lengths are given at the one that it is tuned for.

    Args:
        bundles: paths.
        batches: windows of a call, or streams that are served at once.
        seq_lens: of windows.
        forms: of each bundle; by default the first that it has, as `run` takes it.

    Raises:
        BundleError: a bundle is none, or damaged, or has not the form.
        InputError: it does not take a batch or a length.
    """
    found = []
    for path in bundles:
        bundle = OpenBundle.open(path)
        for form in forms or bundle.forms[:1]:
            if form == "window" and form not in bundle.forms:
                raise BundleError(
                    f"{path} holds only a stream; export it with --form both, or time it with --form stream"
                )
            for seq_len in seq_lens or (_usual_length(bundle, form),):
                for batch in batches:
                    check_fits(bundle, batch, seq_len, form)
                    found.append(Case(bundle, batch, seq_len, form))
    return found


def _usual_length(bundle: OpenBundle, form: Form) -> int:
    if form == "stream":
        return frames_of(bundle)
    own = lengths(bundle)
    return own.opt if isinstance(own, Range) else own or 1


def run(
    cases: Sequence[Case],
    options: Options,
    on_step: Callable[[str], None] = lambda step: None,
    on_failure: Callable[[str], None] = lambda line: None,
) -> Report:
    """Time all contenders on all cases.

    Args:
        cases: what is timed.
        options: how.
        on_step: called with the name of each step as it begins.
        on_failure: called with one line for each contender that could not be timed; the others go on.

    Returns:
        The report as `--json-file` has it: "machine", "method", "results", "ratios", "limit", "failures".

    Raises:
        BundleError: a bundle lacks an engine that was asked for.
        MissingComponentError: this machine lacks a backend's GPU or library.
    """
    cores = cores_for(options.threads)
    for case in cases:
        for backend in options.backends:
            _check_backend(case, backend)
    named = _configurations(cases)
    report: Report = {"machine": describe(cores), "method": method(options, cores), "results": [], "ratios": []}
    report |= {"limit": [], "failures": []}
    for case in cases:
        about = {"form": case.form, "config": named[case.bundle.path], "batch": case.batch, "seq_len": case.seq_len}
        rounds = Rounds(options, cores, about)
        with tempfile.TemporaryDirectory(prefix="mega-deploy-bench-") as folder:
            on_step(f"{case.where}: prepare the inputs")
            save_case(case.bundle, case.batch, case.seq_len, Path(folder), case.form)
            contenders = _Contenders(case, options, tuple(cores), Path(folder))
            rounds.run(contenders.tasks(), case.where, on_step)
            counted = Path(folder) / floor.COUNTED
            _add(report, rounds, json.loads(counted.read_text("utf-8")) if counted.exists() else None)
        for failure in rounds.failures:
            on_failure(f"{failure['contender']} ({case.where}): {failure['reason']}")
    return report


def _add(report: Report, rounds: Rounds, counted: dict[str, Any] | None) -> None:
    """Add what was measured on a case to the report; `counted` is what the limit's graph was found to hold."""
    timed, about = rounds.timed, rounds.about
    limits = {one.task.contender: one.rounds for one in timed if one.task.contender in LIMITS}
    contenders = [one for one in timed if one.task.contender not in LIMITS]
    limit = floor.limit_of(counted, limits) if counted and len(limits) == len(LIMITS) else None
    report["results"] += [result_row(one, about, limit, limits) for one in contenders]
    report["ratios"] += ratio_rows(contenders, about)
    if limit is not None and counted is not None:
        report["limit"].append(limit_row(about, limit, counted, contenders, limits))
    report["failures"] += rounds.failures
    gpus = [one.details["gpu"] for one in contenders if one.details.get("gpu")]
    if gpus and report["machine"]["gpu"] is None:
        report["machine"] = describe(report["machine"]["cores"], gpus[0])


def _check_backend(case: Case, backend: str) -> None:
    """Refuse an engine that is not there or cannot run here, before anything is timed."""
    find_backend(backend).check(case.bundle, STEP if case.form == "stream" else MODEL, SessionOptions())


def _configurations(cases: Sequence[Case]) -> dict[Path, dict[str, Any]]:
    """The config that rows of each bundle carry: its manifest's, with its path where two bundles have the same."""
    bundles = {case.bundle.path: case.bundle for case in cases}
    configs = {
        path: {**bundle.manifest.config, "ema": bundle.manifest.ema["lowering"], "precision": bundle.manifest.precision}
        for path, bundle in bundles.items()
    }
    texts = [json.dumps(config) for config in configs.values()]
    return {
        path: config if texts.count(json.dumps(config)) == 1 else {**config, "bundle": os.fspath(path)}
        for path, config in configs.items()
    }


@dataclass(frozen=True)
class _Contenders:
    """Everybody who takes part on one case, in the order in which they are started."""

    case: Case
    options: Options
    cores: tuple[int, ...]
    folder: Path

    def tasks(self) -> Iterator[Task]:
        """A task for each contender; what one prepares the later ones may use."""
        on_cpu = [backend for backend in self.options.backends if not find_backend(backend).needs_engine]
        on_gpu = [backend for backend in self.options.backends if find_backend(backend).needs_engine]
        stream = self.case.form == "stream"
        for backend in on_cpu:
            yield self._task(OURS, backend)
        for backend in on_gpu:
            yield self._task(OURS, backend)
            if not stream:
                yield self._task(OURS, backend, cuda_graph=True)
        if stream and "onnxruntime" in on_cpu:
            yield from (self._task(name, "onnxruntime") for name in _beside_a_stream(self.case, self.folder))
        if self.options.limit and on_cpu:
            # Preparing the first counts for all three.
            yield from (self._task(name, "onnxruntime", prepares=name == GEMM_FLOOR) for name in LIMITS)
        if self.options.peers:
            yield from self._peers(on_cpu=bool(on_cpu), on_gpu=bool(on_gpu))

    def _peers(self, *, on_cpu: bool, on_gpu: bool) -> Iterator[Task]:
        if self.case.form == "stream":
            if on_cpu:
                yield self._task(CACHED, "torch")
            return
        for name in peers.available("cpu") if on_cpu else ():
            yield self._task(name, name.partition("-")[0], prepares=True)
        for name in peers.available("cuda") if on_gpu else ():
            yield self._task(name, "tensorrt" if name == "tensorrt-naive" else "torch-cuda", prepares=True)

    def _task(self, contender: str, backend: str, *, cuda_graph: bool = False, prepares: bool = False) -> Task:
        case = self.case
        return Task(
            contender,
            backend,
            os.fspath(case.bundle.path.resolve()),
            case.batch,
            case.seq_len,
            self.cores,
            os.fspath(self.folder),
            tolerance=case.parity_limit if contender in (OURS, WINDOW, *NO_STEPS) else TOLERANCE,
            cuda_graph=cuda_graph,
            form=case.form,
            prepares=prepares,
        )


def _beside_a_stream(case: Case, folder: Path) -> Iterator[str]:
    """The other contenders of a bundle with a stream: what streams are begun with, and the window for a step."""
    if case.bundle.stream_form.encode is not None:
        yield ENCODE
    yield PREFILL
    if takes_whole(case.bundle, load_case(folder).inputs):
        yield WINDOW


def check_ours(report: Report) -> None:
    """Fail where a bundle itself could not be timed; what was timed stands in the report all the same.

    Raises:
        MegaDeployError: of the exit code that the contender's own error has.
    """
    for failure in report["failures"]:
        if failure["contender"] == OURS:
            where = f"{failure['backend']}, batch {failure['batch']}, {failure['seq_len']} frames"
            raise ContenderError(f"{OURS} ({where}): {failure['reason']}", failure["exit_code"])
