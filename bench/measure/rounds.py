"""Contenders taking turns: each in a process of its own, in alternating rounds; those that wait are stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mega_deploy.bench.contenders import floor, peers
from mega_deploy.bench.contenders.task import OURS, Task
from mega_deploy.bench.measure.host import Busy
from mega_deploy.bench.measure.process import ContenderError, Process
from mega_deploy.bench.report.rows import Timed
from mega_deploy.errors import MegaDeployError, OptionError
from mega_deploy.runtime import find_backend

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
            find_backend(backend)
        if self.rounds < MIN_ROUNDS:
            raise OptionError(f"rounds must be {MIN_ROUNDS} or more, got {self.rounds}")
        if self.frames < 1:
            raise OptionError(f"frames must be 1 or more, got {self.frames}")
        for name in ("turn_seconds", "timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise OptionError(f"{name} must be above 0 seconds, got {getattr(self, name)}")


QUICK = {"rounds": 6, "turn_seconds": 0.2, "frames": 2_000}


class Rounds:
    """The rounds of some contenders.

    Args:
        options: how they are run.
        cores: that they share.
        about: what the rows of all of them begin with.
    """

    def __init__(self, options: Options, cores: Sequence[int], about: Mapping[str, Any]) -> None:
        self.options, self.cores, self.about = options, list(cores), dict(about)
        self.timed: list[Timed] = []
        self.failures: list[dict[str, Any]] = []

    def run(self, tasks: Iterable[Task], where: str, on_step: Callable[[str], None]) -> None:
        """Start all contenders, let them take their turns, and end them; those that fail are in `failures`.

        Args:
            tasks: a contender each.
            where: what the names of the steps begin with.
            on_step: called with the name of each step as it begins.
        """
        with self._closing():
            for task in tasks:
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
