"""Contenders taking turns: each in a process of its own, in alternating rounds; those that wait are stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mega_deploy.bench.measure.contender import Schedule, Task
from mega_deploy.bench.measure.host import Busy
from mega_deploy.bench.measure.process import ContenderError, Process
from mega_deploy.errors import MegaDeployError

MOST_CALLS = 1000
Samples = list[list[float]]
"""Seconds of every call, round by round."""


@dataclass
class Timed:
    """A contender under way, and what it has measured so far."""

    task: Task
    process: Process
    details: dict[str, Any]
    calls: int
    rounds: Samples = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    """Seconds of processor time of a call, on all threads, in each round."""
    others: list[float] = field(default_factory=list)
    """Share of the cores that other processes used in each round."""
    device: list[dict[str, Any]] = field(default_factory=list)
    """What events and sensors of a GPU gave in each round; empty on a CPU."""

    def add(self, answer: dict[str, Any], busy_seconds: float | None) -> None:
        """Take what one turn gave."""
        self.rounds.append(answer["seconds"])
        self.processor.append(answer["processor_seconds"])
        if busy_seconds is not None:
            free = answer["wall_seconds"] * len(self.task.cores)
            self.others.append(max(0.0, busy_seconds - answer["cpu_seconds"]) / free)
        if "device_ms" in answer:
            self.device.append({name: answer[name] for name in ("device_ms", "sensors")})


class Rounds:
    """The rounds of some contenders.

    Args:
        schedule: how often and how long each takes its turn.
        cores: that they share.
        about: what the rows of all of them begin with.
    """

    def __init__(self, schedule: Schedule, cores: Sequence[int], about: Mapping[str, Any]) -> None:
        self.schedule, self.cores, self.about = schedule, list(cores), dict(about)
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
            for number in range(self.schedule.rounds):
                on_step(f"{where}: round {number + 1} of {self.schedule.rounds}")
                # There and back: what changes steadily meets all contenders alike.
                for one in list(self.timed if number % 2 == 0 else reversed(self.timed)):
                    with self._guarded(one.task):
                        self._turn(one)
            for one in list(self.timed):
                with self._guarded(one.task):
                    one.process.resume()
                    one.details |= one.process.ask({}, self.schedule.timeout)

    def _start(self, task: Task) -> Timed:
        """Prepare a contender, and start it up to the point where it is warm; it is stopped then."""
        job = {"catalogue": task.catalogue, "task": task.to_json()}
        if task.prepares:
            preparing = Process(task.contender, {"job": "prepare", **job}, len(task.cores))
            try:
                preparing.answer(self.schedule.timeout)
            finally:
                preparing.close()
        process = Process(task.contender, {"job": "time", **job}, len(task.cores))
        try:
            details = process.answer(self.schedule.timeout)
            process.pause()
        except BaseException:
            process.close(at_once=True)
            raise
        wanted = math.ceil(self.schedule.turn_seconds / details["warm_up"]["call_seconds"])
        return Timed(task, process, details, max(task.least_calls(self.schedule), min(MOST_CALLS, wanted)))

    def _turn(self, one: Timed) -> None:
        before = Busy.read(self.cores)
        one.process.resume()
        answer = one.process.ask({"calls": one.calls}, self.schedule.timeout)
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
