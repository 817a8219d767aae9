"""The benchmark: contenders in processes of their own, in alternating rounds; those that wait are stopped."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mega_deploy.bench import floor, peers
from mega_deploy.bench.contenders import OURS, TOLERANCE, Task, check_fits, lengths, save_case
from mega_deploy.bench.host import Busy, cores_for, describe
from mega_deploy.bench.process import ContenderError, Process
from mega_deploy.bench.rows import Timed, limit_row, method, ratio_rows, result_row
from mega_deploy.bench.streams import CACHED, PREFILL, WINDOW
from mega_deploy.config import Form
from mega_deploy.engines import TARGETS
from mega_deploy.errors import BundleError, MegaDeployError, OptionError
from mega_deploy.runtime import OpenBundle
from mega_deploy.runtime.library import find_engine, here
from mega_deploy.runtime.session import BACKENDS
from mega_deploy.signature import Range

Report = dict[str, Any]
MIN_ROUNDS = 3
MIN_SAMPLES = 50
MOST_CALLS = 1000


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the benchmark is run."""

    backends: tuple[str, ...] = ("onnxruntime",)
    peers: bool = False
    limit: bool = True
    """Whether the limits of the machine are measured as well."""
    threads: int | None = None
    """That share the work of a call; None: one for each physical core."""
    rounds: int = 10
    turn_seconds: float = 0.4
    """How long a contender is timed in a round, at the least."""
    frames: int = 10_000
    """That our streams are timed for in all rounds together, at the least: what is rare shows in many."""
    timeout: float = 600.0
    """Seconds that one step of a contender may take: to be prepared, to be ready, to be timed in one round."""

    def __post_init__(self) -> None:
        for backend in self.backends:
            if backend not in BACKENDS:
                raise OptionError(f"there is no backend {backend!r}; this version has {', '.join(BACKENDS)}")
        if self.rounds < MIN_ROUNDS:
            raise OptionError(f"rounds must be {MIN_ROUNDS} or more, got {self.rounds}")
        if self.frames < 1:
            raise OptionError(f"frames must be 1 or more, got {self.frames}")
        for name in ("turn_seconds", "timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise OptionError(f"{name} must be above 0 seconds, got {getattr(self, name)}")


QUICK = {"rounds": 6, "turn_seconds": 0.2, "frames": 2_000}


@dataclass(frozen=True)
class Case:
    """One configuration at one batch and length."""

    bundle: OpenBundle
    batch: int
    seq_len: int
    form: Form = "window"

    @property
    def where(self) -> str:
        """In words, for who waits."""
        return f"batch {self.batch}, {self.seq_len} frames{', stream' if self.form == 'stream' else ''}"


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
        return bundle.stream_form.window
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
            _check_backend(case.bundle, backend)
    named = _configurations(cases)
    report: Report = {"machine": describe(cores), "method": method(options, cores), "results": [], "ratios": []}
    report |= {"limit": [], "failures": []}
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="mega-deploy-bench-") as folder:
            round_ = _Rounds(case, named[case.bundle.path], options, cores, Path(folder))
            round_.run(on_step)
            for failure in round_.failures:
                on_failure(f"{failure['contender']} ({case.where}): {failure['reason']}")
            _add(report, round_)
    return report


def _add(report: Report, rounds: _Rounds) -> None:
    timed, about = rounds.timed, rounds.about
    limits = {one.task.contender: one.rounds for one in timed if one.task.contender in floor.BUILD}
    contenders = [one for one in timed if one.task.contender not in floor.BUILD]
    counted = rounds.counted()
    limit = floor.limit_of(counted, limits) if counted and len(limits) == len(floor.BUILD) else None
    report["results"] += [result_row(one, about, limit, limits) for one in contenders]
    report["ratios"] += ratio_rows(contenders, about)
    if limit is not None and counted is not None:
        report["limit"].append(limit_row(about, limit, counted, contenders, limits))
    report["failures"] += rounds.failures
    gpus = [one.facts["gpu"] for one in contenders if one.facts.get("gpu")]
    if gpus and report["machine"]["gpu"] is None:
        report["machine"] = describe(report["machine"]["cores"], gpus[0])


def _check_backend(bundle: OpenBundle, backend: str) -> None:
    """Refuse an engine that is not there or cannot run here, before anything is timed."""
    if backend in TARGETS:
        from mega_deploy.engines import refuse

        engine = find_engine(bundle, backend)
        refuse(engine, here(engine))


def _configurations(cases: Sequence[Case]) -> dict[Path, dict[str, Any]]:
    """What the rows of each bundle say of it: its manifest's config, and what tells it from others of the same."""
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


@dataclass
class _Rounds:
    """All contenders on one case."""

    case: Case
    config: Mapping[str, Any]
    options: Options
    cores: list[int]
    folder: Path
    timed: list[Timed] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def about(self) -> dict[str, Any]:
        """What all rows of this case begin with."""
        case = self.case
        return {"form": case.form, "config": dict(self.config), "batch": case.batch, "seq_len": case.seq_len}

    def counted(self) -> dict[str, Any] | None:
        path = self.folder / floor.COUNTED
        return json.loads(path.read_text("utf-8")) if path.exists() else None

    def run(self, on_step: Callable[[str], None]) -> None:
        case, where = self.case, self.case.where
        on_step(f"{where}: prepare the inputs")
        save_case(case.bundle, case.batch, case.seq_len, self.folder, case.form)
        with self._closing():
            for task in self._stream_tasks() if case.form == "stream" else self._tasks():
                on_step(f"{where}: {task.contender} gets ready")
                with self._guarded(task):
                    self.timed.append(self._start(task))
            for number in range(self.options.rounds):
                on_step(f"{where}: round {number + 1} of {self.options.rounds}")
                # There and back: what changes steadily meets all contenders alike.
                for one in list(self.timed if number % 2 == 0 else reversed(self.timed)):
                    with self._guarded(one.task):
                        self._turn(one)
            for one in list(self.timed):
                with self._guarded(one.task):
                    one.process.resume()
                    one.facts |= one.process.ask({}, self.options.timeout)

    def _tasks(self) -> Iterator[Task]:
        on_cpu = [backend for backend in self.options.backends if backend not in TARGETS]
        on_gpu = [backend for backend in self.options.backends if backend in TARGETS]
        for backend in on_cpu:
            yield self._task(OURS, backend)
        for backend in on_gpu:
            yield self._task(OURS, backend)
            yield self._task(OURS, backend, cuda_graph=True)
        if self.options.limit and on_cpu:
            for name in floor.BUILD:
                yield self._task(name, "onnxruntime")
        if self.options.peers:
            for name in peers.available("cpu") if on_cpu else ():
                yield self._task(name, name.partition("-")[0])
            for name in peers.available("cuda") if on_gpu else ():
                yield self._task(name, "tensorrt" if name == "tensorrt-naive" else "torch-cuda")

    def _stream_tasks(self) -> Iterator[Task]:
        for backend in self.options.backends:
            yield self._task(OURS, backend)
        if "onnxruntime" not in self.options.backends:
            return  # what follows is of the CPU
        yield self._task(PREFILL, "onnxruntime")
        if "window" in self.case.bundle.forms:
            yield self._task(WINDOW, "onnxruntime")
        for name in floor.BUILD if self.options.limit else ():
            yield self._task(name, "onnxruntime")
        if self.options.peers:
            yield self._task(CACHED, "torch")

    def _task(self, contender: str, backend: str, *, cuda_graph: bool = False) -> Task:
        limit = TOLERANCE
        if contender in (OURS, WINDOW, PREFILL):
            limit = max(float(parity.get("limit", 0)) for parity in self._parities())
        return Task(
            contender,
            backend,
            os.fspath(self.case.bundle.path.resolve()),
            self.case.batch,
            self.case.seq_len,
            tuple(self.cores),
            os.fspath(self.folder),
            max(TOLERANCE, limit),
            cuda_graph,
            self.case.form,
        )

    def _parities(self) -> list[Mapping[str, Any]]:
        """Of the bundle's forms: what each may be off by."""
        manifest = self.case.bundle.manifest
        return [manifest.parity, *([manifest.stream.parity] if manifest.stream else [])]

    def _start(self, task: Task) -> Timed:
        """Prepare a contender, and start it up to the point where it is warm; it is stopped then."""
        job = {"task": task.to_json()}
        if task.contender in (floor.FIRST, *peers.BUILD):
            preparing = Process(task.contender, {"job": "prepare", **job}, task.threads)
            try:
                preparing.answer(self.options.timeout)
            finally:
                preparing.close()
        process = Process(task.contender, {"job": "time", **job}, task.threads)
        try:
            facts = process.answer(self.options.timeout)
            process.pause()
        except BaseException:
            process.close(at_once=True)
            raise
        wanted = self.options.turn_seconds / facts["warm_up"]["call_seconds"]
        least = 1 if task.contender in floor.BUILD else math.ceil(MIN_SAMPLES / self.options.rounds)
        calls = min(MOST_CALLS, max(least, math.ceil(wanted)))
        if task.contender == OURS and task.form == "stream":
            calls = max(calls, math.ceil(self.options.frames / self.options.rounds / task.batch))
        return Timed(task, process, facts, calls)

    def _turn(self, one: Timed) -> None:
        before = Busy.read(self.cores)
        one.process.resume()
        answer = one.process.ask({"calls": one.calls}, self.options.timeout)
        one.process.pause()
        one.add(answer, None if before is None else before.until(Busy.read(self.cores)))

    @contextmanager
    def _guarded(self, task: Task) -> Iterator[None]:
        """A contender that fails is taken out; the others go on."""
        try:
            yield
        except ContenderError as error:
            self._drop(task, error)

    def _drop(self, task: Task, error: MegaDeployError) -> None:
        for one in [one for one in self.timed if one.task == task]:
            one.process.close(at_once=True)
            self.timed.remove(one)
        row = {"contender": task.contender, "backend": task.backend, **self.about}
        self.failures.append({**row, "reason": str(error), "exit_code": error.exit_code})

    @contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        finally:
            for one in self.timed:
                one.process.close()


def check_ours(report: Report) -> None:
    """Fail where a bundle itself could not be timed; what was timed stands in the report all the same.

    Raises:
        MegaDeployError: of the exit code that the contender's own error has.
    """
    for failure in report["failures"]:
        if failure["contender"] == OURS:
            where = f"{failure['backend']}, batch {failure['batch']}, {failure['seq_len']} frames"
            raise ContenderError(f"{OURS} ({where}): {failure['reason']}", failure["exit_code"])
